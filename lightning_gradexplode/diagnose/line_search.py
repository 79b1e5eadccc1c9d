"""The loss of a batch along the last update, which shows whether the update overshoots."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.records import Evidence

FAR = 3.0
"""Rise of the loss divided by the loss from which a step is too long to estimate the slope."""


@dataclass(frozen=True, slots=True)
class LineSearch:
    """The loss of one batch along the step's update.

    Args:
        start: The loss without the update.
        end: The loss with the whole update, infinite if it is not finite.
        highest: The largest loss with any part of the update.
        best_factor: The factor with the least loss, 0 if no factor lowers it.
        least: The least loss.
        falls_at_first: Whether the smallest factor lowers the loss, so that the update is a descent direction.
        slope: Slope of the loss at the start, per whole update, of the parabola through the two smallest factors; NaN
            where it is not known, or where the smallest factor is too long to measure it.
        parabola_minimum: The factor at the minimum of the parabola through all points, None if they are not on a
            parabola that opens upward.
    """

    start: float
    end: float
    highest: float
    best_factor: float
    least: float
    falls_at_first: bool
    slope: float = math.nan
    parabola_minimum: float | None = None

    @property
    def climbs(self) -> bool:
        """Whether the loss rises from the start on, which no step along its negative gradient does, however long."""
        return self.slope > 0.5 * abs(self.start)

    @property
    def overshoots(self) -> bool:
        """Whether the update, or a part of it, raises the loss by more than a tenth, or goes far beyond the minimum."""
        rises = self.highest > self.start + 0.1 * abs(self.start)
        passes = 0 < self.best_factor <= 0.3 and self.end - self.least > 0.5 * (self.start - self.least)
        return rises or passes


def line_search(evidence: Evidence) -> LineSearch | None:
    """Return the measured losses along the update, None if there are none."""
    experiments = evidence.experiments
    pairs = sorted(experiments.line_search) if experiments is not None else []
    start = next((loss for factor, loss in pairs if factor == 0), math.nan)
    along = [(factor, loss if math.isfinite(loss) else math.inf) for factor, loss in pairs if factor > 0]
    if not math.isfinite(start) or not along:
        return None
    best = min(along, key=lambda pair: pair[1])
    lowers = best[1] < start
    return LineSearch(
        start=start,
        end=along[-1][1],
        highest=max(loss for _, loss in along),
        best_factor=best[0] if lowers else 0.0,
        least=min(best[1], start),
        falls_at_first=along[0][1] < start,
        slope=math.nan if _is_too_long(start, along) else _slope(start, along),
        parabola_minimum=_parabola_minimum(start, along),
    )


def _is_too_long(start: float, along: list[tuple[float, float]]) -> bool:
    """Return whether the loss changes direction, or too much, within the smallest factor."""
    rise = along[0][1] - start
    return rise > FAR * abs(start) or (rise > 0 and min(loss for _, loss in along) < start)


def _slope(start: float, along: list[tuple[float, float]]) -> float:
    """Return the slope at zero of the parabola through the start and the two smallest factors."""
    if len(along) < 2 or not math.isfinite(along[1][1]):
        return math.nan
    (near, near_loss), (far, far_loss) = along[:2]
    rises = (near_loss - start) / near, (far_loss - start) / far
    return (rises[0] * far - rises[1] * near) / (far - near)


def _parabola_minimum(start: float, along: list[tuple[float, float]]) -> float | None:
    """Return the minimum of the parabola through start and two smallest factors, None if other points are not on it."""
    slope = _slope(start, along)
    if len(along) < 3 or not math.isfinite(slope) or slope >= 0:
        return None
    curvature = (along[1][1] - start - slope * along[1][0]) / along[1][0] ** 2
    expected = (start + slope * factor + curvature * factor**2 for factor, _ in along[2:])
    is_parabola = all(math.isclose(loss, one, rel_tol=0.1) for (_, loss), one in zip(along[2:], expected, strict=True))
    return -slope / (2 * curvature) if is_parabola and curvature > 0 else None
