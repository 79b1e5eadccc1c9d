"""Norms of many tensors on a processor: few numbers of each, side by side in memory, are added up by a few calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.host import is_on_host
from lightning_gradexplode.records import FloatArray, IntArray

ROW = 512
"""Up to so many elements are added up in float32 at a time."""
SHORTEST_ROW = 64
"""With rows shorter than this one a tensor would leave too many numbers."""
SHORT = 1024
"""Up to so many elements a tensor is small: copying it costs less than a call of its own."""
TOGETHER = 256
"""So many tensors are put side by side at a time, so that no copy is larger than a megabyte."""


class UsualTensors:
    """Those of a list whose kind, shape and place are the usual ones, and do not change from step to step.

    What would have to be asked of each gradient at every step is asked of its parameter once.

    Args:
        like: Tensors of the same shapes, types and devices as those that will be measured.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        usual = [_is_usual(tensor) for tensor in like]
        self.places = [place for place, is_usual in enumerate(usual) if is_usual]
        self.others = [place for place, is_usual in enumerate(usual) if not is_usual]
        starts = range(0, len(self.places), TOGETHER)
        self._batches = [_Batch(self.places[start : start + TOGETHER], like) for start in starts]

    def norms(self, tensors: Sequence[Tensor | None]) -> FloatArray | None:
        """Measure the usual ones of these tensors.

        Returns:
            Their L2 norms in the order of `places`; None if one is missing, sparse, or otherwise not as expected.
        """
        try:
            with torch.no_grad():
                squares = [batch.squares(tensors) for batch in self._batches]
        except (AttributeError, RuntimeError, TypeError):  # asking each first would cost more than all the rest
            return None
        norms: FloatArray = np.sqrt(squares[0] if len(squares) == 1 else np.concatenate([np.zeros(0), *squares]))
        return norms


def _is_usual(tensor: Tensor) -> bool:
    count = tensor.numel()
    is_float32 = is_plain(tensor) and is_on_host(tensor) and tensor.dtype is torch.float32
    return is_float32 and count > 0 and (count <= SHORT or math.gcd(ROW, count) >= SHORTEST_ROW)


class _Batch:
    """Some of the usual tensors: where they are, and how what is left of them lies once it is side by side."""

    def __init__(self, places: Sequence[int], like: Sequence[Tensor]) -> None:
        sizes = [like[place].numel() for place in places]
        self._rows = [
            (place, math.gcd(ROW, size) if size > SHORT else 0) for place, size in zip(places, sizes, strict=True)
        ]
        lengths = [size // (row or 1) for size, (_, row) in zip(sizes, self._rows, strict=True)]
        self._starts = np.array([0, *itertools.accumulate(lengths[:-1])])

    def squares(self, tensors: Sequence[Any]) -> FloatArray:
        """Add up the squares of each tensor: of its elements if it is small, else of the norms of its rows.

        Raises:
            AttributeError, RuntimeError, TypeError: A tensor is not as expected.
        """
        norm, float32 = torch.linalg.vector_norm, torch.float32
        parts = [
            norm(tensors[place].view(-1, row), dim=1, dtype=float32) if row else tensors[place]
            for place, row in self._rows
        ]
        together = _flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]
        if together.dtype is not float32:
            raise TypeError("the squares of float64 may leave its range")
        squares: FloatArray = np.add.reduceat(np.square(together.numpy(), dtype=np.float64), self._starts)
        return squares


def norms_side_by_side(parts: Sequence[Tensor]) -> FloatArray:
    """Measure the L2 norms of real tensors on the processor, the squares being added up in float64.

    Up to 512 elements of float32 are added up in float32 before, where the tensors' sizes have so large a divisor.

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
    row, starts = _rows_of(tuple([part.numel() for part in parts]))
    together = _flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]
    if row > 1 and together.dtype is torch.float32:
        together = torch.linalg.vector_norm(together.view(-1, row), dim=1)
    else:
        starts = starts * row
    with np.errstate(over="ignore"):
        squares = np.square(together.numpy(), dtype=np.float64)
        norms: FloatArray = np.sqrt(np.add.reduceat(squares, starts))
    return norms


@lru_cache(maxsize=32)  # the sizes are the same at every step
def _rows_of(sizes: tuple[int, ...]) -> tuple[int, IntArray]:
    """Give the longest row that parts of these sizes can all be cut into, and the number of the first row of each."""
    row = math.gcd(ROW, *sizes)
    return row, np.array([0, *itertools.accumulate(sizes[:-1])]) // row
