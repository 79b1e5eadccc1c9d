"""Which parameters an optimizer holds, and what people call them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup, ShardLayout, copies_of
from lightning_gradexplode.measure.reading import is_on_host
from lightning_gradexplode.measure.small_tensors import CACHED, UsualTensors

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")


_REPLICATING = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Wrappers that hold what they wrap under the name ``module``, as users' own modules may do as well."""


def plain_name(name: str, replicas: Sequence[str] = ()) -> str:
    """Strip from a parameter's name what torch.compile, FSDP, activation checkpointing and DDP put into it.

    Args:
        name: The name.
        replicas: Names of modules within which DDP wraps, each with a dot behind it, the outer ones first.
    """
    for replica in reversed(replicas):
        name = name.replace(f"{replica}module.", replica) if name.startswith(f"{replica}module.") else name
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@dataclass(frozen=True, slots=True, eq=False)
class ParameterSet:
    """The parameters of one optimizer, each once, under their names.

    Args:
        names: Unique names.
        tensors: The parameters, in the same order.
        shown: Whether include and exclude let each be shown by itself.
        shards: How they are spread over processes.
        usual: Those whose gradients are measured together.
        usual_weights: The same of the weights, in smaller batches.
    """

    names: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]
    shown: tuple[bool, ...]
    shards: ShardLayout
    usual: UsualTensors
    usual_weights: UsualTensors

    @property
    def on_host(self) -> bool:
        """Whether all lie in the processor's memory."""
        return all(map(is_on_host, self.tensors))

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradients as they are now."""
        return [parameter.grad for parameter in self.tensors]


def parameters_of(
    optimizer: Optimizer,
    module: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    world: ProcessGroup = ALONE,
) -> ParameterSet:
    """List an optimizer's parameters under the names that the module gives them.

    Args:
        optimizer: What owns the parameters: those in its ``param_groups``, tied ones once.
        module: Where the names come from; a parameter that it does not hold is called ``group<i>.parameter<j>``.
        include: Name patterns (``fnmatch``) of parameters that are shown by themselves.
        exclude: Name patterns of parameters that are not.
        world: The processes of the run.
    """
    replicas = tuple(f"{name}." for name, one in module.named_modules() if name and isinstance(one, _REPLICATING))
    names = {id(parameter): plain_name(name, replicas) for name, parameter in module.named_parameters()}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    taken: set[str] = set()
    for i, group in enumerate(optimizer.param_groups):
        for j, parameter in enumerate(group["params"]):
            if id(parameter) in found:
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
        shards=ShardLayout(world, copies_of(tensors, world.size)),
        usual=UsualTensors(tensors),
        usual_weights=UsualTensors(tensors, CACHED),
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name fits any of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
