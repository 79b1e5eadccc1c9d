"""Gradients that the user's own code changes between the backward pass and the optimizer's step."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradexplode import GradientExplosionMonitor, Severity
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Regression
from tests.runs.probe import QUIET


def norm_of(module: pl.LightningModule) -> float:
    """Return the norm of a module's gradients in float64."""
    return float(torch.cat([one.grad.double().flatten() for one in module.parameters() if one.grad is not None]).norm())


class Handed(pl.Callback):
    """Records the norm of the gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at each step, behind all other hooks."""
        trainer.optimizers[0].register_step_post_hook(lambda *args: self.norms.append(norm_of(pl_module)))


class ClipsByHand(Regression):
    """Manual optimization with Lightning's own clipping, as its documentation shows it, or with torch's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.way = way
        self.before: list[float] = []
        self.largest: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Clip between the backward pass and the step."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch) * 10.0
        self.manual_backward(loss)
        self.before.append(norm_of(self))
        self.largest.append(max(float(one.grad.abs().max()) for one in self.parameters() if one.grad is not None))
        if self.way == "lightning":
            self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        elif self.way == "torch":
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)
        elif self.way == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), 0.001)
        optimizer.step()
        return loss


@pytest.mark.parametrize("way", ["lightning", "torch", "value", "not at all"])
def test_the_norm_before_a_clip_by_hand_is_logged(way: str) -> None:
    """Norm and largest element before the clip are logged, and the norm of what the optimizer gets."""
    module, logger, handed = ClipsByHand(way), RecordingLogger(), Handed()
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False)
    pl.Trainer(**QUIET, logger=logger, callbacks=[monitor, handed]).fit(module)
    assert not monitor.failed
    before = [value for _, value in logger.values("gradexplode/grad_norm")]
    after = [value for _, value in logger.values("gradexplode/grad_norm_clipped")]
    assert before == pytest.approx(module.before, rel=1e-6)
    assert [value for _, value in logger.values("gradexplode/grad_max")] == pytest.approx(module.largest, rel=1e-9)
    assert after == pytest.approx(handed.norms, rel=1e-6)


def test_a_policy_clips_what_is_left_after_a_clip_by_hand() -> None:
    """The monitor's own threshold holds for the gradients as they are at the step."""
    module, handed = ClipsByHand("torch"), Handed()
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False, clip=0.01)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor, handed]).fit(module)
    assert handed.norms == pytest.approx([0.01] * 5, rel=1e-3)


class Cleans(Regression):
    """Replaces gradients that are not finite, in one of its hooks.

    Args:
        hook: The hook.
        manual: Whether it steps by hand.
    """

    def __init__(self, hook: str, manual: bool = False) -> None:
        super().__init__()
        self.hook = hook
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Make the gradients of one batch NaN, by the slope of a root at zero; the loss stays finite."""
        loss = self.loss(batch)
        weight = next(self.layers.parameters())
        loss = loss + (weight * 0.0).sum().sqrt() if batch_idx == 2 else loss
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clean."""
        if self.hook == "configure_gradient_clipping":
            self.clean()

    def on_after_backward(self) -> None:
        """Clean."""
        if self.hook == "on_after_backward":
            self.clean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clean."""
        if self.hook == "on_before_optimizer_step":
            self.clean()

    def clean(self) -> None:
        """Replace what is not finite."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("hook", "manual"),
    [
        ("on_after_backward", False),
        ("on_before_optimizer_step", False),
        ("configure_gradient_clipping", False),
        ("on_before_optimizer_step", True),
    ],
)
def test_what_was_cleaned_is_no_finding_and_no_skipped_step(hook: str, manual: bool) -> None:
    """The optimizer gets finite gradients, and takes every step."""
    handed = Handed()
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False, on_explosion="skip")
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor, handed]).fit(Cleans(hook, manual))
    assert not monitor.failed
    assert len(handed.norms) == 5
    assert all(finding.sign != "nonfinite-gradient" for finding in monitor.findings)
    assert not any(
        finding.severity is Severity.CRITICAL and finding.sign != "nonfinite-loss" for finding in monitor.findings
    )


class Spoils(pl.Callback):
    """Makes a gradient NaN behind the monitor, at batch 2."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Spoil it."""
        if trainer.fit_loop.batch_idx == 2:
            next(pl_module.parameters()).grad[0] = float("nan")


