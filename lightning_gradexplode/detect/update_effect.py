"""How much of a change of the loss the last update can have caused."""

from __future__ import annotations

import math

from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful


class UpdateEffect(Stateful):
    """The largest change of the loss that the last update can have caused.

    By the mean value theorem a change of the loss is the product of the update and the gradient at a place between the
    old weights and the new ones, at most the product of their norms. If the loss is convex or concave along the update,
    its slope there is between those at the two ends, so that the larger norm of the two gradients bounds the change. A
    larger change comes from other data or another objective.

    The norm of an update is measured at few steps only. In between it is taken to be the last one measured, times the
    ratio of the learning rates, times the ratio of the gradient norms if the gradient has grown: descent has updates in
    proportion to the gradient, Adam of a size that hardly depends on it.
    """

    _length: float | None
    _length_rate: float | None
    _rate: float | None
    _norm: float | None

    def __init__(self) -> None:
        self._length = None
        self._length_rate = None
        self._length_norm = 0.0
        self._rate = None
        self._norm = None

    def begin(self, record: StepRecord) -> float:
        """Return the largest change of the loss up to a step, and record the step's gradient norm.

        Returns:
            The change; infinite if no update was measured yet, or the gradient is not finite.
        """
        norm, length = record.grad_norm, self._estimate()
        if norm is not None and not math.isfinite(norm):
            norm = None
        last, self._norm, self._rate = self._norm, norm, record.learning_rate
        if norm is None or last is None or length == math.inf:
            return math.inf
        return length * max(norm, last)

    def measured(self, record: StepRecord) -> None:
        """Record the update of a step, if it was measured."""
        if record.update_ratio is None or record.weight_norm_before is None or self._norm is None:
            return
        length = record.update_ratio * record.weight_norm_before
        if 0 < length < math.inf:
            self._length, self._length_rate, self._length_norm = length, record.learning_rate, self._norm

    def _estimate(self) -> float:
        if self._length is None or self._norm is None:
            return math.inf
        rates = self._rate / self._length_rate if self._length_rate and self._rate is not None else 1.0
        return self._length * rates * max(1.0, self._norm / self._length_norm if self._length_norm > 0 else math.inf)
