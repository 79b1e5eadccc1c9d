"""Norms of tensors that are made only to be measured, such as a copy of the weights, and the change of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.norms import Norms, PendingNorms, mend
from lightning_gradexplode.measure.small_tensors import UsualTensors


class BatchedNorms:
    """Norms of tensors that are made on the way, some at a time, and measured while the processor's cache holds them.

    Args:
        usual: Which tensors are measured together.
        make: Makes what is to be measured at some places, one list or several; kept until the norms are asked for.
        width: How many lists that are.
    """

    def __init__(
        self, usual: UsualTensors, make: Callable[[Sequence[int]], tuple[list[Tensor], ...]], width: int = 1
    ) -> None:
        self._usual = usual
        self._made: list[list[Tensor]] = [[] for _ in range(width)]
        self._each = np.zeros((width, len(usual.places) + len(usual.others)))
        with torch.no_grad():
            for batch in usual.batches:
                made = make(batch.places)
                self._each[:, batch.places] = [batch.norms(tensors) for tensors in made]
                for row, tensors in zip(self._made, made, strict=True):
                    row += tensors
            self._others = PendingNorms((tensor for place in usual.others for (tensor,) in make([place])), ())

    def norms(self) -> list[Norms]:
        """Wait for the norms, and give those of each list, in the order of the places."""
        others, places, width = self._others.norms(), self._usual.places, len(self._each)
        columns = []
        for column, (each, made) in enumerate(zip(self._each, self._made, strict=True)):
            nonfinite = np.zeros(len(each))
            each[self._usual.others] = others.each[column::width]
            nonfinite[self._usual.others] = others.nonfinite[column::width]
            mend(each, nonfinite, dict(zip(places, made, strict=True)), places, each[places])
            columns.append(Norms(each, nonfinite))
        return columns