@pytest.mark.parametrize("clip", [None, 1.0, "auto"])
@pytest.mark.parametrize(("response", "steps"), [("skip", 5), ("rollback", 5), ("stop", 3)])
@pytest.mark.parametrize("manual", [False, True])
def test_what_was_spoiled_after_it_was_measured_reaches_no_weight(
    response: str, steps: int, clip: Any, manual: bool
) -> None:
    """It is a finding, and the response acts before the update."""
    module = Cleans("never", manual) if manual else Regression()
    monitor = GradientExplosionMonitor(report=False, diagnose=False, on_explosion=response, clip=clip)
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor, Spoils()])
    trainer.fit(module)
    assert not monitor.failed
    assert [finding.step for finding in monitor.findings if finding.sign == "nonfinite-gradient"] == [2]
    assert trainer.fit_loop.total_batch_idx + 1 == steps
    assert all(bool(torch.isfinite(one).all()) for one in module.parameters())


class ClipsInAHook(Regression):
    """Clips in the module's own hook, behind the monitor."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)


def test_the_norm_after_a_clip_in_a_hook_is_what_the_optimizer_gets() -> None:
    """It is measured behind the module's hook."""
    logger, handed = RecordingLogger(), Handed()
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False)
    pl.Trainer(**QUIET, logger=logger, callbacks=[monitor, handed]).fit(ClipsInAHook())
    after = [value for _, value in logger.values("gradexplode/grad_norm_clipped")]
    assert after == pytest.approx(handed.norms, rel=1e-6)
    assert after == pytest.approx([0.01] * 5, rel=1e-3)


def test_the_parameter_that_is_not_finite_is_named_although_lightning_clips() -> None:
    """A clip by a norm of NaN makes all gradients NaN before the step; the one that was NaN before is recorded."""

    class Breaks(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                last = list(self.parameters())[-1]
                last.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))  # type: ignore[no-untyped-call]
            return super().training_step(batch, batch_idx)

    monitor = GradientExplosionMonitor(on_explosion="skip", report=False)
    module = Breaks()
    pl.Trainer(**{**QUIET, "max_steps": 4, "max_epochs": 1}, callbacks=[monitor], gradient_clip_val=0.1).fit(module)
    found = [one for one in monitor.findings if one.sign == "nonfinite-gradient"]
    assert {one.where for one in found} == {[name for name, _ in module.named_parameters()][-1]}


class ClipsInOptimizerStep(Regression):
    """Clips in its own ``optimizer_step``, within the closure or before the optimizer is called at all."""

    def __init__(self, within: bool) -> None:
        super().__init__()
        self.within = within
        self.before: list[float] = []

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Compute the gradients, clip them, and step."""

        def closure() -> Any:
            loss = optimizer_closure()
            self.before.append(norm_of(self))
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)
            return loss

        if self.within:
            optimizer.step(closure=closure)
        else:
            loss = closure()
            optimizer.step(closure=lambda: loss)


@pytest.mark.parametrize("within", [True, False])
def test_the_norm_before_a_clip_in_optimizer_step_is_logged(within: bool) -> None:
    """Automatic optimization with an ``optimizer_step`` of the module's own is measured like manual optimization."""
    module, logger, handed = ClipsInOptimizerStep(within), RecordingLogger(), Handed()
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False)
    pl.Trainer(**QUIET, logger=logger, callbacks=[monitor, handed]).fit(module)
    before = [value for _, value in logger.values("gradexplode/grad_norm")]
    assert before == pytest.approx(module.before, rel=1e-6)
    after = [value for _, value in logger.values("gradexplode/grad_norm_clipped")]
    assert after == pytest.approx(handed.norms, rel=1e-6)


class Removes(Regression):
    """Removes the gradients of its first parameter in a hook behind the monitor.

    Args:
        hook: The hook.
    """

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Remove it."""
        if self.hook == "on_before_optimizer_step":
            next(self.parameters()).grad = None

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Remove it."""
        if self.hook == "configure_gradient_clipping":
            next(self.parameters()).grad = None


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "configure_gradient_clipping"])
def test_gradients_that_a_hook_removes_are_named_once(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """The optimizer does not get what was measured, which one line says."""
    monitor = GradientExplosionMonitor(report=False)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(Removes(hook))
    lines = [one for one in caplog.messages if "were removed" in one]
    assert len(lines) == 1
    assert "at step 0: the gradients of layers.0.weight were removed" in lines[0]
