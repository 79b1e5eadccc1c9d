"""A loss or gradients that are not finite, and with which the user's own code runs no optimizer step."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch
from lightning_gradexplode.records import Finding, Severity
from tests.hosts.loops import batches, loss_of, network, same_weights
from tests.runs.models import Regression
from tests.runs.probe import QUIET
from tests.torch_versions import needs_graph_values

NAN_AT = (4, 5, 9)
"""Batches with a NaN, in row 3."""


class Loop:
    """A plain loop over batches of which some hold NaN.

    Args:
        skips: What the loop does if the loss or the gradient norm is not finite.
        marks: Whether it marks its batches.
    """

    def __init__(self, skips: str, marks: bool = False) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.skips, self.marks = skips, marks
        self.kept: list[Tensor] = []

    def train(self, watch: GradientWatch | None, count: int = 12) -> None:
        """Train, with or without a watch."""
        for number, batch in enumerate(batches(count)):
            if number in NAN_AT:
                batch[3, 1] = math.nan
            if watch is not None and self.marks:
                watch.batch(batch)
            self.step(watch, batch)
            if self.skips == "break" and number == NAN_AT[0]:
                break

    def step(self, watch: GradientWatch | None, batch: Tensor) -> None:
        """Take a step, or leave it out."""
        loss = loss_of(self.model, batch)
        if watch is not None:
            watch.loss(loss)
        is_nan = bool(loss.isnan())
        if is_nan and self.skips == "raise":
            raise ValueError("the loss is NaN")
        if self.skips == "kept":
            self.kept.append(loss)
        if is_nan and self.skips in ("continue", "break", "kept"):
            return
        self.optimizer.zero_grad(set_to_none=self.skips != "zeroed")
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=self.skips == "clip")
        if is_nan and self.skips in ("cleared", "zeroed"):
            self.optimizer.zero_grad(set_to_none=self.skips == "cleared")
            return
        if norm.isfinite():
            self.optimizer.step()


def found(loop: Loop, raised: type[Exception] | None = None) -> tuple[list[Finding], GradientWatch]:
    """Train, and return the findings that are warnings or worse, with the watch."""
    with GradientWatch(loop.model, loop.optimizer, report=False) as watch:
        if raised is None:
            loop.train(watch)
    if raised is not None:
        with (
            pytest.raises(raised),
            GradientWatch(loop.model, loop.optimizer, report=False) as watch,
        ):
            loop.train(watch)
    assert not watch.failed
    return [one for one in watch.findings if one.severity >= Severity.WARNING], watch


@pytest.mark.parametrize("marks", [pytest.param(False, marks=needs_graph_values), True])
@pytest.mark.parametrize("skips", ["continue", "kept", "break", "cleared", "zeroed", "later"])
def test_a_loss_that_a_plain_loop_leaves_out_is_one_warning(skips: str, marks: bool) -> None:
    """However the loop leaves a NaN out, it is one warning at its step, with field and row."""
    loop = Loop(skips, marks)
    findings, watch = found(loop)
    first = findings[0]
    assert (first.step, first.sign, first.severity) == (NAN_AT[0], "nonfinite-loss", Severity.WARNING)
    assert [one.sign for one in findings].count("nonfinite-loss") == 1
    assert not watch.exploded
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.step == NAN_AT[0]
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert "row 3" in (diagnosis.causes[0].where or "")
    assert not any("on_explosion" in one for one in diagnosis.remedies)
    alone = Loop(skips)
    alone.train(None)
    assert same_weights(loop.model, alone.model)


def test_a_loss_that_is_left_out_is_reported_at_the_next_one_without_the_garbage_collector() -> None:
    """A run may switch the collector off, and it may run rarely; a warning at the end of the run comes too late."""
    loop = Loop("continue")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with GradientWatch(loop.model, loop.optimizer, report=False) as watch:
            loop.train(watch, NAN_AT[0] + 2)
            assert [(one.step, one.sign) for one in watch.findings] == [(NAN_AT[0], "nonfinite-loss")]
    finally:
        if was_enabled:
            gc.enable()


@pytest.mark.parametrize(("skips", "error"), [("raise", ValueError), ("clip", RuntimeError)])
@pytest.mark.parametrize("marks", [pytest.param(False, marks=needs_graph_values), True])
def test_an_exception_before_the_step_is_critical(skips: str, error: type[Exception], marks: bool) -> None:
    """A loop that raises an exception for a NaN has a critical finding, with field and row."""
    findings, watch = found(Loop(skips, marks), error)
    assert (findings[0].step, findings[0].sign, findings[0].severity) == (4, "nonfinite-loss", Severity.CRITICAL)
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert "row 3" in (diagnosis.causes[0].where or "")


@needs_graph_values
def test_the_cause_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The warning and its cause are one line each."""
    with caplog.at_level(logging.WARNING):
        found(Loop("continue"))
    lines = [one.getMessage() for one in caplog.records]
    assert len(lines) == 2
    assert "the training loop leaves this step out" in lines[0]
    assert "diagnosis of step 4: nonfinite-input" in lines[1]


