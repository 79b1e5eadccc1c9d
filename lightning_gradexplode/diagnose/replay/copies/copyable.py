"""Which modules can be copied for a replay, and which copies are usable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped

_SHARDED = {"DTensor", "FlatParameter", "ShardedTensor"}
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "_FabricModule"}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module without wrappers for distributed training and compilation."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in _WRAPPERS:
            inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def is_lightning(module: nn.Module) -> bool:
    """Return whether a module is a LightningModule of an installed Lightning."""
    return any(one.__name__ == "LightningModule" and "lightning" in one.__module__ for one in type(module).__mro__)


def require_values(module: nn.Module) -> None:
    """Check that this process holds the values of all parameters.

    Raises:
        ReplayStopped: The parameters are sharded over several processes, or not initialized yet.
    """
    for name, one in module.named_parameters():
        kinds = {kind.__name__ for kind in (*type(one).__mro__, *type(one.data).__mro__)}
        if kinds & _SHARDED or hasattr(one, "ds_id"):
            raise ReplayStopped("the parameters are sharded over several processes")
        if "UninitializedTensorMixin" in kinds or one.is_meta:
            raise ReplayStopped(f"the parameter {name} has no values")


def require_separate(original: nn.Module, copy: Any, notes: Sequence[str]) -> None:
    """Check that a copy is a module, and has no module or parameter of the run itself.

    Args:
        original: The module of the run.
        copy: The copy.
        notes: What the copy differs in; the last one is the reason where it is no module.

    Raises:
        ReplayStopped: It is none, or it has one.
    """
    if not isinstance(copy, nn.Module):
        raise ReplayStopped(notes[-1].rstrip(".") if notes else "the module cannot be copied")
    own = {id(one) for one in (*original.modules(), *original.parameters())}
    for one in (*copy.modules(), *copy.parameters()):
        if id(one) in own:
            raise ReplayStopped(f"a part of the module cannot be copied ({type(one).__name__})")
