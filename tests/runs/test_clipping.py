"""Clipping by the monitor: it takes effect at the same step, and the trainer is left as it was found."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    ClipPolicy,
    ConstantClip,
    GradientExplosionMonitor,
    StepRecord,
)
from tests.runs.models import Manual, Regression
from tests.runs.probe import QUIET, Watched, norm
from tests.runs.test_modes import fused, scaler
from tests.runs.test_transparency import lbfgs


class HalfOfTheNorm(ClipPolicy):
    """A policy whose threshold is another one at each step."""

    def threshold(self, record: StepRecord) -> float:
        """Return half of the step's own norm."""
        assert record.grad_norm is not None
        return record.grad_norm / 2


class Handed(pl.Callback):
    """Copies the gradients as the optimizer took them, clipped: they are still there when the batch ends."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.maxima: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Measure the gradients by a plain loop."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(norm(*gradients))
        self.maxima.append(max(float(gradient.abs().max()) for gradient in gradients))


def test_a_threshold_takes_effect_at_its_own_step() -> None:
    """The policy that follows each step's norm halves each step's gradients."""
    handed = Handed()
    run = Watched(Regression(), monitor={"clip": HalfOfTheNorm()}, callbacks=[handed])
    truth = [norm(*one.gradients.values()) for one in run.probe.truths]
    assert [one["gradexplode/grad_norm"] for one in run.logged] == pytest.approx(truth, rel=1e-6)
    assert [one["gradexplode/clip_val"] for one in run.logged] == pytest.approx([t / 2 for t in truth], rel=1e-6)
    assert [one["gradexplode/grad_norm_clipped"] for one in run.logged] == pytest.approx(handed.norms, rel=1e-6)
    assert handed.norms == pytest.approx([t / 2 for t in truth], rel=1e-4)
    assert [one["gradexplode/clip_rate"] for one in run.logged] == [1.0] * 5


def test_clipping_by_value_limits_each_element() -> None:
    """No element that the optimizer takes is larger than the value."""
    handed = Handed()
    run = Watched(Regression(), monitor={"clip": ConstantClip(0.5, "value")}, callbacks=[handed])
    assert max(one["gradexplode/grad_max"] for one in run.logged) > 0.5
    assert max(handed.maxima) == 0.5
    assert [one["gradexplode/grad_norm_clipped"] for one in run.logged] == pytest.approx(handed.norms, rel=1e-6)
    expected = [float(m["gradexplode/grad_max"] > 0.5) for m in run.logged]
    assert [m["gradexplode/clip_rate"] for m in run.logged] == [sum(expected[: n + 1]) / (n + 1) for n in range(5)]


def test_clipping_by_the_monitors_own_rule() -> None:
    """No norm is above the threshold that is logged with it, and an exploding run is held."""
    handed = Handed()
    module = Regression(lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    run = Watched(module, monitor={"clip": "auto"}, callbacks=[handed], max_steps=30)
    limits = [one["gradexplode/clip_val"] for one in run.logged]
    assert len(limits) == 30
    assert all(taken <= limit * (1 + 1e-6) for taken, limit in zip(handed.norms, limits, strict=True))
    assert any(one["gradexplode/grad_norm"] > one["gradexplode/clip_val"] for one in run.logged)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("mode", ["plain", "accumulated", "scaled"])
def test_a_constant_is_the_trainers_own_clipping(algorithm: Any, mode: str) -> None:
    """A constant threshold gives, bit for bit, the weights of the trainer's own argument."""
    weights = []
    for monitor, trainer in (
        ({"clip": ConstantClip(0.3, algorithm)}, {}),
        ({}, {"gradient_clip_val": 0.3, "gradient_clip_algorithm": algorithm}),
    ):
        torch.manual_seed(3)
        module = Regression()
        accumulate = 2 if mode == "accumulated" else 1
        plugins = [scaler()] if mode == "scaled" else None
        run = Watched(module, monitor=monitor, accumulate_grad_batches=accumulate, plugins=plugins, **trainer)
        assert any(one["gradexplode/clip_rate"] > 0 for one in run.logged)
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("scaled", [True, False])
def test_clipping_of_fused_optimizers(algorithm: Any, scaled: bool) -> None:
    """Under mixed precision Lightning refuses to clip for a fused optimizer; the monitor clips in its place."""

    class ByHand(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            scale = float(trainer.scaler.get_scale()) if scaled else 1.0
            clip = torch.nn.utils.clip_grad_norm_ if algorithm == "norm" else torch.nn.utils.clip_grad_value_
            clip(pl_module.parameters(), 0.3 * scale)

    weights = []
    for by_hand in (True, False):
        torch.manual_seed(3)
        module = Regression(fused)
        mixed: dict[str, Any] = {"plugins": [scaler()]} if scaled else {"precision": "bf16-mixed"}
        if by_hand:
            pl.Trainer(**QUIET, **mixed, logger=False, callbacks=[ByHand()]).fit(module)
        else:
            run = Watched(module, monitor={"clip": ConstantClip(0.3, algorithm)}, **mixed)
            assert len(run.logged) == 5
            if algorithm == "norm":
                clipped = [one["gradexplode/grad_norm_clipped"] for one in run.logged]
                assert clipped == pytest.approx([0.3] * 5, rel=1e-4)
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*weights, strict=True))


