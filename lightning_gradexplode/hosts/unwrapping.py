"""The network and the optimizers within the wrappers that a plain loop passes, and which wrappers are not supported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.engine.inner_optimizers import inner_optimizers
from lightning_gradexplode.engine.step_hooks import calls_hooks
from lightning_gradexplode.measure.parameters import held_by

_WRAPPING = ("lightning.fabric.", "lightning_fabric.", "accelerate.")
"""Packages whose optimizers wrap another one, which is their attribute ``optimizer``."""

_DEEPSPEED = "DeepSpeed partitions gradients before hooks are called; it logs its own global norm"

_UNSUPPORTED = {
    "FullyShardedDataParallel": "FullyShardedDataParallel keeps gradients in flat shards; use fully_shard (FSDP2)",
    "DeepSpeedEngine": _DEEPSPEED,
    "DeepSpeedOptimizerWrapper": _DEEPSPEED,
}
"""Wrappers of modules and optimizers whose gradients cannot be measured, and why."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within the wrappers of ``torch.compile``, ``DistributedDataParallel`` and Fabric."""
    inner = getattr(model, "_orig_mod", None)
    is_wrapper = isinstance(model, nn.parallel.DistributedDataParallel) or type(model).__name__ == "_FabricModule"
    if inner is None and is_wrapper:
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def unsupported_wrapper(model: nn.Module, optimizers: Sequence[Optimizer]) -> str | None:
    """Return why the gradients cannot be measured with the wrappers of a loop; None if they can."""
    kinds = [*(type(one) for one in model.modules()), *(type(one) for one in optimizers)]
    names = {base.__name__ for kind in kinds for base in kind.__mro__}
    hookless = [type(one).__name__ for one in map(raw_optimizer, optimizers) if not _takes_hooks(one)]
    of_hooks = f"{hookless[0]} takes no hooks around its step; pass the optimizer that it wraps" if hookless else None
    return next((why for name, why in _UNSUPPORTED.items() if name in names), of_hooks)


def raw_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer within the wrappers of Fabric and Accelerate, and within others that take no hooks."""
    while any(base.__module__.startswith(_WRAPPING) for base in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    while not _takes_hooks(optimizer):
        wrapped = _wrapped(optimizer)
        if wrapped is None:
            break
        optimizer = wrapped
    raw: Optimizer = optimizer
    return raw


def _wrapped(optimizer: Any) -> Optimizer | None:
    """Return the optimizer that one wraps: its attribute ``optimizer``, or another with the same parameters."""
    named = getattr(optimizer, "optimizer", None)
    if isinstance(named, Optimizer):
        return named
    own = set(map(id, held_by(optimizer)))
    return next((one for one in inner_optimizers(optimizer) if set(map(id, held_by(one))) == own), None)


def _takes_hooks(optimizer: Optimizer) -> bool:
    """Return whether hooks can be registered, and are called, unlike where a subclass skips ``super().__init__``."""
    try:
        optimizer.register_step_pre_hook(lambda *_: None).remove()
        return calls_hooks(optimizer)
    except Exception:
        return False
