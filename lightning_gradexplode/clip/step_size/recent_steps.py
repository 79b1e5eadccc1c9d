"""The last steps of an optimizer: their sizes, and what they may have done to the loss."""

from __future__ import annotations

import math
from collections import deque

from lightning_gradexplode.clip.step_size.planned_step import PlannedStep
from lightning_gradexplode.records.state import Stateful

_EXPLAINED = 10.0
"""Largest rise of the loss that steps can have caused, divided by their decrease of a linear loss. On a quadratic
loss a step causes a larger one only if its learning rate is eleven times that above which steps diverge."""


class RecentSteps(Stateful):
    """The last five steps, and the decreases of a linear loss by all steps since the loss has improved.

    A step whose decrease is not known may have caused any rise.
    """

    def __init__(self) -> None:
        self._sizes: deque[float] = deque(maxlen=5)
        self._decreases: deque[float] = deque(maxlen=5)
        self._moves: deque[float] = deque(maxlen=5)
        self._since_progress = self._since_lowest = 0.0

    def add(self, step: PlannedStep, factor: float) -> None:
        """Add a step.

        Args:
            step: The step at its full learning rate.
            factor: The factor of the learning rate.
        """
        is_known = step.decrease is not None
        self._moves.append(step.move * factor if is_known else math.inf)
        self._sizes.append(step.rate * factor)
        self._decreases.append(math.inf if step.decrease is None else step.decrease * factor)

    def count(self, has_improved: bool) -> None:
        """Add the last step to those without an improvement of the loss, or begin again at an improvement."""
        self._since_progress = 0.0 if has_improved else self._since_progress + self.last_decrease
        self._since_lowest = 0.0 if has_improved else self._since_lowest + self.last_decrease

    def forget_earlier(self) -> None:
        """Attribute no change of the loss to the steps before."""
        self._since_progress = self._since_lowest = 0.0

    def restart_progress(self) -> None:
        """Expect progress from the next steps only."""
        self._since_progress = 0.0

    @property
    def expected_progress(self) -> float:
        """The decrease of a linear loss by the steps without an improvement."""
        return self._since_progress

    @property
    def sizes(self) -> list[float]:
        """The learning rates of the last steps."""
        return [*self._sizes]

    @property
    def largest_move(self) -> float:
        """The largest change of the weights by one of them, over their norm; infinite where it is not known."""
        return max(self._moves, default=0.0)

    @property
    def last_move(self) -> float:
        """The change of the weights by the last step, over their norm; 0.0 where it is not known."""
        return self._moves[-1] if self._moves and self._moves[-1] < math.inf else 0.0

    @property
    def last_decrease(self) -> float:
        """The decrease of a linear loss by the last step."""
        return self._decreases[-1] if self._decreases else 0.0

    @property
    def largest_rise_by_one(self) -> float:
        """The largest rise of the loss that one of the steps can have caused."""
        return _EXPLAINED * max(self._decreases, default=math.inf)

    @property
    def largest_rise_by_two(self) -> float:
        """The largest rise of the loss that the last two steps can have caused together."""
        return _EXPLAINED * sum([*self._decreases][-2:]) if self._decreases else math.inf

    def can_have_caused(self, rise: float) -> bool:
        """Return whether the steps since the lowest level of the loss can have caused a rise above it."""
        return rise <= _EXPLAINED * self._since_lowest
