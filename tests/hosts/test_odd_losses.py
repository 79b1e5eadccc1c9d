"""Losses whose value cannot be recorded, in loops of plain PyTorch: the gradients are measured all the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded


def exact_complex_norm(model: nn.Module) -> float:
    """Return the norm of complex gradients in twice the precision."""
    gradients = [one.grad.to(torch.complex128).flatten() for one in model.parameters() if one.grad is not None]
    return float(torch.cat(gradients).norm())


def test_a_complex_loss_is_left_out() -> None:
    """Its gradients are measured, and the loss is unknown."""
    model = nn.Linear(4, 1, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = model(batch.to(torch.complex64)).square().mean()
            watch.loss(loss)
            loss.backward(torch.ones_like(loss))
            norm = exact_complex_norm(model)
            optimizer.step()
            assert recorded(watch) == pytest.approx(norm, rel=1e-6)
    assert watch.last is not None
    assert watch.last.loss is None


def test_a_loss_within_a_transform_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A loss within ``torch.func.grad`` is named once, and the gradients are measured at the step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):

            def loss_with(weights: dict[str, Tensor], batch: Tensor = batch) -> Tensor:
                loss: Tensor = functional_call(model, weights, (batch,)).square().mean()
                watch.loss(loss)
                return loss

            weights = {name: one.detach() for name, one in model.named_parameters()}
            gradients, _ = grad_and_value(loss_with)(weights)
            for name, weight in model.named_parameters():
                weight.grad = gradients[name]
            norm = exact_norm(model.parameters())
            optimizer.step()
            assert recorded(watch) == pytest.approx(norm, rel=1e-6)
    assert sum("within a transform" in line for line in caplog.messages) == 1


def test_gradients_that_never_exist_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """A loop whose loss does not depend on the optimizer's parameters gets a line, since nothing is recorded."""
    model, other = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    with GradientWatch(nn.ModuleList([model, other]), optimizer, report=False) as watch:
        for batch in batches(40):
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert watch.last is None
    assert sum("had a gradient" in line for line in caplog.messages) == 1
    assert len(caplog.messages) == 1


def test_a_scaler_that_raises_is_one_error(caplog: pytest.LogCaptureFixture) -> None:
    """The monitor is off from the first failure on, and does not log that it failed a second time."""

    class Scaler:
        def is_enabled(self) -> bool:
            return True

        def get_scale(self) -> Any:
            raise ValueError("no scale")

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False, scaler=Scaler()) as watch:
        for batch in batches(3):
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert watch.failed
    assert [one.levelno for one in caplog.records] == [logging.ERROR]


class Both(torch.autograd.Function):
    """Returns two results of one node, which gets None for the one that a backward pass does not use.

    A model that ``torch.compile`` compiles returns its loss and its logits like this.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss twice."""
        ctx.set_materialize_grads(False)
        return loss.clone(), loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        """Return the gradient of the one that was used."""
        return next(one for one in gradients if one is not None)


def test_a_result_that_the_backward_pass_does_not_use_does_not_switch_the_monitor_off() -> None:
    """Its hook is called with None in place of a gradient, and only the loss that was used is recorded."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss, other = Both.apply(loss_of(model, batch))  # type: ignore[no-untyped-call]
            watch.loss(other)
            watch.loss(loss)
            loss.backward()
            optimizer.step()
            assert not watch.failed
            assert watch.last is not None
            assert watch.last.loss == pytest.approx(loss.item())
