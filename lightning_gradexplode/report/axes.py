"""Axes of charts: positions of values on a logarithmic or symmetric logarithmic axis, and its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import FloatArray

Values = npt.NDArray[Any]

_BITS = math.log2(10.0)
_SMALLEST, _LARGEST = 1e-300, 1e300
"""Absolute values beyond these are drawn at them, so that the arithmetic of an axis does not overflow."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis.

    Args:
        kind: ``"log"``, or ``"symlog"`` for values of both signs: linear around zero, logarithmic beyond.
        unit: Absolute value at which the linear part of a symmetric logarithmic axis ends.
        low: Position of the lower end.
        high: Position of the upper end.
        ticks: Position and label of each tick.
    """

    kind: str
    unit: float
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def positions(self, values: Values) -> FloatArray:
        """Return the positions of values on the axis, of the same shape; NaN for values that have none."""
        return _positions(np.asarray(values, dtype=np.float64), self.kind, self.unit)


def axis_for(*series: Values) -> Axis:
    """Return an axis for some series: logarithmic if all values are positive, else symmetric logarithmic."""
    values = np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in series] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    kind = "log" if len(values) and values.min() > 0 else "symlog"
    sizes = np.clip(np.abs(values[values != 0]), _SMALLEST, _LARGEST)
    unit = 10.0 ** max(math.floor(math.log10(float(np.quantile(sizes, 0.2)))) - 1, -299) if len(sizes) else 1.0
    usable = _positions(values, kind, unit)
    usable = usable[np.isfinite(usable)]
    low, high = (float(usable.min()), float(usable.max())) if len(usable) else (0.0, 1.0)
    margin = max((high - low) * 0.06, 0.04)
    low, high = low - margin, high + margin
    return Axis(kind, unit, low, high, _ticks(kind, unit, low, high))


def _positions(values: FloatArray, kind: str, unit: float) -> FloatArray:
    logs = np.log10(np.clip(np.abs(values), _SMALLEST, _LARGEST))
    if kind == "symlog":
        # log10(1 + |value| / unit), computed from logarithms so that it cannot overflow.
        with np.errstate(invalid="ignore"):
            signed: FloatArray = np.sign(values) * np.logaddexp2(0.0, (logs - math.log10(unit)) * _BITS) / _BITS
        return np.where(np.isfinite(values), signed, np.nan)
    return np.where(np.isfinite(values) & (values > 0), logs, np.nan)


def _values(positions: FloatArray, kind: str, unit: float) -> FloatArray:
    """Return the values at positions."""
    if kind == "log":
        powers: FloatArray = 10.0 ** np.clip(positions, -302, 302)
        return powers
    sizes = 10.0 ** np.minimum(np.abs(positions) + math.log10(unit), 302) - unit
    signed: FloatArray = np.sign(positions) * sizes
    return signed


def log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return position and label of the ticks of a logarithmic axis between two positions."""
    return _ticks("log", 1.0, low, high)


def _ticks(kind: str, unit: float, low: float, high: float) -> tuple[tuple[float, str], ...]:
    first, last = _values(np.array([low, high]), kind, unit).tolist()
    sizes = (abs(first), abs(last)) if kind == "log" else (unit, max(abs(first), abs(last)))
    lowest, highest = (math.floor(math.log10(max(one, 1e-307))) for one in sizes)
    powers = [10.0**power for power in range(lowest, highest + 1, max(1, -(-(highest - lowest) // 6)))]
    if highest - lowest <= 3:
        powers += [power * part for part in (2.0, 5.0) for power in powers]
    candidates = powers if kind == "log" else [0.0, *powers, *(-one for one in powers)]
    ticks = _spaced(candidates, kind, unit, low, high)
    if len(ticks) < 3:  # less than about half a decade: round numbers at equal intervals
        step = 10.0 ** math.floor(math.log10(max(last - first, 1e-300)))
        step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if (last - first) / (step * part) <= 6)
        count = math.floor((last - first) / step) + 2
        equal = [float(f"{(math.floor(first / step) + place) * step:.12g}") for place in range(count)]
        ticks = _spaced(equal, kind, unit, low, high)
    return ticks


def _spaced(
    candidates: Sequence[float], kind: str, unit: float, low: float, high: float
) -> tuple[tuple[float, str], ...]:
    """Return the ticks that are on the axis and do not overlap a previous one."""
    ticks: list[tuple[float, str]] = []
    for at, value in zip(_positions(np.array(candidates), kind, unit).tolist(), candidates, strict=True):
        if low <= at <= high and all(abs(at - other) >= (high - low) / 8 for other, _ in ticks):
            ticks.append((at, tick_label(value)))
    return tuple(sorted(ticks))


def tick_label(value: float) -> str:
    """Return a short label: powers of ten in the form ``1e5``."""
    label = f"{value:g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:e}"
    mantissa, exponential, exponent = label.partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if exponential else label
