"""Norms of many small tensors on a processor: put side by side in memory, they are measured by a few calls for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.records import FloatArray, IntArray

ROW = 512
"""Up to so many elements are added up in float32 at a time."""
SHORT = 1024
"""Up to so many elements a tensor is small: copying it costs less than a call of its own."""
TOGETHER = 256
"""So many tensors are put side by side at a time, so that no copy is larger than a megabyte."""


class SmallTensors:
    """The small tensors of a list whose shapes do not change from step to step, such as a model's gradients.

    Args:
        like: Tensors of the same shapes, types and devices as those that will be measured.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        small = [is_plain(t) and t.is_cpu and t.dtype is torch.float32 and 0 < t.numel() <= SHORT for t in like]
        self.places = [place for place, is_small in enumerate(small) if is_small]
        self.others = [place for place, is_small in enumerate(small) if not is_small]
        starts = range(0, len(self.places), TOGETHER)
        self._batches = [_Batch(self.places[start : start + TOGETHER], like) for start in starts]

    def norms(self, tensors: Sequence[Tensor | None]) -> FloatArray | None:
        """Measure the small ones of these tensors.

        Returns:
            Their L2 norms in the order of `places`; None if one is missing, sparse, or of another type.
        """
        try:
            with torch.no_grad():
                squares = [batch.squares(tensors) for batch in self._batches]
        except (AttributeError, RuntimeError, TypeError):  # asking each first would cost more than all the rest
            return None
        norms: FloatArray = np.sqrt(squares[0] if len(squares) == 1 else np.concatenate([np.zeros(0), *squares]))
        return norms


class _Batch:
    """Some of the small tensors: where they are, and how they lie once they are side by side."""

    def __init__(self, places: Sequence[int], like: Sequence[Tensor]) -> None:
        self._places = places
        self._row, self._starts = _rows_of(tuple([like[place].numel() for place in places]))

    def squares(self, tensors: Sequence[Tensor | None]) -> FloatArray:
        """Add up the squares of each tensor."""
        together = _flatten_dense_tensors([tensors[place] for place in self._places])  # type: ignore[no-untyped-call]
        rows = torch.linalg.vector_norm(together.view(-1, self._row), dim=1, dtype=torch.float32).numpy()
        squares: FloatArray = np.add.reduceat(np.square(rows, dtype=np.float64), self._starts)
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