def test_clipping_in_manual_optimization() -> None:
    """Where Lightning does not clip, the monitor does."""
    run = Watched(Manual(2), monitor={"clip": 0.01}, max_steps=8)
    assert len(run.logged) == 4
    for truth in run.probe.truths:
        change = norm(*(after - truth.before[name] for name, after in truth.after.items()))
        assert change / truth.optimizer.param_groups[0]["lr"] == pytest.approx(0.01, rel=1e-3)
    for logged in run.logged:
        assert logged["gradexplode/grad_norm_clipped"] == pytest.approx(0.01 * 2**0.5, rel=1e-3)
        assert logged["gradexplode/optimizer_0/grad_norm_clipped"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("mode", ["plain", "accumulated", "scaled", "fused", "manual", "line search"])
@pytest.mark.parametrize("policy", [AdaptiveGradientClip(0.02), AdaptiveTensorClip(warmup=2, first=0.1)])
def test_policies_that_clip_each_tensor_by_itself(policy: Any, mode: str) -> None:
    """In every mode the monitor clips in the trainer's place, and logs the norm that the optimizer then takes."""
    handed = Handed()
    build = {"fused": fused, "line search": lbfgs}.get(mode)
    module = Manual(1) if mode == "manual" else Regression(build)
    options: dict[str, Any] = {"max_steps": 6}
    if mode in ("scaled", "fused"):
        options["plugins"] = [scaler()]
    if mode == "accumulated":
        options["accumulate_grad_batches"] = 2
    run = Watched(module, monitor={"clip": policy}, callbacks=[handed], scaled=mode == "fused", **options)
    assert not run.monitor.failed
    assert len(run.logged) == 6
    assert run.logged[-1]["gradexplode/clip_rate"] > 0
    assert "gradexplode/clip_val" not in run.logged[-1]
    if mode == "line search":
        return
    clipped = [one["gradexplode/grad_norm_clipped"] for one in run.logged]
    assert all(after < one["gradexplode/grad_norm"] for after, one in zip(clipped[:2], run.logged, strict=False))
    if mode in ("plain", "scaled"):
        assert clipped == pytest.approx(handed.norms, rel=1e-6)


@pytest.mark.parametrize("policy", [AdaptiveGradientClip(1e9), AdaptiveTensorClip(factor=1e9, first=1e9)])
def test_tensors_whose_limits_do_not_bind_train_as_without(policy: Any) -> None:
    """Where nothing binds, weights are bit for bit those of a run without clipping."""
    weights = []
    for clip in (policy, None):
        torch.manual_seed(3)
        module = Regression()
        run = Watched(module, monitor={"clip": clip})
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert len(run.logged) == 5
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_users_own_clipping_hook_goes_first() -> None:
    """A module that clips in its own way does not fail, and what is logged is what the optimizer takes."""

    class Clips(Regression):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.2)

    handed = Handed()
    run = Watched(Clips(), callbacks=[handed])
    assert [m["gradexplode/grad_norm_clipped"] for m in run.logged] == pytest.approx(handed.norms, rel=1e-6)
    assert handed.norms == pytest.approx([0.2] * 5, rel=1e-4)
    assert all(m["gradexplode/grad_norm"] > 0.2 for m in run.logged)


@pytest.mark.parametrize("before", [None, 7.0])
@pytest.mark.parametrize("fails", [False, True])
def test_the_trainer_is_as_it_was_found(before: float | None, fails: bool) -> None:
    """After fit, and after an exception, the trainer's own clipping is what stood there before."""

    class Fails(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if fails and batch_idx == 3:
                raise ZeroDivisionError
            return self.loss(batch)

    monitor = GradientExplosionMonitor(clip=ConstantClip(0.5, "value"), report=False)
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor], gradient_clip_val=before)
    algorithm = trainer.gradient_clip_algorithm
    if fails:
        with pytest.raises(ZeroDivisionError):
            trainer.fit(Fails())
    else:
        trainer.fit(Fails())
    assert trainer.gradient_clip_val == before
    assert trainer.gradient_clip_algorithm == algorithm
    hooks = [hook for one in trainer.optimizers for hook in one._optimizer_step_pre_hooks.values()]
    assert not hooks
