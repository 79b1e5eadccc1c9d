"""The loss at the start of the run, with a unit and a spread that rises above it are measured in."""

from __future__ import annotations

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.wandering import Wandering
from lightning_gradexplode.records.state import Stateful

_BOOTSTRAP = 20
"""Number of decreases that count as noise even far above the start, since a loss around zero has no other unit."""

_RETURN = 0.1
"""Share of its distance by which the reference follows a loss below it at each step."""

_MIN_UNIT = 1e-30
"""Lower bound of the unit, for a loss of zero."""


class LossBaseline(Stateful):
    """The loss at the start of the run, with a unit of rise that fits a loss of any size and sign.

    The start is the lower quartile of the first losses, so that it excludes a fast rise among them. The unit is
    the size of the start, or twice the median decrease from step to step, or the decrease that one in ten exceeds,
    whichever is largest: a noisy loss around zero has small values and a large unit, and decreases measure the noise
    alone, while increases are the explosion as well.

    Args:
        first: Number of losses that the start is taken from, at most.
        outside: Units of rise from which a loss is no part of the start, however early.

    Attributes:
        unit: The unit that rises above the start of the run are measured in.
        shift: How far the reference is above the start of the run, by changes that no update can have caused.
        jumped: Whether the loss is more than one unit above the highest loss that the last update can have caused.
    """

    also_saved = ("unit", "shift")
    _last: float | None

    def __init__(self, first: int = 5, outside: float = 4.0) -> None:
        self.outside = outside
        self._start = RollingQuantiles(first)
        self._decreases = RollingQuantiles(100)
        self._last = None
        self.shift = 0.0
        self.jumped = False
        self.unit = _MIN_UNIT
        self._wandering = Wandering()
        self._away = 0

    def shift_by(self, loss: float, largest_change: float, is_self_reinforcing: bool = False) -> None:
        """Move the reference by the part of a loss's last change that the last update cannot have caused.

        That part comes from other data or another objective, and later rises are measured from the level after it. A
        reference above the start of the run follows a loss that falls below it; one below the start stays one unit
        above the loss.

        Args:
            loss: The loss of the step, finite.
            largest_change: The largest change that the update can have caused.
            is_self_reinforcing: Whether gradients and weights have grown with the loss since it was last at its start.
                Then other data are not the cause of the rise, but targets computed by the model itself may be.
        """
        self.jumped = False
        if self._last is None or not self._start.count:
            return
        change = loss - self._last
        unexplained = change - min(max(change, -largest_change), largest_change)
        if is_self_reinforcing:
            unexplained = min(unexplained, 0.0)
        if not unexplained and not self.shift:
            return
        self.jumped = unexplained > self._unit_there
        above = loss - self._start.lower_quartile
        shift = self.shift + unexplained
        if shift > 0:
            shift = min(max(shift + _RETURN * min(above - shift, 0.0), 0.0), 1e300)
        else:
            shift = max(shift, min(above + self.unit, 0.0))
        self.shift = shift

    def deviations(self, loss: float) -> float:
        """Return how far a loss is above the start, in standard deviations of a random walk with the noise of the loss.

        The walk has as many steps as there were since the loss was last at its start. Of the excursions of a random
        walk of that length, a share of exp(-k * k / 2) is more than k deviations above the start at that step, 1.1 %
        for k = 3 (the end of a Brownian meander has a Rayleigh distribution: Durrett, Iglehart, Miller 1977).
        """
        if not self._start.count:
            return 0.0
        deviations: float = (loss - self.start) / max(self._wandering.spread(self._away + 1), _MIN_UNIT)
        return deviations

    def rise(self, loss: float) -> float:
        """Return the units that a loss is above the start, negative below it; 0 if there is none yet."""
        if not self._start.count:
            return 0.0
        return (loss - self.start) / (self._unit_there if self.shift else self.unit)

    def update(self, loss: float, rise: float, moved: bool) -> None:
        """Record a step's loss.

        Args:
            loss: The loss, finite.
            rise: The units that it is above the start (`rise`).
            moved: Whether the weights have moved away from their start.
        """
        if rise <= self.outside and (not moved or self._start.count < 3):
            if self._start.count < self._start.size:
                self._start.add(loss)
            if self._last is not None and loss < self._last and self._is_noise(self._last, loss):
                self._decreases.add(min(self._last - loss, 1e300))
            self.unit = max(abs(self._start.lower_quartile), self._noise(), _MIN_UNIT)
        start = self.start
        self._wandering.add(loss, start + self.unit, start + self.outside * self.unit)
        self._away = 0 if loss <= start else self._away + 1
        self._last = loss

    def _is_noise(self, last: float, loss: float) -> bool:
        """Return whether a decrease is noise, and not the return from a spike."""
        if self.rise(last) <= 1:
            return True
        return self._decreases.count < _BOOTSTRAP and (self.rise(last) <= self.outside or self.rise(loss) < -1)

    def _noise(self) -> float:
        """Return a large decrease from step to step."""
        count = self._decreases.count
        if not count:
            return 0.0
        return max(2 * self._decreases.median, self._decreases.quantile(0.9) if count >= 5 else 0.0)

    @property
    def start(self) -> float:
        """The loss that rises are measured from; 0 before the first loss."""
        return self._start.lower_quartile + self.shift if self._start.count else 0.0

    @property
    def _unit_there(self) -> float:
        """The unit of rises above the reference: at least the size of its level if it was moved."""
        return max(self.unit, abs(self.start)) if self.shift else self.unit

    def above(self, units: float) -> float:
        """Return the loss that is `units` above the start."""
        return self.start + units * self._unit_there
