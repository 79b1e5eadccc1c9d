"""What the recorded histories of a run show around an incident: levels before it and growth into it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import Evidence, Finding, History, Severity

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DIVERGED_LOSS = 4.0
"""Rise of the loss above its start, in units of its size or noise, from which it has left the region of the start."""

DIVERGED_GRADIENT = 30.0
"""Growth of the gradient norm over its usual level from which it has left the calm range."""

DIVERGED_WEIGHTS = 2.0
"""Growth of the weights' norm over that of the start from which updates have changed the scale of the weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Values of one quantity by step, oldest first, NaN where it was not measured or not finite.

    Args:
        step: Shape ``(steps,)``.
        value: Shape ``(steps,)``.
    """

    step: IntArray
    value: FloatArray

    def __len__(self) -> int:
        return len(self.step)

    @property
    def finite(self) -> Curve:
        """The part with finite values."""
        kept = np.isfinite(self.value)
        return Curve(self.step[kept], self.value[kept])

    def before(self, step: int) -> Curve:
        """Return the part with steps below `step`."""
        kept = self.step < step
        return Curve(self.step[kept], self.value[kept])

    def since(self, step: int) -> Curve:
        """Return the part with steps of `step` and above."""
        kept = self.step >= step
        return Curve(self.step[kept], self.value[kept])

    def at(self, step: int) -> float | None:
        """Return the value at a step, None if none was measured."""
        found = self.value[self.step == step]
        return float(found[-1]) if len(found) and not math.isnan(found[-1]) else None

    @property
    def first(self) -> float | None:
        """The first finite value."""
        values = self.finite.value
        return float(values[0]) if len(values) else None

    @property
    def last(self) -> float | None:
        """The last finite value."""
        values = self.finite.value
        return float(values[-1]) if len(values) else None

    @property
    def median(self) -> float | None:
        """The median of the finite values."""
        values = self.finite.value
        return float(np.median(values)) if len(values) else None

    @property
    def greatest(self) -> float | None:
        """The largest finite value."""
        values = self.finite.value
        return float(values.max()) if len(values) else None

    @property
    def least(self) -> float | None:
        """The smallest finite value."""
        values = self.finite.value
        return float(values.min()) if len(values) else None


@dataclass(frozen=True, slots=True)
class Trend:
    """How a run went up to the step at which it failed, or up to now if nothing has become non-finite.

    Args:
        steps: Number of steps with a finite loss or gradient.
        loss_rise: Largest rise of the loss above its start, in units of the size or the noise of the first losses.
        gradient_growth: Largest gradient norm near the incident over the usual one before it.
        weight_growth: Largest norm of the weights over that of the start.
        update_ratio: Largest ratio of an update to the weights.
    """

    steps: int = 0
    loss_rise: float = 0.0
    gradient_growth: float = 1.0
    weight_growth: float = 1.0
    update_ratio: float = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether loss, gradients or weights had left the region of the start."""
        return (
            self.loss_rise >= DIVERGED_LOSS
            or self.gradient_growth >= DIVERGED_GRADIENT
            or self.weight_growth >= DIVERGED_WEIGHTS
        )


def critical_step(evidence: Evidence) -> int:
    """Return the step of the first critical finding, or the step of the incident if there is none."""
    steps = [finding.step for finding in evidence.findings if finding.severity is Severity.CRITICAL]
    return min(steps, default=evidence.step)


def first_nonfinite(evidence: Evidence) -> Finding | None:
    """Return the finding of the first quantity that was not finite: within a step, loss before gradient before weight.

    An overflow that a gradient scaler expects is a note and does not count.
    """
    order = ("nonfinite-loss", "nonfinite-gradient", "nonfinite-weight")
    found = [one for one in evidence.findings if one.sign in order and one.severity > Severity.INFO]
    return min(found, key=lambda one: (one.step, order.index(one.sign)), default=None)


