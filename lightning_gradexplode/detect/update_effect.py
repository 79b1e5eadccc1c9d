"""Upper bound of the change of the loss that the last update can have caused."""

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

    The bound does not hold for what an update changes without a gradient: targets made from the model itself, and the
    loss of another optimizer's model. Before the first logged step nothing is measured and the bound is infinite: a
    bound from the first step on would miss two of 122 measured explosions of these two kinds.
    """

    _length: float | None
    _length_rate: float | None
    _rate: float | None
    _norm: float | None

    def __init__(self) -> None:
        self._length = None
        self._length_rate = None
        self._length_norm = self._length_weights = 1.0
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
        norm, last, rate = record.grad_norm, self._norm, self._rate
        if norm is not None and not math.isfinite(norm):
            norm = None
        self._norm, self._rate = norm, record.learning_rate
        if norm is None or last is None or self._length is None:
            return math.inf
        length = self._length * max(1.0, last / self._length_norm) * max(1.0, weight_norm / self._length_weights)
        if rate is not None and self._length_rate:
            length *= rate / self._length_rate
        return length * max(norm, last)

    def measured(self, record: StepRecord) -> None:
        """Record the update of a step, if it was measured."""
        if record.update_ratio is None or record.weight_norm_before is None:
            return
        length = record.update_ratio * record.weight_norm_before
        if 0 < length < math.inf and self._norm:
            self._length, self._length_rate, self._length_norm = length, record.learning_rate, self._norm
            self._length_weights = record.weight_norm_before
