"""Optimizers that wrap another one, which the loop or a method of their own steps, and optimizers that never step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded


class TwoSteps(Optimizer):
    """Sharpness-aware minimization as it is usually written: two methods in place of ``step``."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {"radius": 0.05})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.01)
        self.origin: list[Tensor] = []

    @property
    def weights(self) -> list[Tensor]:
        """All weights."""
        return [weight for group in self.param_groups for weight in group["params"]]

    @torch.no_grad()
    def climb(self) -> None:
        """Move the weights along their gradients, and clear these."""
        norm = exact_norm(self.weights)
        self.origin = [weight.clone() for weight in self.weights]
        for weight in self.weights:
            assert weight.grad is not None
            weight.add_(weight.grad, alpha=0.05 / norm)
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        """Step from where the weights were, with the gradients of where they are."""
        for weight, origin in zip(self.weights, self.origin, strict=True):
            weight.copy_(origin)
        self.inner.step()
        self.zero_grad()


def train(watch: GradientWatch, model: nn.Module, optimizer: TwoSteps, after: Callable[[float], None]) -> None:
    """Train on four batches, whose third one has a second pass of NaN, and tell the exact norm of each step."""
    for index, batch in enumerate(batches(4)):
        for factor in (1.0, math.nan if index == 2 else 1.0):
            loss = loss_of(model, batch) * factor
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            if not optimizer.origin:
                optimizer.climb()
        truth = exact_norm(model.parameters())
        optimizer.descend()
        optimizer.origin = []
        after(truth)


def test_a_step_of_the_wrapped_optimizer_alone_is_a_step(caplog: pytest.LogCaptureFixture) -> None:
    """It has the norm of the gradients that it takes, is counted, and is skipped as the step of any optimizer."""
    model = network()
    optimizer = TwoSteps(model.parameters())
    steps = []
    with GradientWatch(model, optimizer, report=False, diagnose=False, on_explosion="skip") as watch:

        def compare(truth: float) -> None:
            steps.append(watch.last.step if watch.last is not None else None)
            if math.isfinite(truth):
                assert recorded(watch) == pytest.approx(truth, rel=1e-9)

        train(watch, model, optimizer, compare)
        assert watch.last is not None
        assert watch.last.skipped_steps == 1
    assert steps == [0, 1, 2, 3]
    signs = {"nonfinite-loss", "nonfinite-gradient"}
    assert {(finding.step, finding.sign) for finding in watch.findings} == {(2, sign) for sign in signs}
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert [one for one in caplog.messages if "not by an optimizer" in one] == []


def test_a_second_monitor_of_a_wrapper_ends_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """As where the cell of a notebook is run again."""
    model = network()
    optimizer = TwoSteps(model.parameters())
    first = GradientWatch(model, optimizer, report=False)
    with GradientWatch(model, optimizer, report=False) as second:
        train(second, model, optimizer, lambda _: None)
    assert first.last is None
    assert second.last is not None
    assert len([one for one in caplog.messages if "a new monitor of the optimizer begins" in one]) == 1


@pytest.mark.parametrize("is_other", [False, True])
def test_a_run_in_which_no_given_optimizer_steps_is_named(is_other: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A library may build its optimizer anew; without a loss nothing else would show that nothing is measured."""
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, given, report=False) as watch:
        if is_other:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for batch in batches(3):
                loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    assert watch.last is None
    assert len([one for one in caplog.messages if "no optimizer that was passed" in one]) == is_other
