"""The policy behind ``clip="auto"``."""

from __future__ import annotations

import math

from torch.optim import SGD, Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.clip.step_size.control import StepSizeControl
from lightning_gradexplode.clip.step_size.planned_step import momentum, planned_step
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.learning_rate_factor import LearningRateFactor
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful

_FACTOR_AT_START = 10.0
"""The outlier limit divided by the largest norm so far, as long as there are few norms."""

_STRONG = 0.5
"""A reduction of steps or gradients by a factor below this is reported, and again below a tenth of that factor."""

_CLIPPABLE = 1e-4
"""Norms above this are clipped with sufficient precision by torch, whose formula adds 1e-6 to the norm."""

_TORCH_EPSILON = 2e-6
"""torch clips by ``threshold / (norm + 1e-6)``: a threshold must exceed the norm by this to change nothing."""


class AutoPolicy(Stateful, ClipPolicy):
    """``clip="auto"``: limit outliers of the gradient norm, and steps that are likely to be harmful.

    Outliers: gradients are clipped to `factor` times the largest norm of the last `window` steps (norms after clipping;
    while the loss is above its starting region the limit does not rise). Slower growth is not limited: the norm says
    little about whether a step is harmful, and nothing for an optimizer that adapts to it.

    Steps: the learning rate is multiplied by a factor during the optimizer's step. The factor is 1.0 unless a step
    would change the weights by more than `reach` of their norm (twice as much for adaptive optimizers, whose step is
    about the learning rate for each weight), or the loss leaves its starting region; see
    `lightning_gradexplode.clip.step_size.control.StepSizeControl`. Large gradients of earlier steps in the momentum
    buffers count as part of the step. Unlike gradient clipping, this also limits steps with momentum, and the steps of
    Adam, which do not depend on the scale of the gradients. (With plain gradient descent both are equivalent, and the
    gradients are clipped.) In manual optimization the loss is not known before the step, and the factor is always 1.0.

    The factor is logged as ``gradexplode/step_size_factor``.

    ``python -m benchmarks.rescue`` measures how many runs it saves and how many it makes worse, on kinds of runs that
    its constants were not chosen on.

    Args:
        factor: Threshold divided by the largest of the last norms.
        window: Number of norms that are kept.
        start: Number of norms below which the threshold is at least ten times the largest norm.
        reach: Share of the norm of the weights by which a step may change them.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    not_saved = (
        "_optimizer",
        "_during_step",
        "_is_in_step",
        "_factor_is_due",
        "_weights_at_init",
        "_applied",
        "_is_plain",
        "_notice",
        "_reported",
    )

    _weights: float | None

    def __init__(self, factor: float = 4.0, window: int = 50, start: int = 10, reach: float = 0.15) -> None:
        self.factor = checks.number("factor", factor)
        self.start = checks.count("start", start, 1)
        self.reach = checks.number("reach", reach)
        self._norms = RollingQuantiles(checks.count("window", window, 1))
        self._step_size = StepSizeControl(self.reach)
        self._weights = None
        self._remembered = 0.0  # norm of the momentum buffers, if gradients of different steps were independent
        self._factor = self._applied = 1.0
        self._was_finite = True  # the loss of the last step
        self._optimizer: Optimizer | None = None
        self._during_step = LearningRateFactor()
        self._is_in_step = False
        self._factor_is_due = False
        self._weights_at_init = 0.0
        self._is_plain = False
        self._notice: str | None = None
        self._reported = {"steps": _STRONG * 10, "norms": _STRONG * 10}  # the smallest factors that were reported

    def begin(self, optimizer: Optimizer) -> None:
        """Store the optimizer, whose learning rates are read at each step."""
        self._optimizer = optimizer
        self._is_plain = isinstance(optimizer, SGD) and not any(momentum(group) for group in optimizer.param_groups)
        # Lower bound of the weights' norm, for weights that start near zero: that of torch's default initialization.
        self._weights_at_init = math.sqrt(sum(one.shape[0] / 3 for one in held_by(optimizer) if one.ndim > 1))

    def threshold(self, record: StepRecord) -> float | None:
        """Return the limit of outliers, and determine the factor of the learning rate."""
        if self._weights is None:
            self._weights = record.weight_norm_before
        self._factor = self._applied = self._factor_for(record)
        limit = self._outlier_limit(record.grad_norm)
        norm = record.grad_norm or 0.0
        if math.isfinite(norm):
            clipped = norm if limit is None else min(norm, limit)
            self._remembered = math.hypot(self._momentum * self._remembered, clipped)
        self._notice = self._new_notice(norm, limit)
        if limit is not None and self._is_plain and _CLIPPABLE < self._factor * min(norm, limit) < norm < math.inf:
            limit, self._applied = self._factor * min(norm, limit), 1.0
        self._factor_is_due = True
        if self._is_in_step and self._optimizer is not None:  # with a closure the step has begun already
            self._apply_factor(self._optimizer)
        return limit

    @property
    def _momentum(self) -> float:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        return max((momentum(group) for group in groups), default=0.0)

    def known_threshold(self) -> float | None:
        """Return the limit of outliers if the learning rate is not reduced at the coming step, whatever its norm is.

        If the loss of that step leaves its starting region, the rate is reduced one step later.
        """
        largest = self._norms.largest if len(self._norms) >= self.start else 0.0
        if self._factor != 1.0 or not self._step_size.is_calm or self._optimizer is None or not 0 < largest < 1e300:
            return None
        limit = self.factor * largest
        # Clipped to the limit, the step moves the weights by no more than this.
        step = planned_step(self._optimizer, StepRecord(step=-1, grad_norm=limit), self._weight_norm)
        return limit if step is not None and self._weight_norm > 0 and step.move <= self.reach else None

    def _outlier_limit(self, norm: float | None) -> float | None:
        largest = self._norms.largest if len(self._norms) else norm or 0.0
        factor = self.factor if len(self._norms) >= self.start else max(self.factor, _FACTOR_AT_START)
        limit = factor * largest if 0 < largest < 1e300 else None
        if norm is None or not math.isfinite(norm):
            return limit
        # While the loss is outside its starting region, the norms are those of an explosion and do not raise the limit.
        highest = largest if self._step_size.has_failed else limit
        self._norms.add(norm if highest is None else min(norm, highest))
        return limit if limit is None or norm > limit else max(limit, norm + _TORCH_EPSILON)

    def _factor_for(self, record: StepRecord) -> float:
        if self._optimizer is None or record.loss is None:
            return 1.0
        was_finite, self._was_finite = self._was_finite, math.isfinite(record.loss)
        if not self._was_finite and _is_of_the_batch(record.grad_norm, was_finite):
            return self._factor
        step = planned_step(self._optimizer, record, self._weight_norm, self._momentum * self._remembered)
        return 1.0 if step is None else self._step_size.factor(step, record.loss)

    @property
    def _weight_norm(self) -> float:
        return max(self._weights or 0.0, self._weights_at_init)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Multiply the learning rates, if the factor is known before the step."""
        self._is_in_step = True
        if self._factor_is_due:
            self._apply_factor(optimizer)

    def _apply_factor(self, optimizer: Optimizer) -> None:
        self._factor_is_due = False
        self._during_step.undo()  # of a step that a gradient scaler has skipped
        self._during_step.apply(optimizer, self._applied)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Restore the learning rates."""
        self._is_in_step = self._factor_is_due = False
        self._during_step.undo()

    def notice(self) -> str | None:
        """Return a sentence when a reduction of steps or gradients begins, becomes ten times as strong, or ends."""
        return self._notice

    def _new_notice(self, norm: float, limit: float | None) -> str | None:
        reported = self._reported
        if self._factor < 0.1 * reported["steps"]:
            reported["steps"] = self._factor
            return (
                f'clip="auto" multiplies the learning rate by {self._factor:.3g} during the step: '
                f"{self._step_size.reason}"
            )
        if limit is not None and math.isfinite(norm) and limit < 0.1 * reported["norms"] * norm:
            reported["norms"] = limit / norm
            return f'clip="auto" clips a gradient norm of {norm:.3g} to {limit:.3g}, above which it is an outlier'
        if self._factor == 1.0 and reported["steps"] < _STRONG and self._step_size.is_free:
            reported["steps"] = _STRONG * 10
            return 'clip="auto" no longer reduces the learning rate'
        return None

    def largest_step_size(self) -> float | None:
        """Return the largest learning rate of the last five steps; after a failure also the one before it."""
        return self._step_size.largest

    def limit_step_size(self, size: float) -> None:
        """Limit the learning rate of later steps to a size, and start again from small steps."""
        self._step_size.limit_to(size)

    def scalars(self) -> dict[str, float]:
        """Return the factor of the learning rate."""
        return {"step_size_factor": self._factor}


def _is_of_the_batch(norm: float | None, was_finite: bool) -> bool:
    """Return whether a loss that is not finite comes from the batch, and not from the steps before it.

    A mean over nothing has no gradient. A batch that holds NaN has a gradient that is not finite, as weights that have
    diverged do, but with these the next loss is not finite either.

    Args:
        norm: The gradient norm, None if it was not measured.
        was_finite: Whether the loss of the step before was finite.
    """
    return norm is not None and (norm == 0.0 or (was_finite and not math.isfinite(norm)))
