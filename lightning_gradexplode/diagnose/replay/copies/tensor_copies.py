"""Clones of the tensors and arrays that a module holds, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_BYTES = 1 << 20
"""Tensors up to this size are cloned whatever the budget is."""


class TensorCopies:
    """Clones tensors while they fit a budget, and shares them above it.

    Tensors that share a storage still share one after they were cloned.

    Args:
        budget: Bytes that may be cloned.
        notes: Where it is noted what was detached or shared, in one sentence each.

    Attributes:
        owned: The tensors that were cloned.
    """

    def __init__(self, budget: int, notes: list[str]) -> None:
        self.owned: list[Tensor] = []
        self._budget = budget
        self._notes = notes
        self._storages: dict[int, torch.UntypedStorage] = {}

    def share_storage(self, tensor: Tensor) -> None:
        """Make tensors that share this one's storage views of it, not clones."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def tensor(self, value: Tensor, name: str) -> Tensor:
        """Return a detached clone of a tensor, a view where it is shared."""
        if value.requires_grad and not value.is_leaf:
            self._notes.append(f"{name or 'A tensor'} was part of an autograd graph and enters detached.")
        return self._clone(value.detach(), name).requires_grad_(value.requires_grad and value.is_leaf)

    def array(self, value: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        """Return a copy of an array, a read-only view where it is shared."""
        if value.nbytes <= max(SMALL_BYTES, self._budget):
            self._budget -= value.nbytes
            return value.copy()
        self._note_shared(name or "An array", value.nbytes)
        view = value.view()
        view.flags.writeable = False
        return view

    def _clone(self, value: Tensor, name: str) -> Tensor:
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_quantized:
            return self._within_budget(value, value.numel() * value.element_size(), name, value.clone)
        storage = value.untyped_storage()

        def on(other: torch.UntypedStorage) -> Tensor:
            empty = torch.empty(0, dtype=value.dtype, device=value.device)
            empty.set_(other, value.storage_offset(), value.shape, value.stride())
            return empty

        if storage._cdata in self._storages:
            return on(self._storages[storage._cdata])
        clone = self._within_budget(value, storage.nbytes(), name, lambda: on(storage.clone()))  # type: ignore[no-untyped-call]
        self._storages[storage._cdata] = clone.untyped_storage()
        return clone

    def _within_budget(self, value: Tensor, size: int, name: str, clone: Callable[[], Tensor]) -> Tensor:
        if size > max(SMALL_BYTES, self._budget):
            self._note_shared(name or "A tensor", size)
            return value.detach()
        self._budget -= size
        self.owned.append(clone())
        return self.owned[-1]

    def _note_shared(self, name: str, size: int) -> None:
        self._notes.append(f"{name} ({size / 2**20:.0f} MiB) is shared with the run.")
