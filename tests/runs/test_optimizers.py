"""Optimizers of any kind are measured, and a skipped update does not happen, however they are stepped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from tests.runs.models import Batch, Regression
from tests.runs.optimizers import (
    Bare,
    ByHand,
    Forwarding,
    NanAtThree,
    SharesAttributes,
    StepOfInstance,
    Uninitialized,
    Wrapper,
    fitted,
    raw,
    sgd,
)
from tests.runs.probe import norm


class TwoClosures(torch.optim.SGD):
    """Sharpness-aware minimization: updates by the gradients at a neighboring point."""

    handed: float = math.nan

    def step(self, closure: Any = None) -> Any:
        """Evaluate twice, and update from the first point."""
        with torch.enable_grad():
            loss = closure()
        parameters = [one for one in self.param_groups[0]["params"] if one.grad is not None]
        moves = [0.1 * one.grad.sign() for one in parameters]
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter += move
        with torch.enable_grad():
            closure()
        self.handed = norm(*[parameter.grad for parameter in parameters])
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter -= move
        super().step()
        return loss


class Raw(NanAtThree):
    """Steps its optimizer behind Lightning's back."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step the raw optimizer."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class WithoutOptimizers(Regression):
    """Manual optimization without an optimizer."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: [])
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute gradients only."""
        loss = self.loss(batch)
        self.manual_backward(loss)
        return loss


@pytest.mark.parametrize(
    "module",
    [
        lambda: NanAtThree(Wrapper),
        lambda: NanAtThree(Bare),
        lambda: NanAtThree(Uninitialized),
        lambda: NanAtThree(Forwarding),
        lambda: NanAtThree(SharesAttributes),
        lambda: NanAtThree(StepOfInstance),
        Raw,
    ],
    ids=["wrapper", "protocol", "no constructor", "forwarding", "same attributes", "step of instance", "raw step"],
)
def test_every_optimizer_is_measured_and_held_back(module: Any) -> None:
    """All eight steps are measured, and only that of the NaN is skipped; the weights stay finite."""
    module = module()
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record is not None and record.step for record in records] == list(range(8))
    assert [record is not None and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert all(record is not None and record.update_ratio for n, record in enumerate(records) if n != 3)
    losses = [record.loss for record in records if record is not None]
    assert [loss if loss is None else math.isnan(loss) for loss in losses] == [n == 3 for n in range(8)]


def test_manual_optimization_without_an_optimizer() -> None:
    """There is nothing to measure, and nothing fails."""
    monitor, _ = fitted(WithoutOptimizers())
    assert not monitor.failed
    assert monitor.last is None


def test_the_gradients_of_the_last_closure_are_logged() -> None:
    """Sharpness-aware minimization updates by the gradients of its second evaluation."""
    module = Regression(TwoClosures)
    monitor, _ = fitted(module)
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    assert monitor.last is not None
    assert monitor.last.grad_norm == pytest.approx(optimizer.handed, rel=1e-6)


def clipped(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Clip by Lightning's own method before the step."""
    loss: Tensor = closure()
    module.handed.append(module.gradient_norm())
    module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    optimizer.step()
    return loss


@torch.no_grad()
def shift(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> None:
    """Add to parameters."""
    for parameter, move in zip(parameters, moves, strict=True):
        parameter += move


def sharpness_aware(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step by the gradients at a neighboring point, with the closure evaluated twice in one step."""

    def both() -> Tensor:
        loss: Tensor = closure()
        parameters = [one for one in module.parameters() if one.grad is not None]
        moves = [0.1 * one.grad.sign() for one in parameters if one.grad is not None]
        shift(parameters, moves)
        closure()
        shift(parameters, [-move for move in moves])
        module.handed.append(module.gradient_norm())
        return loss

    optimizer.step(both)
    return both()


@pytest.mark.parametrize("step", [raw, clipped, sharpness_aware])
def test_the_norm_is_that_before_clipping_of_the_update_itself(step: Any) -> None:
    """It equals what the module measures itself, whatever lies between the backward pass and the step."""
    module = ByHand(step)
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    handed = module.handed[:: 2 if step is sharpness_aware else 1]
    assert [record and record.grad_norm for record in records] == pytest.approx(handed, rel=1e-6, nan_ok=True)
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    if step is clipped:
        assert records[0] is not None
        assert records[0].grad_norm_clipped == pytest.approx(0.1, rel=1e-4)


class BareData(Bare):
    """Writes through ``.data``."""

    def step(self, closure: Any = None) -> Any:
        """Descend."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.01)


class UninitializedData(BareData, torch.optim.Optimizer):
    """A subclass of torch's class that does not call its constructor."""


@pytest.mark.parametrize("build", [Bare, BareData, Uninitialized, UninitializedData])
def test_raw_steps_of_optimizers_without_hooks_are_measured_and_held_back(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What `optimizers(use_pl_optimizer=False)` returns is followed too, and is afterwards as it was."""
    module = ByHand(raw, build)
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert [record and record.grad_norm for record in records] == pytest.approx(module.handed, rel=1e-6, nan_ok=True)
    assert all(bool(torch.isfinite(one).all()) for one in module.parameters())
    assert "step" not in module.trainer.optimizers[0].__dict__
    assert "no step was seen" not in caplog.text


@pytest.mark.parametrize("build", [Bare, Uninitialized, sgd])
def test_a_step_that_a_gradient_scaler_leaves_out_is_not_taken(build: Any) -> None:
    """Also where the optimizer has no hooks by which its step could be seen."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monitor, records = fitted(NanAtThree(build), plugins=[plugin])
    assert not monitor.failed
    assert [record is not None and record.update_taken for record in records] == [n != 3 for n in range(8)]
