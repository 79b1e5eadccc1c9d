"""The classes of Lightning, which exist in two namespaces: ``pytorch_lightning`` and ``lightning.pytorch``.

The classes of the two are unrelated. `Callback` and `Logger` here inherit from those of each installed namespace, so
that the trainers of both accept them.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.loggers import Logger
else:
    _callbacks, _loggers = [], []
    for _namespace in ("pytorch_lightning", "lightning.pytorch"):
        with suppress(ModuleNotFoundError):
            _callbacks.append(importlib.import_module(_namespace).Callback)
            _loggers.append(importlib.import_module(f"{_namespace}.loggers").Logger)
    if not _callbacks:
        raise ModuleNotFoundError("lightning_gradexplode needs pytorch-lightning or lightning >= 2.4")
    Callback = type("Callback", tuple(_callbacks), {"__doc__": "The callback class of each installed Lightning."})
    Logger = type("Logger", tuple(_loggers), {"__doc__": "The logger class of each installed Lightning."})
    LightningModule = Trainer = Any

__all__ = ["Callback", "LightningModule", "Logger", "Trainer", "clip_algorithms", "is_overridden"]

_PACKAGES = ("pytorch_lightning.", "lightning.")


def is_overridden(owner: Any, *names: str) -> bool:
    """Return whether any of these methods of a module or callback is not Lightning's own."""
    return any(not getattr(type(owner), name).__module__.startswith(_PACKAGES) for name in names)


def clip_algorithms(trainer: Trainer) -> Any:
    """Return the enumeration of clip algorithms of the namespace that a trainer, or its base class, belongs to."""
    module = next(kind.__module__ for kind in type(trainer).__mro__ if kind.__module__.endswith(".trainer.trainer"))
    namespace = module.removesuffix(".trainer.trainer")
    return importlib.import_module(f"{namespace}.utilities.enums").GradClipAlgorithmType
