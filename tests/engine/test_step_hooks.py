"""Which optimizers call hooks around their step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_gradexplode.engine.step_hooks import calls_hooks


def test_an_optimizer_calls_its_hooks_also_once_a_scheduler_has_wrapped_its_step() -> None:
    """In older versions of torch the function that a scheduler puts in place of the method has no ``hooked``."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert calls_hooks(optimizer)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert calls_hooks(optimizer)
    method = type(optimizer).step

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(optimizer, *args, **kwargs)

    wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    vars(optimizer)["step"] = wrapper
    assert calls_hooks(optimizer)


def test_a_step_of_another_kind_calls_no_hooks() -> None:
    """A function in place of the method, or a subclass that skips the constructor of ``torch.optim.Optimizer``."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    vars(optimizer)["step"] = lambda closure=None: None
    assert not calls_hooks(optimizer)

    class Bare(torch.optim.Optimizer):
        def __init__(self) -> None:
            self.param_groups = []

    assert not calls_hooks(Bare())
