"""A batch as a tree of containers and tensors: kept without a copy, mapped, and reduced to some rows."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_gradexplode.measure.batch_fields import attributes

MAX_DEPTH = 8
"""Depth of nesting from which containers are shared and not copied."""

MAX_REBUILT_ELEMENTS = 256
"""Of a list with more elements, such as words, only the list itself is rebuilt when a batch is kept."""


class KeptBatch:
    """A batch at the start of its step, kept without a copy of its tensors.

    Containers are rebuilt, since a training step may remove entries. Tensors are shared; `is_unchanged` is False if
    one was written to since.

    Args:
        batch: The batch of the training step.
    """

    def __init__(self, batch: Any) -> None:
        self._versions: list[tuple[Tensor, int]] = []
        if type(batch) in (list, tuple) and set(map(type, batch)) == {Tensor}:  # as nearly always
            self.batch: Any = type(batch)(batch)
            for one in batch:  # without a function per step, which a comprehension is before Python 3.12
                if not one.is_inference():
                    self._versions.append((one, one._version))
            return
        try:
            self.batch = map_batch(batch, self._note, longest=MAX_REBUILT_ELEMENTS)
        except Exception:  # containers of a user's own may refuse to be rebuilt in any way
            self.batch = batch

    @property
    def is_unchanged(self) -> bool:
        """Whether none of its tensors was changed in place since."""
        return all(one._version == version for one, version in self._versions)

    @property
    def size(self) -> int:
        """Number of bytes of its tensors, which stay allocated as long as it is kept."""
        return sum(one.numel() * one.element_size() for one, _ in self._versions)

    def _note(self, tensor: Tensor) -> Tensor:
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        return tensor


def map_batch(
    batch: Any,
    tensor: Callable[[Tensor], Any],
    whole: Callable[[Any], Any] | None = None,
    *,
    longest: int = sys.maxsize,
    depth: int = MAX_DEPTH,
) -> Any:
    """Build a batch with replaced tensors.

    Args:
        batch: Tensors in mappings, sequences, dataclasses and objects with tensors or a method ``to``.
        tensor: Returns what replaces a tensor.
        whole: Returns what replaces a list or tuple, before its elements are mapped, or a packed sequence.
        longest: The elements of longer lists are left as they are.
        depth: Containers deeper than this are left as they are.
    """

    def inner(value: Any) -> Any:
        return map_batch(value, tensor, whole, longest=longest, depth=depth - 1)

    if isinstance(batch, Tensor):
        return tensor(batch)
    if not depth or isinstance(batch, (str, bytes, int, float, complex, type(None))):
        return batch
    if isinstance(batch, PackedSequence) and whole is not None:
        return whole(batch)
    if isinstance(batch, (list, tuple)):
        chosen = batch if whole is None else whole(batch)
        elements = chosen if len(chosen) > longest else [inner(one) for one in chosen]
        return type(batch)(*elements) if hasattr(batch, "_fields") else type(batch)(elements)
    if isinstance(batch, dict):
        new = copy.copy(batch)
        new.update({key: inner(value) for key, value in batch.items()})
        return new
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return _with_attributes(batch, [one.name for one in dataclasses.fields(batch)], inner)
    return _with_attributes(batch, list(attributes(batch)), inner)


def take_rows(batch: Any, keep: Sequence[int], size: int) -> Any:
    """Build a batch with some of the rows, in each tensor, list and tuple that has as many as the batch.

    Args:
        batch: The batch.
        keep: Indices of the rows that stay.
        size: Number of rows of the batch.
    """

    def rows(one: Tensor) -> Tensor:
        places = [place for place, length in enumerate(one.shape) if length == size]
        if not places or (places[0] != 0 and len(places) > 1):
            return one
        return one.detach().index_select(places[0], torch.tensor(keep, device=one.device, dtype=torch.long))

    def chosen(one: Any) -> Any:
        if isinstance(one, PackedSequence):
            padded, lengths = pad_packed_sequence(one, batch_first=True)
            index = torch.tensor(keep, device="cpu")
            return pack_padded_sequence(padded[index], lengths[index], batch_first=True, enforce_sorted=False)
        # In a batch of two rows, a pair (input, target) is not a list of rows.
        are_fields = any(isinstance(each, Tensor) and size in each.shape[:1] for each in one)
        return [one[row] for row in keep] if len(one) == size and not are_fields else one

    return map_batch(batch, rows, chosen)


def _with_attributes(batch: Any, names: Sequence[str], inner: Callable[[Any], Any]) -> Any:
    if not names:
        return batch
    try:
        new = copy.copy(batch)
        for name in names:
            object.__setattr__(new, name, inner(getattr(batch, name)))
    except Exception:  # a user's class may refuse to be copied in any way
        return batch
    return new
