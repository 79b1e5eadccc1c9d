"""Which parameters an optimizer holds, and under which names."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup
from lightning_gradexplode.distributed.shard_layout import ShardLayout, has_own_operations, replicas
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.norm_plan import NormPlan

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")

_REPLICATING = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Wrappers that hold the wrapped module under the name ``module``, as users' own modules may do as well."""

_gradient = operator.attrgetter("grad")


def plain_name(name: str, prefixes: Sequence[str] = ()) -> str:
    """Strip from a parameter's name what torch.compile, FSDP, activation checkpointing and DDP insert.

    Args:
        name: The name.
        prefixes: What `replica_prefixes` returns.
    """
    for prefix in reversed(prefixes):
        name = name.replace(f"{prefix}module.", prefix) if name.startswith(f"{prefix}module.") else name
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def replica_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the data-parallel wrappers in a module, each followed by a dot, the outer ones first."""
    return tuple(f"{name}." for name, one in module.named_modules() if name and isinstance(one, _REPLICATING))


@dataclass(frozen=True, slots=True, eq=False)
class ParameterSet:
    """The parameters of one optimizer, each once, under their names, with what does not change from step to step.

    Args:
        names: Unique names.
        tensors: The parameters, in the same order.
        shown: Whether include and exclude select each to be shown by itself.
        shards: How they are spread over processes.
        listed: The parameters of all groups as the optimizer lists them, without those on the meta device. With one of
            these, the set is never current: it is made again at each step, in case the parameter has got its numbers.
        on_host: Whether all are in the memory of the host.
        gradient_plan: How their gradients are measured together.
    """

    names: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]
    shown: tuple[bool, ...]
    shards: ShardLayout
    listed: tuple[nn.Parameter, ...]
    on_host: bool
    gradient_plan: NormPlan

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradients as they are now."""
        return list(map(_gradient, self.tensors))

    def is_current(self, optimizer: Optimizer) -> bool:
        """Return whether the optimizer's groups hold the parameters that they held when this set was made."""
        groups = optimizer.param_groups
        now = groups[0]["params"] if len(groups) == 1 else [one for group in groups for one in group["params"]]
        return len(now) == len(self.listed) and all(map(operator.is_, now, self.listed))


def parameters_of(
    optimizer: Optimizer,
    module: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    world: ProcessGroup = ALONE,
) -> ParameterSet:
    """List an optimizer's parameters under the names that the module has for them.

    Args:
        optimizer: Owner of the parameters: those in its ``param_groups``, tied ones once, without those on the meta
            device, which hold no numbers, and those that have operations of their own.
        module: Source of the names; a parameter that it does not hold is named ``group<i>.parameter<j>``.
        include: Name patterns (``fnmatch``) of parameters that are shown by themselves.
        exclude: Name patterns of parameters that are not.
        world: The processes of the run.
    """
    prefixes = replica_prefixes(module)
    names = {id(parameter): plain_name(name, prefixes) for name, parameter in module.named_parameters()}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    taken: set[str] = set()
    for i, group in enumerate(optimizer.param_groups):
        for j, parameter in enumerate(group["params"]):
            if id(parameter) in found or parameter.is_meta or has_own_operations(parameter):
                continue
            name = names.get(id(parameter), f"group{i}.parameter{j}")
            if name in taken:
                name = f"{name}.group{i}.parameter{j}"
            taken.add(name)
            found[id(parameter)] = (name, parameter)
    listed = tuple(name for name, _ in found.values())
    tensors = tuple(parameter for _, parameter in found.values())
    return ParameterSet(
        names=listed,
        tensors=tensors,
        shown=tuple(matches(name, include) and not matches(name, exclude) for name in listed),
        shards=ShardLayout(world, replicas(tensors, world.size)),
        listed=tuple(one for one in held_by(optimizer) if not one.is_meta),
        on_host=all(map(reading.is_on_host, tensors)),
        gradient_plan=NormPlan(tensors),
    )


def held_by(optimizer: Any) -> list[Any]:
    """Return the parameters of all groups of an optimizer, in their order."""
    return [one for group in optimizer.param_groups for one in group["params"]]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits any of the ``fnmatch`` patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
