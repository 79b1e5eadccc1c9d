"""Norms of many tensors on a processor: few numbers of each, side by side in memory, are added up by a few calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.reading import is_on_host
from lightning_gradexplode.records import FloatArray

ROW = 512
"""Up to so many elements are added up in float32 at a time."""
SHORTEST_ROW = 32
"""With rows shorter than this one a tensor would leave too many numbers."""
SHORT = 1024
"""Up to so many elements a tensor that has no rows is put side by side as it is."""
SMALL = 8192
"""Up to so many elements copying a tensor costs less than a call of its own."""
COPIED = 1 << 18
"""Up to so many elements are copied at a time: a megabyte."""
CACHED = 1 << 20
"""Of so many elements a processor's cache holds two copies."""
TOGETHER = 256
"""Up to so many tensors are put side by side at a time, where nothing is known of them beforehand."""


class UsualTensors:
    """Those of a list whose kind, shape and place are the usual ones, and do not change from step to step.

    What would have to be asked of each gradient at every step is asked of its parameter once.

    Args:
        like: Tensors of the same shapes, types and devices as those that will be measured.
        most: Up to so many elements are measured at a time, or a single tensor.
    """

    def __init__(self, like: Sequence[Tensor], most: float = math.inf) -> None:
        usual = [place for place, tensor in enumerate(like) if _is_usual(tensor)]
        self.others = sorted(set(range(len(like))).difference(usual))
        sizes = {place: like[place].numel() for place in usual}
        self.batches = [_Batch({place: sizes[place] for place in places}) for places in _batches(sizes, most)]
        self.places = [place for batch in self.batches for place in batch.places]

    def norms(self, tensors: Sequence[Tensor | None]) -> FloatArray | None:
        """Measure the usual ones of these tensors.

        Returns:
            Their L2 norms in the order of `places`; None if one is missing, sparse, or otherwise not as expected.
        """
        try:
            with torch.no_grad():
                norms = [batch.norms([tensors[place] for place in batch.places]) for batch in self.batches]
        except (AttributeError, RuntimeError, TypeError):  # asking each first would cost more than all the rest
            return None
        return norms[0] if len(norms) == 1 else np.concatenate([np.zeros(0), *norms])


def _is_usual(tensor: Tensor) -> bool:
    count = tensor.numel()
    is_float32 = is_plain(tensor) and is_on_host(tensor) and tensor.dtype is torch.float32
    return is_float32 and count > 0 and (count <= SHORT or _row(count) > 0)


def _row(*sizes: int) -> int:
    """Give the longest row that tensors of these sizes can all be cut into, 0 if it is too short."""
    row = math.gcd(ROW, *sizes)
    return row if row >= SHORTEST_ROW else 0


def _batches(sizes: Mapping[int, int], most: float) -> Iterator[list[int]]:
    """Divide places into batches by the sizes of what is there, in their order."""
    batch: list[int] = []
    elements = copied = 0
    for place, size in sizes.items():
        copy = size if size <= SMALL else 0
        if batch and (elements + size > most or copied + copy > COPIED):
            yield batch
            batch, elements, copied = [], 0, 0
        batch.append(place)
        elements, copied = elements + size, copied + copy
    if batch:
        yield batch


class _Batch:
    """Usual tensors that are measured together.

    The small ones are copied one behind the other, and cut into rows by one call; the large ones are cut by a call for
    each; and those that have no rows stay as they are. What is left is put side by side.

    Args:
        sizes: Number of elements, by place.
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        small = [place for place, size in sizes.items() if size <= SMALL and _row(size)]
        large = [place for place in sizes if place not in set(small)]
        self.places = small + large
        self._small = len(small)
        self._row = _row(*[sizes[place] for place in small])
        self._rows = [_row(sizes[place]) if sizes[place] > SHORT else 0 for place in large]
        rows = [self._row] * len(small) + self._rows
        self._copied = sum(sizes[place] for place in small)
        *starts, self._length = itertools.accumulate(
            (sizes[place] // (row or 1) for place, row in zip(self.places, rows, strict=True)), initial=0
        )
        self._starts = np.array(starts)

    def norms(self, tensors: Sequence[Any]) -> FloatArray:
        """Measure tensors in the order of `places`.

        Raises:
            AttributeError, RuntimeError, TypeError: A tensor is not as expected.
        """
        norm, float32 = torch.linalg.vector_norm, torch.float32
        small, large = tensors[: self._small], tensors[self._small :]
        parts = [
            norm(tensor.view(-1, row), dim=1, dtype=float32) if row else tensor
            for tensor, row in zip(large, self._rows, strict=True)
        ]
        if small:
            rows = _flat(small, self._copied).view(-1, self._row)
            parts = [norm(rows, dim=1, dtype=float32), *parts]
        squares = np.add.reduceat(np.square(_flat(parts, self._length).numpy(), dtype=np.float64), self._starts)
        norms: FloatArray = np.sqrt(squares)
        return norms


def _flat(tensors: Sequence[Tensor], length: int) -> Tensor:
    """Copy tensors of float32 one behind the other."""
    flat: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    if flat.dtype is not torch.float32 or len(flat) != length:
        raise TypeError("these tensors are not of the type and size of those that they were to be like")
    return flat


def norms_side_by_side(parts: Sequence[Tensor]) -> FloatArray:
    """Measure the L2 norms of real tensors on the processor, the squares being added up in float64.

    Args:
        parts: Dense tensors, none of them empty.

    Returns:
        Shape ``(parts,)``.
    """
    if len(parts) > TOGETHER:
        batches = [parts[start : start + TOGETHER] for start in range(0, len(parts), TOGETHER)]
        return np.concatenate([norms_side_by_side(batch) for batch in batches])
    if not parts:
        return np.zeros(0)
    *starts, _ = itertools.accumulate((part.numel() for part in parts), initial=0)
    together = _flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]
    with np.errstate(over="ignore"):
        norms: FloatArray = np.sqrt(np.add.reduceat(np.square(together.numpy(), dtype=np.float64), starts))
    return norms
