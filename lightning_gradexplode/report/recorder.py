"""The flight recorder: the last steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import StepRecord

Table = npt.NDArray[np.float32]

_LARGEST = float(np.finfo(np.float32).max)

_MOST_NUMBERS = 1 << 17
"""Norms kept, of four bytes each."""


class Recorder:
    """Keeps the per-parameter gradient norms, the loss and the clip value of the last steps of one optimizer.

    Unlike the detectors' histories it keeps every step, NaN and all: the bad ones are what a report is about.

    Args:
        parameters: Names of the parameters.
        steps: Number of steps kept; None is as many as half a megabyte holds, from 32 to 512: all 512 up to 256
            parameters, 131 of a thousand.
    """

    def __init__(self, parameters: Sequence[str], steps: int | None = None) -> None:
        self.parameters = tuple(parameters)
        if steps is None:
            steps = max(32, min(512, _MOST_NUMBERS // max(len(self.parameters), 1)))
        self._size = steps
        self._rows = 0
        self._norms: Table = np.full((steps, len(parameters)), np.nan, dtype=np.float32)
        self._scalars: npt.NDArray[np.float64] = np.full((steps, 4), np.nan)

    def add(self, record: StepRecord) -> None:
        """Keep a step, and forget the oldest one if there are too many."""
        row = self._rows % self._size
        norms = record.per_parameter.get("grad_norm")
        if norms is not None and not (record.grad_norm is not None and record.grad_norm < _LARGEST):
            norms = np.where(norms < np.inf, np.minimum(norms, _LARGEST), norms)
        self._norms[row] = np.nan if norms is None else norms
        values = (record.step, record.loss, record.grad_norm, record.clip_val)
        self._scalars[row] = [np.nan if value is None else value for value in values]
        self._rows += 1

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Give the kept steps, oldest first.

        Returns:
            ``step``, ``loss``, ``grad_norm`` and ``clip_val`` of shape ``(steps,)``, ``parameter_grad_norm`` of shape
            ``(steps, parameters)``, and ``parameter``, their names. NaN stands for what was not measured as well.
        """
        kept = min(self._rows, self._size)
        order = np.arange(self._rows - kept, self._rows) % self._size
        step, loss, grad_norm, clip_val = self._scalars[order].T
        return {
            "step": step.astype(np.int64),
            "loss": loss,
            "grad_norm": grad_norm,
            "clip_val": clip_val,
            "parameter": np.asarray(self.parameters, dtype=np.str_),
            "parameter_grad_norm": self._norms[order],
        }
