"""Names of an optimizer's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_gradexplode.measure.parameters import parameters_of, plain_name


def network() -> nn.Module:
    """Build two layers."""
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_parameters_are_called_what_the_module_calls_them() -> None:
    """Names and tensors are those of the module, in the optimizer's order."""
    module = network()
    found = parameters_of(SGD(module.parameters(), lr=0.1), module)
    assert found.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert all(one is other for one, other in zip(found.tensors, module.parameters(), strict=True))


def test_only_the_optimizers_own_parameters_are_listed() -> None:
    """With several optimizers each has its own parameters, also over several groups."""
    module = network()
    first, second = module.children()
    groups: list[dict[str, Any]] = [
        {"params": [second.get_parameter("bias")]},
        {"params": [first.get_parameter("weight")]},
    ]
    assert parameters_of(SGD(groups, lr=0.1), module).names == ("1.bias", "0.weight")


def test_tied_weights_count_once() -> None:
    """A parameter that two layers share is there once, also where the optimizer lists it twice."""
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied = module.get_parameter("0.weight")
    module.get_submodule("1").weight = tied
    optimizer = SGD(module.parameters(), lr=0.1)
    assert parameters_of(optimizer, module).names == ("0.weight",)
    optimizer.param_groups[0]["params"].append(tied)
    assert parameters_of(optimizer, module).names == ("0.weight",)


def test_a_parameter_on_the_meta_device_counts_once_it_has_numbers() -> None:
    """It has none to measure before; the list is made again until then."""
    module = network()
    module.get_submodule("0").to_empty(device="meta")
    optimizer = SGD(module.parameters(), lr=0.1)
    found = parameters_of(optimizer, module)
    assert (found.names, found.on_host) == (("1.weight", "1.bias"), True)
    assert not found.is_current(optimizer)
    module.get_submodule("0").to_empty(device="cpu")
    optimizer.param_groups[0]["params"] = list(module.parameters())
    found = parameters_of(optimizer, module)
    assert len(found.names) == 4
    assert found.is_current(optimizer)


def test_a_parameter_that_the_module_does_not_hold_is_named_by_its_place() -> None:
    """A parameter from elsewhere is named by its group and place, and no name is given twice."""
    stranger, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    module = nn.Module()
    module.register_module("group0", nn.Module())
    module.get_submodule("group0").register_parameter("parameter1", nn.Parameter(torch.zeros(1)))
    optimizer = SGD([stranger, other, *module.parameters()], lr=0.1)
    names = parameters_of(optimizer, module).names
    assert names[0] == "group0.parameter0"
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("layer.weight", "layer.weight"),
        ("_orig_mod.layer.weight", "layer.weight"),
        ("model._orig_mod.layer.weight", "model.layer.weight"),
        ("_fsdp_wrapped_module.layer._checkpoint_wrapped_module.weight", "layer.weight"),
    ],
)
def test_names_are_free_of_wrappers(name: str, plain: str) -> None:
    """What torch.compile, FSDP and activation checkpointing put into names is not shown."""
    assert plain_name(name) == plain


def test_names_are_free_of_replicas() -> None:
    """The level that DDP and DataParallel put in is not shown; a module that the user calls so is."""
    inner = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
    module = nn.ModuleDict({"net": nn.DataParallel(nn.ModuleDict({"inner": inner}))})
    module.add_module("module", nn.Linear(1, 1, bias=False))
    found = parameters_of(SGD(module.parameters(), lr=0.1), module)
    assert found.names == ("net.inner.0.weight", "net.inner.0.bias", "module.weight")


@pytest.mark.parametrize(
    ("include", "exclude", "shown"),
    [
        (("*",), (), (True, True, True, True)),
        (("*.weight",), (), (True, False, True, False)),
        (("*",), ("0.*",), (False, False, True, True)),
        (("*.weight", "1.*"), ("1.weight",), (True, False, False, True)),
        ((), (), (False, False, False, False)),
    ],
)
def test_patterns_choose_what_is_shown(
    include: tuple[str, ...], exclude: tuple[str, ...], shown: tuple[bool, ...]
) -> None:
    """Include and exclude decide what is shown by itself; all parameters stay in the set."""
    module = network()
    found = parameters_of(SGD(module.parameters(), lr=0.1), module, include, exclude)
    assert found.shown == shown
    assert len(found.names) == 4


def test_a_set_is_current_until_the_groups_hold_other_parameters() -> None:
    """A parameter that is replaced, added or moved to another place is noticed; another learning rate is not."""
    changes: list[Callable[[SGD], Any]] = [
        lambda optimizer: optimizer.param_groups[0]["params"].__setitem__(1, nn.Parameter(torch.zeros(3))),
        lambda optimizer: optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(1))),
        lambda optimizer: optimizer.param_groups[0]["params"].reverse(),
        lambda optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]}),
    ]
    for change in changes:
        module = network()
        optimizer = SGD(module.parameters(), lr=0.1)
        found = parameters_of(optimizer, module)
        optimizer.param_groups[0]["lr"] = 0.2
        assert found.is_current(optimizer)
        change(optimizer)
        assert not found.is_current(optimizer)
        assert parameters_of(optimizer, module).is_current(optimizer)


def test_gradients_are_read_on_request() -> None:
    """The set gives the gradients of the moment, None where there is none."""
    module = network()
    found = parameters_of(SGD(module.parameters(), lr=0.1), module)
    assert found.gradients == [None] * 4
    module(torch.ones(1, 2)).sum().backward()
    assert all(one is two.grad for one, two in zip(found.gradients, module.parameters(), strict=True))