def test_a_loss_that_a_later_backward_pass_reaches_is_not_left_out() -> None:
    """The loss of a batch with NaN, which is part of the sum that the backward pass begins with, is critical."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(4):
            optimizer.zero_grad()
            total = torch.zeros(())
            for batch in batches(3):
                batch[0, 0] = math.nan if step == 3 else 0.0
                loss = loss_of(model, batch)
                watch.loss(loss)
                loss = loss / 3
                total = total + loss
            total.backward()  # type: ignore[no-untyped-call]
            assert watch.findings == []
            optimizer.step()
    assert {one.severity for one in watch.findings} == {Severity.CRITICAL}


def test_a_finite_loss_with_gradients_that_are_not_finite() -> None:
    """A root at zero has a finite loss and NaN gradients; the exception of the clipping has the operation as cause."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(watch: GradientWatch) -> None:
        for step, batch in enumerate(batches(8)):
            optimizer.zero_grad()
            out = model(batch)
            loss = (out - out.detach() if step == 5 else out - 100).square().sum().sqrt() / 100
            watch.loss(loss)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()

    with pytest.raises(RuntimeError), GradientWatch(model, optimizer, report=False) as watch:
        train(watch)
    assert [(one.step, one.sign, one.severity) for one in watch.findings] == [
        (5, "nonfinite-gradient", Severity.CRITICAL)
    ]


