"""The recorder of the last steps of one optimizer, and of the first ones of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import History, StepRecord
from lightning_gradexplode.records.step_record import MAX_LOGGED

FIRST_STEPS = 16
"""Number of first steps that are kept for the whole run."""

_SCALARS = (
    "loss",
    "grad_norm",
    "grad_norm_clipped",
    "clip_val",
    "learning_rate",
    "loss_scale",
    "update_taken",
    "batch_idx",
    "epoch",
    "backward_passes",
    "micro_batches",
    "update_ratio",
    "weight_norm",
    "severity",
)
_scalars_of = attrgetter("step", "logged", *_SCALARS)

_LARGEST = float(np.finfo(np.float32).max)
_MAX_NORMS = 1 << 17
"""Number of norms of parameters that are kept, of four bytes each."""


class Recorder:
    """Records each step of one optimizer, including non-finite values, in memory of a fixed size.

    If the optimizer's parameters change, the norms of those that remain are kept.

    Args:
        parameters: Names of the parameters.
        steps: Number of steps kept. By default as many as fit into half a megabyte of norms, from 32 to 512: 512 for up
            to 256 parameters, 131 for a thousand.
    """

    def __init__(self, parameters: Sequence[str] = (), steps: int | None = None) -> None:
        self._steps = steps
        self._first: History | None = None
        self._incident: History | None = None
        self._onset: History | None = None
        self._added_until_kept = self._added_until_onset = 0
        self._allocate(tuple(parameters))

    def _allocate(self, parameters: tuple[str, ...], scalars: Sequence[tuple[Any, ...]] = ()) -> None:
        self.parameters = parameters
        self._size = self._steps or max(32, min(512, _MAX_NORMS // max(len(parameters), 1)))
        self._scalars = deque(scalars, maxlen=self._size)
        self._norms = np.full((self._size, len(parameters)), np.nan, dtype=np.float32)
        self._row = len(self._scalars) % self._size

    def add(self, record: StepRecord) -> None:
        """Record a step, in place of the oldest one if the memory is full."""
        norms = record.per_parameter.get("grad_norm")
        if norms is not None:
            if record.parameters is not self.parameters:
                self._change_parameters(record.parameters)
            if not (record.grad_norm is not None and record.grad_norm < _LARGEST):
                norms = np.where(norms < np.inf, np.minimum(norms, _LARGEST), norms)
        self._norms[self._row] = np.nan if norms is None else norms
        self._row = (self._row + 1) % self._size
        self._scalars.append(_scalars_of(record))
        if self._first is None and len(self._scalars) == min(FIRST_STEPS, self._size):
            self._first = self.history()
        if self._added_until_kept:
            self._added_until_kept -= 1
            if not self._added_until_kept:
                self._incident = self.history()
        if self._added_until_onset:
            self._added_until_onset -= 1
            if not self._added_until_onset:
                self._onset = self.history()

    def incident_seen(self, is_new: bool = True) -> None:
        """Keep the present steps for `until` as long as no later finding of an incident is seen.

        They are copied once half of the memory holds later steps, so that steps of an incident are copied once.

        Args:
            is_new: Whether another incident begins, whose first steps are kept for `from_onset` in the same way.
        """
        self._added_until_kept, self._incident = self._size // 2, None
        if is_new:
            self._added_until_onset, self._onset = self._size // 2, None

    def history(self) -> History:
        """Return the last steps."""
        steps, logged, *scalars = zip(*self._scalars, strict=True) if self._scalars else [()] * (2 + len(_SCALARS))
        values = {name: _float_array(column) for name, column in zip(_SCALARS, scalars, strict=True)}
        names = dict.fromkeys(name for one in reversed(logged) for name in one)
        for name in list(names)[:MAX_LOGGED]:
            values[f"logged/{name}"] = _float_array([one.get(name) for one in logged])
        return History(np.array(steps, dtype=np.int64), values, self.parameters, self._norms[self._rows()])

    def until(self, step: int) -> History:
        """Return the steps up to one, those before the last incident even if later ones have taken their place."""
        return (self._incident or self.history()).until(step)

    def from_onset(self) -> History:
        """Return the last steps, and before them those around the beginning of the incident, if none is missing."""
        last, onset = self.history(), self._onset
        if (
            onset is None
            or onset.parameters != last.parameters
            or not onset.step[0] < last.step[0] <= onset.step[-1] + 1
        ):
            return last
        return last.after(onset)

    def first(self) -> History:
        """Return the first steps of the run, at most 16."""
        return self._first or self.history()

    def _rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of norms in use, oldest step first."""
        return np.arange(self._row - len(self._scalars), self._row) % self._size

    def _change_parameters(self, parameters: tuple[str, ...]) -> None:
        """Rearrange the norms for other parameters."""
        if parameters == self.parameters:
            self.parameters = parameters  # so that the next comparison is by identity
            return
        kept = dict(zip(self.parameters, self._norms[self._rows()].T, strict=True))
        self._allocate(parameters, self._scalars)
        for column, name in enumerate(parameters):
            if name in kept:
                self._norms[: len(self._scalars), column] = kept[name][-len(self._scalars) :]


def _float_array(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)  # numpy converts None to NaN
