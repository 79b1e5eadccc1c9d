"""Replacements of the run's trainer, loggers and optimizers for a copy of the module."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class ReplayStopped(BaseException):
    """Raised inside a replayed step to end it; no ``except Exception`` of the user's own code catches it.

    Args:
        reason: Why, in one sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Silent:
    """An object on which every call and attribute succeeds and does nothing; for loggers and files."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Do nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do nothing."""
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *details: object) -> None:
        """Do nothing."""

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Do nothing."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


class Unavailable:
    """Replaces an object that cannot be copied and must not be used a second time; any use ends the replay.

    Args:
        reason: Why, in one sentence.
    """

    def __init__(self, reason: str) -> None:
        object.__setattr__(self, "_reason", reason)

    def _stop(self, *args: Any, **kwargs: Any) -> Any:
        raise ReplayStopped(object.__getattribute__(self, "_reason"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._stop()

    __call__ = __iter__ = __next__ = __getitem__ = __setitem__ = __len__ = __enter__ = __setattr__ = _stop

    def __exit__(self, *details: object) -> None:
        """Do nothing."""


_PLAIN = (int, float, complex, str, bytes, type(None), pathlib.Path, torch.device, torch.dtype)
_COMPUTED = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
_LOGGERS = ("logger", "loggers", "progress_bar_callback", "profiler")


class ReadOnly:
    """Read-only access to the plain attributes of an object of the run, such as its trainer.

    Calling one of its methods ends the replay. An attribute that is set is stored here, not in the object.

    Args:
        target: The object of the run.
        name: Its name in the reason for which a replay ends, for example ``"trainer"``.
        served: Attributes that replace its own.
        copied: Functions that copy its attributes of these names; the copies replace them.
    """

    def __init__(
        self,
        target: Any,
        name: str,
        served: Mapping[str, Any] | None = None,
        copied: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        vars(self).update(_target=target, _name=name, _served=dict(served or {}), _copied=dict(copied or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._served:
            return self._served[name]
        if name in _COMPUTED:  # reading them computes and synchronizes metrics
            return {}
        if name in _LOGGERS:
            return [] if name == "loggers" else Silent()
        value = getattr(self._target, name)
        return self._copied[name](value) if name in self._copied else self._serve(value, f"{self._name}.{name}")

    def __len__(self) -> int:
        return len(self._target)

    def __setattr__(self, name: str, value: Any) -> None:
        self._served[name] = value

    def __bool__(self) -> bool:
        return True

    def _serve(self, value: Any, name: str) -> Any:
        if isinstance(value, (*_PLAIN, type)):
            return value
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, (list, tuple)):
            return type(value)(self._serve(one, name) for one in value) if type(value) in (list, tuple) else value
        if isinstance(value, dict):
            return {key: self._serve(one, name) for key, one in value.items()}
        if callable(value):
            return Unavailable(f"the step calls {name}(), which belongs to the run")
        return ReadOnly(value, name)


class OptimizerStandIn:
    """Replaces an optimizer of the run: its steps change no weight.

    Args:
        groups: Parameter groups, with the parameters of the copy.
        on_step: Called in place of an update.
        toggled: Returns the context in which only its parameters require gradients.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        on_step: Callable[[], None],
        toggled: Callable[[OptimizerStandIn], AbstractContextManager[None]],
    ) -> None:
        self.param_groups = [dict(group) for group in groups]
        self.defaults: dict[str, Any] = {}
        self.state: dict[Any, Any] = {}
        self._on_step = on_step
        self._toggled = toggled

    @property
    def optimizer(self) -> OptimizerStandIn:
        """The optimizer that a wrapper of Lightning's holds: this one."""
        return self

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Compute the closure, and leave the weights as they are."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._on_step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the copy's parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[None]:
        """Return a context in which only the parameters of this optimizer require gradients."""
        return self._toggled(self)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
