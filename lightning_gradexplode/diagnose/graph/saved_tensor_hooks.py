"""Whether saved tensors of a run have hooks, which would be called if they were read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

ARE_SHOWN = hasattr(torch._C._autograd.SavedTensor, "unpack_hook")
"""Whether each saved tensor shows its hooks; not so in torch 2.12 and before."""


class SavedTensorHooks:
    """Notices that hooks for saved tensors are set, in versions of torch in which the tensors do not show them.

    With activation checkpointing, to read a saved tensor computes a part of the network again; with
    ``torch.autograd.graph.save_on_cpu`` it is copied to the accelerator. Both use the context manager
    ``torch.autograd.graph.saved_tensors_hooks``, whose method ``__enter__`` is replaced until `close` is called. Newer
    versions are not changed.

    Args:
        is_on: Whether to look for hooks at all.

    Attributes:
        may_be_set: Whether a saved tensor may have hooks that it does not show.
    """

    def __init__(self, is_on: bool = True) -> None:
        self.may_be_set = not ARE_SHOWN and _are_active()
        self._enter: _Enter | None = None
        if is_on and not ARE_SHOWN and not self.may_be_set:
            self._enter = _Enter(self)
            saved_tensors_hooks.__enter__ = self._enter  # type: ignore[method-assign]

    def close(self) -> None:
        """Restore the context manager, once all that have replaced its method since are closed as well."""
        if self._enter is None:
            return
        self._enter.is_closed = True
        method: Any = saved_tensors_hooks.__enter__
        while isinstance(method, _Enter) and method.is_closed:
            method = method.original
        saved_tensors_hooks.__enter__ = method  # type: ignore[method-assign]


class _Enter:
    """The method that replaces ``saved_tensors_hooks.__enter__``."""

    def __init__(self, noticed_by: SavedTensorHooks) -> None:
        self._noticed_by = noticed_by
        self.original: Callable[[Any], Any] = saved_tensors_hooks.__enter__
        self.is_closed = False

    def __get__(self, hooks: Any, owner: type) -> Any:
        return self if hooks is None else partial(self, hooks)

    def __call__(self, hooks: Any) -> Any:
        """Enter the context."""
        self._noticed_by.may_be_set = True
        return self.original(hooks)


def _are_active() -> bool:
    """Return whether hooks are set for all tensors that are saved from now on."""
    with suppress(Exception):  # a private function
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return False
