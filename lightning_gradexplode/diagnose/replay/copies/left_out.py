"""What a copy of a module shares with the run or leaves out, by the package it comes from."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

LOGGERS = (
    "aim",
    "comet_ml",
    "lightning.fabric.loggers",
    "lightning.pytorch.loggers",
    "lightning_fabric.loggers",
    "mlflow",
    "neptune",
    "pytorch_lightning.loggers",
    "tensorboard",
    "tensorboardX",
    "torch.utils.tensorboard",
    "wandb",
)
SHARED_PACKAGES = (
    "datasets",
    "h5py",
    "pandas",
    "polars",
    "pyarrow",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "zarr",
)
_HOOKS_LEFT_OUT = ("lightning_gradexplode", "wandb")
BLOCKING = ("_queue", "asyncio", "concurrent", "multiprocessing", "multiprocess", "queue", "subprocess", "threading")
"""Packages of objects that other threads or processes use, so that a copy of one would wait forever."""


def leaves_out(hook: Any) -> bool:
    """Return whether a hook is one of this package or of a logger, which would measure the copy."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return is_from(getattr(function, "__module__", None) or type(hook).__module__, _HOOKS_LEFT_OUT)


def without_hooks(state: dict[str, Any]) -> dict[str, Any]:
    """Return a module's state without the hooks that are left out."""
    hooked = {key for key in state if key.endswith("_hooks") and isinstance(state[key], dict)}
    kept = {key: type(state[key])((at, one) for at, one in state[key].items() if not leaves_out(one)) for key in hooked}
    return state | kept


def is_from(module: str, packages: Iterable[str]) -> bool:
    """Return whether a module, by its name, belongs to one of some packages."""
    return any(module == one or module.startswith(f"{one}.") for one in packages)
