"""Optimizers that compute gradients several times within a step, or that step another optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.runs.models import Batch, Regression
from tests.runs.optimizers import ByHand, SharpnessAware, Wrapper, fitted


class NanInEvaluation(Regression):
    """Its loss is NaN in some evaluations.

    Args:
        at: Their numbers, from 0.
        build: Makes the optimizer.
    """

    def __init__(self, at: set[int], build: Any) -> None:
        super().__init__(build)
        self.at, self.evaluations = at, 0
        self.weights: list[list[Tensor]] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Copy the weights."""
        self.weights.append([one.detach().clone() for one in self.parameters()])

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        self.evaluations += 1
        return self.loss(batch) * (math.nan if self.evaluations - 1 in self.at else 1.0)


@pytest.mark.parametrize("at", [{6}, {7}, {6, 7}], ids=["first", "second", "both"])
@pytest.mark.parametrize("arguments", [{"on_explosion": "skip"}, {"on_explosion": "skip", "clip": "auto"}])
def test_a_step_of_sharpness_aware_minimization_is_held_back(at: set[int], arguments: dict[str, Any]) -> None:
    """Whichever of its evaluations is NaN, the weights are those of before, and there is a finding."""
    module = NanInEvaluation(at, SharpnessAware)
    monitor, records = fitted(module, **arguments)
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert all(torch.equal(one, other) for one, other in zip(module.weights[3], module.weights[4], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(module.weights[4], module.weights[5], strict=True))
    assert monitor.findings
    assert monitor.findings[0].step == 3


def two_calls(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step as in the usual recipe for manual optimization, where only the wrapped optimizer steps."""
    loss: Tensor = closure()
    optimizer.optimizer.climb()
    closure()
    optimizer.optimizer.descend()
    return loss


def innermost(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step what a wrapper wraps."""
    loss: Tensor = closure()
    module.handed.append(module.gradient_norm())
    optimizer.optimizer.optimizer.step()
    return loss


@pytest.mark.parametrize(("step", "build"), [(two_calls, SharpnessAware), (innermost, Wrapper)])
def test_a_step_of_the_wrapped_optimizer_is_measured_and_held_back(
    step: Any, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as a step of the optimizer that the training loop knows."""
    module = ByHand(step, build)
    monitor, records = fitted(module, on_explosion="skip")
    optimizer: Any = module.trainer.optimizers[0]
    handed = module.handed or optimizer.handed
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert [record and record.grad_norm for record in records] == pytest.approx(handed, rel=1e-6, nan_ok=True)
    assert all(bool(torch.isfinite(one).all()) for one in module.parameters())
    assert "no step was seen" not in caplog.text


def line_search(parameters: Any) -> torch.optim.Optimizer:
    """Build LBFGS."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


@pytest.mark.parametrize("at", [{5}, {4, 9}])
def test_a_line_search_that_meets_nan_ends_with_finite_weights(at: set[int]) -> None:
    """NaN in a later evaluation of LBFGS ends its step there, with a finding."""
    module = NanInEvaluation(at, line_search)
    monitor, _ = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert module.evaluations > max(at)
    assert all(bool(torch.isfinite(one).all()) for one in module.parameters())
    assert any("nonfinite" in finding.sign for finding in monitor.findings)
    assert monitor.last is not None
    assert monitor.last.step == 7


@pytest.mark.parametrize("build", [SharpnessAware, line_search, Wrapper])
def test_nothing_changes_without_a_remedy(build: Any) -> None:
    """Weights are bit-identical with and without the monitor."""

    def trained(monitored: bool) -> list[Tensor]:
        pl.seed_everything(1, verbose=False)
        module = NanInEvaluation(set(), build)
        if monitored:
            fitted(module)
        else:
            quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, **quiet).fit(module)
        return [*module.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))
