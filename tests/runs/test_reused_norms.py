"""The trainer's clipping by norm, with the norm that was measured already: the same bits, at half the cost."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.engine import clipping as clipper
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Regression
from tests.runs.probe import QUIET


class Counted:
    """Counts the calls of torch's own ``clip_grad_norm_``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.original = torch.nn.utils.clip_grad_norm_
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.original(*args, **kwargs)


def large() -> Regression:
    """Build a network with tensors large and small, its weights the same each time."""
    torch.manual_seed(3)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 3000), torch.nn.Tanh(), torch.nn.Linear(3000, 1))
    return Regression(lambda parameters: torch.optim.Adam(parameters, lr=1e-3), layers=layers)


def weights_after(trainer: dict[str, Any], monitor: GradientExplosionMonitor | None = None) -> list[torch.Tensor]:
    """Train, and return the weights."""
    module = large()
    callbacks: list[pl.Callback] = [] if monitor is None else [monitor]
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=callbacks, **trainer).fit(module)
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("clip", [1e-3, 1.7, 1e9], ids=["binds always", "binds at times", "never binds"])
@pytest.mark.parametrize("by", ["monitor", "trainer"])
def test_training_is_the_trainers_own_to_the_last_bit(clip: float, by: str) -> None:
    """Whoever was given the clip value, and whether it binds or not, the weights are those of a run with no monitor."""
    truth = weights_after({"gradient_clip_val": clip})
    monitor = GradientExplosionMonitor(log_every_n_steps=3, report=False, clip=clip if by == "monitor" else None)
    watched = weights_after({} if by == "monitor" else {"gradient_clip_val": clip}, monitor)
    assert all(torch.equal(a, b) for a, b in zip(truth, watched, strict=True))
    assert monitor.last is not None
    assert monitor.last.clip_val == clip


def test_a_norm_that_does_not_bind_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clip value is far above the norm, torch's clipping is not called at all."""
    counted = Counted(monkeypatch)
    weights_after({}, GradientExplosionMonitor(log_every_n_steps=0, report=False, clip=1e9))
    assert counted.calls == 0


def test_a_norm_that_binds_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it binds, torch measures anew at the first step, and at those that are logged, whose norm is exact."""
    counted = Counted(monkeypatch)
    weights_after({}, GradientExplosionMonitor(log_every_n_steps=4, report=False, clip=1e-3))
    assert counted.calls == 3


def test_norms_that_are_logged_are_exact() -> None:
    """The norm of a step that is logged is exact to 1e-6, though steps between are measured as torch clips by them."""

    class Truth(pl.Callback):
        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [parameter.grad.double().square().sum() for parameter in pl_module.parameters()]
            self.norms.append(float(sum(gradients)) ** 0.5)

    logger, truth = RecordingLogger(), Truth()
    monitor = GradientExplosionMonitor(log_every_n_steps=4, report=False, clip=1e-3)
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=logger, callbacks=[monitor, truth]).fit(large())
    logged = dict(logger.values("gradexplode/grad_norm"))
    assert {3, 7} <= set(logged)
    assert all(logged[step] == pytest.approx(truth.norms[step], rel=1e-6) for step in logged if step is not None)


def test_gradients_that_were_changed_since_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback behind the monitor that makes gradients larger gets them clipped by what they are then."""

    class Enlarges(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for parameter in pl_module.parameters():
                parameter.grad.mul_(1e6)

    counted = Counted(monkeypatch)
    weights = []
    both: list[list[pl.Callback]] = [[Enlarges()], [GradientExplosionMonitor(report=False), Enlarges()]]
    for callbacks in both:
        module = large()
        pl.Trainer(**QUIET, logger=False, callbacks=callbacks, gradient_clip_val=1e3).fit(module)
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert counted.calls == 10


def test_a_plugin_that_clips_in_its_own_way_is_left_alone() -> None:
    """A user's precision plugin is asked, and nothing stands before it."""

    class Own(Precision):
        calls = 0

        def clip_grad_by_norm(self, optimizer: Any, clip_val: Any) -> None:
            self.calls += 1

    plugin = Own()
    monitor = GradientExplosionMonitor(report=False, clip=1e9)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor], plugins=[plugin]).fit(large())
    assert plugin.calls == 5


def test_the_plugin_is_as_it_was_found() -> None:
    """After fit nothing of the monitor is left in the trainer's precision plugin."""
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[GradientExplosionMonitor(report=False, clip=1.0)])
    before = dict(vars(trainer.precision_plugin))
    trainer.fit(large())
    assert vars(trainer.precision_plugin) == before


def test_a_failure_of_ours_leaves_the_clipping_to_the_trainer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error while the known norm is used is logged once; the weights are those of the trainer's clipping."""

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    truth = weights_after({"gradient_clip_val": 1e-3})
    monkeypatch.setattr(clipper, "clip_by_total_norm", fail)
    watched = weights_after({}, GradientExplosionMonitor(log_every_n_steps=0, report=False, clip=1e-3))
    assert all(torch.equal(a, b) for a, b in zip(truth, watched, strict=True))
    assert [record.getMessage().count("could not be used") for record in caplog.records].count(1) == 1