class Skipping(Regression):
    """A regression whose batches 4 and 5 hold NaN in their third row, and which may return None.

    Args:
        skips: Whether it returns None, from the loss.
    """

    def __init__(self, skips: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.skips = skips

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss, or None."""
        loss = self.loss(batch)
        return None if self.skips(loss) else loss

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of four."""
        inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
        targets = inputs.sum(dim=1, keepdim=True)
        inputs[[18, 22], 0] = math.nan
        return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def fitted(model: pl.LightningModule) -> GradientExplosionMonitor:
    """Fit for an epoch, and return the monitor."""
    monitor = GradientExplosionMonitor(report=False)
    pl.Trainer(**{**QUIET, "max_epochs": 1, "max_steps": -1, "logger": False}, callbacks=[monitor]).fit(model)
    return monitor


@pytest.mark.filterwarnings("ignore:.*returned.*None")
@pytest.mark.parametrize(
    "skips",
    [
        lambda loss: bool(loss.isnan()),
        lambda loss: not loss.isfinite(),
        lambda loss: math.isnan(loss.item()),
        lambda loss: bool(loss != loss),
    ],
)
def test_a_training_step_without_a_loss_is_computed_again(skips: Callable[[Tensor], Any]) -> None:
    """A ``training_step`` that returns None for a NaN has one warning."""
    monitor = fitted(Skipping(skips))
    assert [(one.step, one.sign, one.severity) for one in monitor.findings if one.severity >= Severity.WARNING] == [
        (4, "nonfinite-loss", Severity.WARNING)
    ]
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-input", "batch[0], row 2")


class SkippingByHand(Skipping):
    """The same in manual optimization."""

    def __init__(self, skips: Callable[[Tensor], Any]) -> None:
        super().__init__(skips)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take a step, unless the loss is left out."""
        loss, optimizer = self.loss(batch), self.optimizers()
        if self.skips(loss):
            return
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


@pytest.mark.parametrize(("skips", "found"), [(torch.isnan, [4]), (lambda loss: True, [])])
def test_a_loss_that_manual_optimization_leaves_out_is_one_warning(
    skips: Callable[[Tensor], Any], found: list[int]
) -> None:
    """With its cause; batches without a step for other reasons are no findings."""
    monitor = fitted(SkippingByHand(skips))
    warnings = [(one.step, one.severity) for one in monitor.findings if one.sign == "nonfinite-loss"]
    assert warnings == [(step, Severity.WARNING) for step in found]
    diagnosis = monitor.diagnosis()
    assert (diagnosis and diagnosis.causes[0].kind) == ("nonfinite-input" if found else None)


class SkippingInOptimizerStep(Skipping):
    """Automatic optimization whose ``optimizer_step`` leaves out the update for some losses."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.loss(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Run the closure, and update the weights unless the loss is skipped."""
        if not self.skips(optimizer_closure()):
            optimizer.step()


class AccumulatingInOptimizerStep(SkippingInOptimizerStep):
    """The same, which clears no gradients, so that the next update uses those of the loss that it has skipped."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Clear nothing."""


@pytest.mark.parametrize("module", [SkippingInOptimizerStep, AccumulatingInOptimizerStep])
def test_a_step_that_automatic_optimization_leaves_out_is_a_warning(module: Any) -> None:
    """Unless its gradients, which are not finite, are still there in the next step."""
    monitor = fitted(module(lambda loss: not loss.isfinite()))
    found = [(one.step, one.sign, one.severity) for one in monitor.findings if one.severity >= Severity.WARNING]
    if module is SkippingInOptimizerStep:
        assert found == [(4, "nonfinite-loss", Severity.WARNING)]
    else:
        assert found[0] == (6, "nonfinite-gradient", Severity.CRITICAL)


class GuardedStep(Skipping):
    """Manual optimization that runs the backward pass of any loss, and leaves out the step if the loss is not finite.

    Args:
        clears: Whether gradients are cleared ``"before"`` each backward pass or ``"after"`` each step.
        critic: Whether a second optimizer steps on a loss of its own in the same batch, which is finite.
    """

    def __init__(self, clears: str, critic: bool) -> None:
        super().__init__(lambda loss: not loss.isfinite())
        self.automatic_optimization = False
        self.clears = clears
        self.critic = nn.Linear(1, 1) if critic else None

    def configure_optimizers(self) -> Any:
        """Return one optimizer, or two."""
        first = super().configure_optimizers()
        return first if self.critic is None else [first, torch.optim.SGD(self.critic.parameters(), lr=0.01)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take a step of each optimizer, unless its loss is not finite."""
        optimizers = self.optimizers()
        losses = [self.loss(batch)]
        if self.critic is not None:
            losses.append(self.critic(torch.ones(1)).square().sum())
        for optimizer, loss in zip(optimizers if isinstance(optimizers, list) else [optimizers], losses, strict=True):
            if self.clears == "before":
                optimizer.zero_grad()
            self.manual_backward(loss)
            if loss.isfinite():
                optimizer.step()
            if self.clears == "after":
                optimizer.zero_grad()


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("clears", ["before", "after"])
def test_a_step_that_manual_optimization_leaves_out_after_its_backward_pass_is_a_warning(
    clears: str, critic: bool
) -> None:
    """The loss is one of its own batch, and of no later step, whose gradients it does not reach."""
    monitor = fitted(GuardedStep(clears, critic))
    assert not monitor.exploded
    warnings = [(one.step, one.severity) for one in monitor.findings if one.sign == "nonfinite-loss"]
    assert warnings == [(4, Severity.WARNING)]


@pytest.mark.filterwarnings("ignore:.*returned.*None")
def test_a_training_step_may_return_no_loss_for_other_reasons() -> None:
    """Steps without a loss that have tested no NaN are no findings."""

    monitor = fitted(Skipping(lambda loss: True))
    assert [one for one in monitor.findings if one.severity >= Severity.WARNING] == []
