"""Hooks of saved tensors, in versions of torch in which the tensors do not show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode.diagnose.graph import SavedTensorHooks, facts_of_loss, saved_tensor_hooks


def checkpointed(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the result of a network that is computed again in the backward pass."""
    return torch.as_tensor(checkpoint(net, inputs, use_reentrant=False))


def saved(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the result of a network whose saved tensors are copied."""
    with save_on_cpu():
        return torch.as_tensor(net(inputs))


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this version of torch as one in which tensors do not show their hooks."""
    monkeypatch.setattr(saved_tensor_hooks, "ARE_SHOWN", False)


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("compute", [checkpointed, saved])
def test_hooks_are_noticed_and_work_as_before(compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """With activation checkpointing and with tensors that are saved on the host; not without them."""
    net, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(6, 4)
    net(inputs).sum().backward()
    expected = [one.grad for one in net.parameters()]
    net.zero_grad()
    hooks = SavedTensorHooks()
    try:
        net(inputs)
        assert not hooks.may_be_set
        compute(net, inputs).sum().backward()  # type: ignore[no-untyped-call]
        assert hooks.may_be_set
    finally:
        hooks.close()
    assert all(torch.equal(one.grad, other) for one, other in zip(net.parameters(), expected, strict=True))


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("first", [0, 1])
def test_the_context_manager_is_restored_in_any_order(first: int) -> None:
    """Of two runs at once, either may end first; the other one goes on."""
    original: Any = saved_tensors_hooks.__enter__
    runs = [SavedTensorHooks(), SavedTensorHooks()]
    runs[first].close()
    with save_on_cpu():
        assert runs[1 - first].may_be_set
    runs[1 - first].close()
    assert saved_tensors_hooks.__enter__ is original


def test_nothing_is_replaced_where_tensors_show_their_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in newer versions."""
    monkeypatch.setattr(saved_tensor_hooks, "ARE_SHOWN", True)
    original: Any = saved_tensors_hooks.__enter__
    hooks = SavedTensorHooks()
    assert saved_tensors_hooks.__enter__ is original
    with save_on_cpu():
        assert not hooks.may_be_set
    hooks.close()


def test_no_value_is_read_where_tensors_may_have_hooks() -> None:
    """The names of the operations are known all the same."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    loss = net(torch.randn(6, 4)).square().mean()
    known, unknown = (facts_of_loss(loss, net, may_have_hooks) for may_have_hooks in (False, True))
    assert known.operation_names == unknown.operation_names
    assert known.fields
    assert not unknown.fields