def signs(evidence: Evidence) -> set[str]:
    """Return the signs that were found."""
    return {finding.sign for finding in evidence.findings}


def failing_step(evidence: Evidence) -> int:
    """Return the step at which something was not finite for the first time, else the step after the diagnosis."""
    found = first_nonfinite(evidence)
    return evidence.now + 1 if found is None else found.step


def history_at_fault(evidence: Evidence) -> int | None:
    """Return the index of the optimizer whose parameters a finding names, or whose gradients have grown the most.

    Returns:
        None if there is no history.
    """
    if not evidence.history and not evidence.first:
        return None
    for finding in evidence.findings:
        if finding.severity < Severity.WARNING or finding.where is None:
            continue
        for place, history in enumerate(evidence.history):
            if any(name == finding.where or name.startswith(f"{finding.where}.") for name in history.parameters):
                return place
    count = max(len(evidence.history), len(evidence.first))
    return max(range(count), key=lambda place: _growth(curve(evidence, "grad_norm", optimizer=place)))


def curve(evidence: Evidence, name: str, optimizer: int | None = None) -> Curve:
    """Return a recorded quantity of the optimizer at fault: the first steps of the run, then the last ones.

    Args:
        evidence: The evidence.
        name: Name of the quantity in `History.values`.
        optimizer: Index of another optimizer.

    Returns:
        Of no steps if the quantity was not recorded; steps after the diagnosis are left out.
    """
    place = history_at_fault(evidence) if optimizer is None else optimizer
    if place is None:
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    early = [_part(evidence.first[place], name)] if place < len(evidence.first) else []
    late = [_part(evidence.history[place], name)] if place < len(evidence.history) else []
    if early and late and len(late[0]):
        early = [early[0].before(int(late[0].step[0]))]
    parts = [part for part in (*early, *late) if len(part)]
    if not parts:
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    whole = Curve(np.concatenate([one.step for one in parts]), np.concatenate([one.value for one in parts]))
    return whole.before(evidence.now + 1)


def logged_curves(evidence: Evidence) -> dict[str, Curve]:
    """Return the scalars that the user's module logged, by name."""
    names = {name for history in (*evidence.history, *evidence.first) for name in history.values}
    return {name.removeprefix("logged/"): curve(evidence, name) for name in sorted(names) if name.startswith("logged/")}


def _part(history: History, name: str) -> Curve:
    values = history.values.get(name)
    if values is None or len(values) != len(history.step):
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    return Curve(np.asarray(history.step, np.int64), np.asarray(values, np.float64))


def _growth(norms: Curve) -> float:
    """Return the last value over the first one; a last value that is not finite counts as infinite growth."""
    if not len(norms):
        return 0.0
    first, last = norms.first, float(norms.value[-1])
    if not first or first <= 0:
        return 0.0
    return last / first if math.isfinite(last) else math.inf


def trend(evidence: Evidence) -> Trend:
    """Return how loss, gradients and weights went up to the failure."""
    end = failing_step(evidence)
    loss = curve(evidence, "loss").before(end).finite
    norm = curve(evidence, "grad_norm").before(end).finite
    weight = curve(evidence, "weight_norm").before(end)
    ratio = curve(evidence, "update_ratio").before(end)
    start = _initial_weight_norm(evidence) or weight.first
    return Trend(
        steps=max(len(loss), len(norm)),
        loss_rise=loss_rise(loss),
        gradient_growth=_gradient_growth(norm, critical_step(evidence)),
        weight_growth=(weight.greatest or 0.0) / start if start and weight.greatest else 1.0,
        update_ratio=ratio.greatest or 0.0,
    )


