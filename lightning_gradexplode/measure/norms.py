"""L2 norms of many tensors, exact to 1e-6, with one read from the device.

Norms that may be wrong because squares left the range of their type are measured again, from elements that are divided
by the largest. Zero is exact where squares were summed in float64, and on an accelerator, where the largest element is
read along with the norms if their type may be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.exact_norms import exact_norms
from lightning_gradexplode.measure.norm_plan import SINGLE_RANGE, NormPlan
from lightning_gradexplode.measure.reading import PendingRead, from_host
from lightning_gradexplode.records import FloatArray, IntArray, Norms

_NONE = np.zeros(0)


class PendingNorms:
    """Norms in transfer to the host, which does not wait for an accelerator before it needs them.

    Args:
        tensors: The tensors; kept until the norms are read, for what is not finite is counted then.
        places: Places of the measured ones among them.
        least: The least norms that can be relied on, shape ``(places,)``.
        measured: Their norms, on the device; an array of norms on the host needs no transfer.
        scalars: Real tensors of one element that are read in the same transfer.
        starts: Whether the transfer starts now; else with `start`, or once something is read.

    Attributes:
        measured: The norms on their devices, until they are read.
        places: Places of the measured tensors.
        has_started: Whether the transfer has started.
        is_there: Whether `norms` returns without waiting for an accelerator.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor | None],
        places: IntArray,
        least: FloatArray,
        measured: Sequence[Tensor] | FloatArray,
        scalars: Sequence[Tensor] = (),
        starts: bool = True,
    ) -> None:
        self.measured: Sequence[Tensor] = ()
        self.places = places
        self._tensors, self._least, self._scalars = tensors, least, scalars
        self._pending: PendingRead | None = None
        self._values = self._more = _NONE
        self._read_scalars: list[float] = []
        self._norms: Norms | None = None
        self.has_started = self.is_there = False
        if isinstance(measured, np.ndarray):
            self._norms = self._finished(measured, intact=True)
            self.has_started = self.is_there = not scalars
        else:
            self.measured = measured
        if starts and not self.has_started:
            self.start()

    def start(self, more: Sequence[Tensor] = ()) -> bool:
        """Start the transfer, unless it has started.

        Args:
            more: Further real tensors to read in the same transfer.

        Returns:
            Whether it has started now, so that `more` is a part of it.
        """
        if self.has_started:
            return False
        self.has_started = True
        values = [*self.measured, *self._scalars, *more]
        if all(map(reading.is_on_host, values)):
            self._read_scalars, self._more, self.is_there = from_host(self._scalars).tolist(), from_host(more), True
            if self._norms is None:
                self._norms = self._finished(from_host(self.measured), intact=True)
        else:
            self._pending = PendingRead(values)
        return True

    def arrives_within(self, seconds: float) -> bool:
        """Return whether what is read is on the host, or will be after a wait of at most some seconds."""
        return self.is_there or (self._pending is not None and self._pending.arrives_within(seconds))

    def _wait(self) -> None:
        """Wait for the transfer of all that is read."""
        self.start()
        if self._pending is not None:
            values, self._pending = self._pending.values(), None
            count = len(self.places) if self._norms is None else 0
            self._values, scalars, self._more = np.split(values, np.cumsum([count, len(self._scalars)]))
            self._read_scalars, self.is_there = scalars.tolist(), True

    def norms(self, intact: bool = True) -> Norms:
        """Wait for the norms, and return them.

        Args:
            intact: Whether the tensors are as they were measured; if not, what is not finite cannot be counted.
        """
        if self._norms is None:
            self._wait()
            self._norms = self._finished(self._values, intact)
            self._tensors = self.measured = ()
        return self._norms

    @property
    def scalars(self) -> list[float]:
        """The scalars."""
        if not self.is_there:
            self._wait()
        return self._read_scalars

    @property
    def more(self) -> FloatArray:
        """What else was given to `start`."""
        if not self.is_there:
            self._wait()
        return self._more

    def _finished(self, measured: FloatArray, intact: bool) -> Norms:
        each, nonfinite = np.zeros(len(self._tensors)), np.zeros(len(self._tensors))
        each[self.places] = measured
        norms = Norms(each, nonfinite)
        if min(measured.tolist(), default=0.0) >= SINGLE_RANGE and norms.total < math.inf:
            return norms  # as nearly always; a NaN makes the total NaN
        reliable = (measured >= self._least) & (measured < math.inf)
        if reliable.all():
            return norms
        each = np.abs(each)
        doubtful = self.places[~reliable].tolist()
        if intact:
            each[doubtful], nonfinite[doubtful] = exact_norms([self._tensors[place] for place in doubtful])
        else:
            nonfinite[~np.isfinite(each)] = np.nan
        return Norms(each, nonfinite)


def start_norms(
    tensors: Sequence[Tensor | None],
    scalars: Sequence[Tensor] = (),
    plan: NormPlan | None = None,
) -> PendingNorms:
    """Measure the L2 norm of each tensor on its device, and start the transfer to the host.

    Args:
        tensors: Tensors of any kind that `flat_elements` takes; None counts as empty.
        scalars: Real tensors of one element that are read in the same transfer.
        plan: Made of tensors like these; None to plan anew.
    """
    with torch.no_grad():
        measured = (plan or NormPlan(tensors)).measure(tensors)
    return PendingNorms(tensors, *measured, scalars)


def measure_norms(tensors: Sequence[Tensor | None]) -> Norms:
    """Measure the L2 norm of each tensor, with one read from the device.

    Args:
        tensors: Tensors of any kind that `flat_elements` takes; None counts as empty.

    Returns:
        The norms, in the order of the tensors, with a relative error below 1e-6.
    """
    return start_norms(tensors).norms()
