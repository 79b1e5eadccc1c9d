"""The growth of steps that begin small: with each improvement of the loss, and slower or not at all without any."""

from __future__ import annotations

import math

from lightning_gradexplode.clip.step_size.loss_trend import LossTrend
from lightning_gradexplode.clip.step_size.recent_steps import RecentSteps
from lightning_gradexplode.records.state import Stateful

_GROWTH, _SLOW_GROWTH, _SHRINKAGE = 1.3, 1.05, 0.7
"""Factors of the step size: after an improvement, without one, and after eight steps without one."""

_NEGLIGIBLE = 0.1
"""Steps that would reduce a linear loss by less than this share of a clear change have no visible effect."""

_IN_NOISE = 0.3
"""Exponent of the growth while the loss is noisy: medians of ten losses show the effect of a step five steps late."""

_MAX_FRUITLESS = 4
"""Maximum number of times that steps are shortened without an improvement, to a quarter of their size."""

_MEMORY = 10.0
"""Number of steps over which momentum may add up gradients without slower growth; with more steps, the loss shows the
effect of a step later."""


def growth_factor(memory: float) -> float:
    """Return the factor of the step size after an improvement, if momentum adds up gradients of `memory` steps."""
    return 1.0 + (_GROWTH - 1.0) * min(1.0, math.sqrt(_MEMORY / memory))


class Growth(Stateful):
    """The size of steps in the growing phase.

    If the loss becomes worse, and the steps can have caused it, their size is halved. If it should have improved and
    has not for eight steps, they are shortened, once they have done harm. Otherwise they grow after an improvement.
    Without any they grow only if they are too small for a visible effect, or if the loss is noisy, its level has not
    risen, and no step has failed yet.
    """

    def __init__(self) -> None:
        self._least = 0.0  # lower limit of the size while it shrinks
        self._did_harm = self._has_failed = False
        self._fruitless = 0  # times that steps were shortened, or could have been, without an improvement since

    def begin(self, size: float) -> None:
        """Begin with a first size, of which steps keep at least a quarter while they are shortened."""
        self._least = size / 4

    def failed(self) -> None:
        """Count a failure, after which steps are shortened if the loss does not improve."""
        self._did_harm = self._has_failed = True

    def resume(self, size: float) -> None:
        """Go on after a failure, from a size that may be smaller than before."""
        self._least = min(self._least, size / 4)

    def improved(self) -> None:
        """Count an improvement of the loss."""
        self._fruitless = 0

    def next(
        self, proven: float, growth: float, is_harmless: bool, trend: LossTrend, steps: RecentSteps
    ) -> tuple[float, float]:
        """Return the largest size that is known to do no harm, and the largest allowed size of the coming step.

        Args:
            proven: The largest size, a learning rate, that is known to do no harm.
            growth: The factor after an improvement.
            is_harmless: Whether the last step did no harm.
            trend: The losses so far.
            steps: The last steps.
        """
        is_worse = trend.is_worse and steps.can_have_caused(trend.rise)
        shrinkage = 0.5 if is_worse else 1.0
        self._did_harm = self._did_harm or is_worse
        if trend.steps_without_improvement >= 8 and steps.expected_progress >= trend.clear_change:
            trend.restart_patience()
            steps.restart_progress()
            self._fruitless += 1
            # Noise hides the progress of small steps: they are not shortened further after several times without any.
            shrinkage *= _SHRINKAGE if self._did_harm and self._fruitless <= _MAX_FRUITLESS else 1.0
        if shrinkage < 1.0:
            shorter = max(proven * shrinkage, self._least)
            return shorter, shorter
        if is_harmless and trend.steps_without_improvement < 4:
            return proven, proven * (growth if trend.steps_without_improvement == 0 else _SLOW_GROWTH)
        if trend.is_known and steps.expected_progress < _NEGLIGIBLE * trend.clear_change:
            proven = max(proven, steps.sizes[-1])
            return proven, proven * growth
        if trend.is_noisy and trend.is_no_worse and not self._has_failed:
            proven = max(proven, steps.sizes[-1])
            return proven, proven * growth**_IN_NOISE
        # Growth without an improvement before a first failure was tested: it helps runs with a noisy loss, but saves
        # fewer runs whose learning rate is too high.
        return proven, proven
