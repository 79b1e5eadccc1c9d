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
    ratio of the learning rates, and times those of the gradient norms and of the weight norms if these have grown:
    descent has updates in proportion to the gradient, Adam of a size that hardly depends on it, and weight decay
    updates in proportion to the weights.
    """

    _length: float | None
    _length_rate: float | None
    _rate: float | None
    _norm: float | None

    def __init__(self) -> None:
        self._length = None
        self._length_rate = None
        self._length_norm = self._length_weights = 0.0
        self._rate = None
        self._norm = None

    def begin(self, record: StepRecord, weight_norm: float) -> float:
        """Return the largest change of the loss up to a step, and record the step's gradient norm.

        Args:
            record: The step.
            weight_norm: The last norm of the weights that was measured; 0 if there is none.

        Returns:
            The change; infinite if no update was measured yet, or the gradient is not finite.
        """
        norm, length = record.grad_norm, self._estimate(weight_norm)
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
            self._length_weights = record.weight_norm_before

    def _estimate(self, weight_norm: float) -> float:
        """Return the norm of the last update, infinite if it is not known."""
        if self._length is None or self._norm is None:
            return math.inf
        rates = self._rate / self._length_rate if self._length_rate and self._rate is not None else 1.0
        return (
            self._length * rates * _growth(self._norm, self._length_norm) * _growth(weight_norm, self._length_weights)
        )


def _growth(now: float, then: float) -> float:
    """Return the ratio of two norms, at least one."""
    if now <= then:
        return 1.0
    return now / then if then > 0 else math.inf