def loss_rise(loss: Curve) -> float:
    """Return the largest rise of the loss above its start over the last steps, in units of its size or of its noise.

    The start is the median of the first losses: of five, or of a quarter of fewer than twenty. The unit is the size of
    that median, or twice the median change from step to step over the first half, whichever is larger.
    """
    values = loss.finite.value
    if len(values) < 2:
        return 0.0
    count = max(1, min(5, len(values) // 4))
    level = float(np.median(values[:count]))
    half = values[: max(2, len(values) // 2)]
    with np.errstate(over="ignore", invalid="ignore"):
        noise = 2 * float(np.median(np.abs(np.diff(half)))) if len(half) > 2 else 0.0
        rise = float(values[-5:].max()) - level
    unit = max(abs(level), noise, 1e-30)
    return rise / unit if math.isfinite(rise) and math.isfinite(unit) else math.inf


def _gradient_growth(norm: Curve, step: int) -> float:
    """Return the largest norm of the last five steps over the median before; with fewer than four, over the first."""
    values = norm.finite.value
    values = values[values > 0]
    if len(values) < 2:
        return 1.0
    calm = norm.finite.before(min(step, int(norm.finite.step[-1]))).value
    calm = calm[calm > 0]
    # The steps before the first critical finding can be growing already: the level is that of their first half.
    level = float(np.median(calm[: max(1, len(calm) // 2)])) if len(calm) else float(values[0])
    return float(values[-5:].max()) / level


def _initial_weight_norm(evidence: Evidence) -> float | None:
    """Return the norm of all weights of the optimizer at fault before the first step, None if one is not known."""
    place = history_at_fault(evidence)
    histories = evidence.history or evidence.first
    names = histories[place].parameters if place is not None and place < len(histories) else ()
    facts = {one.name: one for one in evidence.run.parameters}
    if not names or not facts.keys() >= set(names):
        return None
    total = sum(facts[name].std ** 2 * math.prod(facts[name].shape) for name in names)
    return math.sqrt(total) if 0 < total < math.inf else None


@dataclass(frozen=True, slots=True)
class LineSearch:
    """The loss of one batch along the step's update.

    Args:
        start: The loss without the update.
        end: The loss with the whole update, infinite if it is not finite.
        best_factor: The factor with the least loss, 0 if no factor lowers it.
        least: The least loss.
        falls_at_first: Whether the smallest factor lowers the loss: whether the update points downhill.
    """

    start: float
    end: float
    best_factor: float
    least: float
    falls_at_first: bool

    @property
    def overshoots(self) -> bool:
        """Whether the whole update raises the loss, by more than a tenth of its size."""
        return self.end > self.start + 0.1 * abs(self.start)


def line_search(evidence: Evidence) -> LineSearch | None:
    """Return the measured losses along the update, None if there are none to judge."""
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
        best_factor=best[0] if lowers else 0.0,
        least=min(best[1], start),
        falls_at_first=along[0][1] < start,
    )


def largest_parameter(evidence: Evidence, names: Iterable[str] | None = None) -> str | None:
    """Return the parameter with the largest finite gradient norm at the last step at which all are finite."""
    place = history_at_fault(evidence)
    if place is None or place >= len(evidence.history):
        return None
    profile = gradient_profile(evidence)
    allowed = set(profile) if names is None else set(names)
    kept = {name: norm for name, norm in profile.items() if name in allowed}
    return max(kept, key=kept.__getitem__) if kept and max(kept.values()) > 0 else None


def gradient_profile(evidence: Evidence, first: bool = False) -> dict[str, float]:
    """Return the gradient norm of each parameter, at the last or the first step at which all are finite."""
    place = history_at_fault(evidence)
    kept = evidence.first if first and evidence.first else evidence.history
    if place is None or place >= len(kept):
        return {}
    history = kept[place]
    norms = np.asarray(history.parameter_grad_norm, np.float64)
    if norms.ndim != 2 or norms.shape != (len(history.step), len(history.parameters)) or not norms.size:
        return {}
    usable = np.flatnonzero(np.isfinite(norms).all(axis=1) & (history.step <= evidence.now) & norms.any(axis=1))
    if not len(usable):
        return {}
    row = norms[usable[0 if first else -1]]
    return dict(zip(history.parameters, row.tolist(), strict=True))
