"""A batch as a tree of containers and tensors: kept without a copy, mapped, and with rows left out."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class KeptBatch:
    """A batch as it was when its step began, kept without a copy of its tensors.

    Containers are rebuilt, since a training step may remove entries. Tensors are shared; `is_unchanged` says whether
    one was written to since.

    Args:
        batch: What the training step is given.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = map_batch(batch, lambda one: one)
        self._versions = [(one, one._version) for _, one in tensors(self.batch) if not one.is_inference()]

    @property
    def is_unchanged(self) -> bool:
        """Whether none of its tensors was changed in place since."""
        return all(one._version == version for one, version in self._versions)


def map_batch(batch: Any, tensor: Callable[[Tensor], Any], sequence: Callable[[Any], Any] | None = None) -> Any:
    """Build a batch anew, with each of its tensors replaced.

    Args:
        batch: Tensors in mappings, sequences, dataclasses and plain objects.
        tensor: Returns what replaces a tensor.
        sequence: Returns what replaces a list or tuple, before its elements are mapped.
    """
    if isinstance(batch, Tensor):
        return tensor(batch)
    if isinstance(batch, (str, bytes, int, float, complex, type(None))):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_batch(one, tensor, sequence) for one in batch))
    if isinstance(batch, (list, tuple)):
        chosen = batch if sequence is None else sequence(batch)
        return type(batch)(map_batch(one, tensor, sequence) for one in chosen)
    if isinstance(batch, dict):
        new = copy.copy(batch)
        new.update({key: map_batch(value, tensor, sequence) for key, value in batch.items()})
        return new
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return _with_attributes(
            batch, {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}, tensor, sequence
        )
    if hasattr(batch, "__dict__") and not callable(batch):
        # `transformers.BatchEncoding` and the like: containers with their tensors in a plain attribute.
        return _with_attributes(batch, vars(batch), tensor, sequence)
    return batch


def tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of a batch with their places: ``"[0]"``, ``"image"``, ``"labels.boxes"``."""
    if isinstance(batch, Tensor):
        yield name or "batch", batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(batch, (list, tuple)):
        keys = getattr(batch, "_fields", None)
        for place, value in enumerate(batch):
            inner = f"{name}.{keys[place]}" if name and keys else keys[place] if keys else f"{name}[{place}]"
            yield from tensors(value, inner)
    elif hasattr(batch, "__dict__") and not callable(batch):
        for key, value in vars(batch).items():
            yield from tensors(value, f"{name}.{key}" if name else key)


def batch_size(batch: Any) -> int | None:
    """Return the number of rows: the commonest first dimension of the batch's tensors, None without any."""
    sizes = Counter(one.shape[0] for _, one in tensors(batch) if one.dim())
    return sizes.most_common(1)[0][0] if sizes else None


def take_rows(batch: Any, keep: Sequence[int], size: int) -> Any:
    """Build a batch with some of the rows, in each tensor, list and tuple that has as many as the batch.

    Args:
        batch: The batch.
        keep: Indices of the rows that stay.
        size: Number of rows of the batch.
    """

    def rows(one: Tensor) -> Tensor:
        if not one.dim() or one.shape[0] != size:
            return one
        return one.detach().index_select(0, torch.tensor(keep, device=one.device, dtype=torch.long))

    def chosen(one: Any) -> Any:
        # A pair (input, target) in a batch of two rows is no list of rows.
        is_rows = len(one) == size and not any(isinstance(each, Tensor) and each.dim() for each in one)
        return [one[row] for row in keep] if is_rows else one

    return map_batch(batch, rows, chosen)


def _with_attributes(batch: Any, values: Mapping[str, Any], tensor: Any, sequence: Any) -> Any:
    try:
        new = copy.copy(batch)
        for name, value in values.items():
            object.__setattr__(new, name, map_batch(value, tensor, sequence))
    except (TypeError, AttributeError):
        return batch
    return new
