"""Losses whose value cannot be recorded, in loops of plain PyTorch: the gradients are measured all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.func import functional_call, grad_and_value
from torch.utils._pytree import tree_map

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded
from tests.measure.sharding import Replicate, distribute_tensor, needs_sharding


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


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Build a mesh of this one process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    torch.distributed.destroy_process_group()


@needs_sharding
def test_a_loss_that_each_process_holds_is_recorded(mesh: DeviceMesh, caplog: pytest.LogCaptureFixture) -> None:
    """It is a DTensor, as that of a network whose weights are DTensors; nothing is logged."""
    model = nn.Linear(4, 1)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Replicate()]))
    model.bias = nn.Parameter(distribute_tensor(model.bias.detach(), mesh, [Replicate()]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = model(distribute_tensor(batch, mesh, [Replicate()])).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
            assert watch.last is not None
            assert watch.last.loss == loss.to_local().item()
    assert not caplog.messages


class _Opaque(Tensor):
    """A tensor that keeps its elements elsewhere, as quantized weights do."""

    elements: Tensor

    @staticmethod
    def __new__(cls, elements: Tensor) -> _Opaque:
        made: _Opaque = Tensor._make_wrapper_subclass(cls, elements.shape, dtype=elements.dtype)
        made.elements = elements
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def plain(one: Any) -> Any:
            return one.elements if isinstance(one, cls) else one

        result = operation(*tree_map(plain, args), **tree_map(plain, kwargs or {}))
        return cls(result) if operation is torch.ops.aten.detach.default else result


def test_a_parameter_that_keeps_its_elements_elsewhere_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The others are measured, which one line states."""
    model = nn.Linear(4, 1)
    model.weight = nn.Parameter(_Opaque(model.weight.detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            assert model.bias.grad is not None
            norm = float(model.bias.grad.double().norm())
            optimizer.step()
            assert recorded(watch) == pytest.approx(norm, rel=1e-6)
    assert [message for message in caplog.messages if "_Opaque" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_a_loss_on_the_meta_device_switches_nothing_off(caplog: pytest.LogCaptureFixture) -> None:
    """One line states that it is not recorded."""
    model = nn.Linear(4, 1, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch.to("meta"))
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert not watch.failed
    assert [message for message in caplog.messages if "meta device" in message] == caplog.messages
    assert len(caplog.messages) == 1
