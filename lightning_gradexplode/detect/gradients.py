"""Symptoms that the gradients show; the article's sign 6 is among them."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import Baselines
from lightning_gradexplode.detect.growth import WINDOW, keeps_rising
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import Finding, Severity, StepRecord

_LOST_WEIGHTS = 40.0
"""Growth of the weights up to which it is projected."""


class NonFiniteGradient(Detector):
    """A gradient is NaN or infinite; the optimizer would carry it into every weight.

    Critical at once, but for a gradient scaler that adapts: there overflows are how it finds its scale, so they are
    only worth knowing, until `patience` in a row did not end them, or `stuck` in a row left the scale where it was.
    Named is the last parameter, in the order of the forward pass, whose gradient is not finite: the backward pass
    begins there, and spreads what is not finite to all that come before.

    Args:
        patience: Overflows in a row that an adapting gradient scaler is given; from 65536 down to 1 are 16 halvings.
        stuck: Overflows in a row after which the scale has to have come down by a tenth, or it does not adapt.
    """

    sign = "nonfinite-gradient"
    reads = ("grad_norm",)

    def __init__(self, patience: int = 20, stuck: int = 3) -> None:
        self.patience = patience
        self.stuck = stuck
        self._streak = 0
        self._scales: list[float] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Check the count of non-finite elements; of parameters, where clipping left no elements to count."""
        count, message = _nonfinite(record)
        if not count:
            self._streak = 0
            self._scales = []
            return None
        self._streak += 1
        passing = record.scale_adapts and self._streak <= self.patience and not self._is_stuck(record.loss_scale)
        severity = Severity.INFO if passing else Severity.CRITICAL
        return self.finding(record, severity, count, 0, message, record.last_nonfinite("grad_norm"))

    def _is_stuck(self, scale: float | None) -> bool:
        """Return whether the scale of an adapting scaler did not come down over the last overflows."""
        if scale is None or not math.isfinite(scale):
            return False
        self._scales = [*self._scales[-self.stuck :], scale]
        return len(self._scales) > self.stuck and self._scales[-1] > 0.9 * self._scales[0]


def _nonfinite(record: StepRecord) -> tuple[int, str]:
    """Count what is not finite in a step's gradients, and put it into words."""
    count = record.nonfinite_count
    if count is not None:
        return count, f"{count} gradient element{'s are' if count > 1 else ' is'} NaN or infinite"
    assert record.grad_norm is not None
    norms = record.per_parameter.get("grad_norm", [record.grad_norm])
    count = sum(not math.isfinite(norm) for norm in norms)
    return count, f"the gradient{'s' if count > 1 else ''} of {count} parameter{'s are' if count > 1 else ' is'} " + (
        "NaN or infinite"
    )


class _AgainstHistory(Detector):
    """Base class of detectors that compare the logarithm of the gradient norm with those of calm steps before.

    Args:
        window: Number of steps compared with.
        start: Number of steps before anything is compared.
    """

    reads = ("grad_norm",)
    locates_growth = True

    def __init__(self, window: int, start: int) -> None:
        self.start = start
        self._history = RollingQuantiles(window)

    def _rise(self, norm: float) -> tuple[float, float]:
        """Return the rise of a norm over the usual one: of its logarithm, and the same in standard deviations."""
        if len(self._history) < self.start or norm <= 0:
            return 0.0, 0.0
        rise = math.log(norm) - self._history.median
        return rise, rise / max(self._history.spread, 0.1)

    def _remember(self, norm: float) -> None:
        if norm > 0:
            self._history.add(math.log(norm))

    def _usual(self) -> float:
        return math.exp(self._history.median)


class GradientSpike(_AgainstHistory):
    """The norm of all gradients is far above what is usual, at a single step.

    Compared is the logarithm of the norm with the median and the quartiles of the last `window` steps that were not
    spikes themselves: more than `limit` standard deviations (those of OLMo-core's stability monitor) and `factor` times
    the median is worth knowing, for batches differ. The first step of a spike is a WARNING if the norm is `factor`
    times the largest of these steps as well: among 128 values of one distribution, whatever it is, the next is the
    largest in one step of 129, and far larger only where the distribution has no variance.

    Args:
        limit: Standard deviations.
        factor: Times the median, and for a WARNING times the largest.
        window: Number of steps compared with.
        start: Number of steps before anything is compared.
    """

    sign = "gradient-spike"

    def __init__(self, limit: float = 6.0, factor: float = 8.0, window: int = 128, start: int = 20) -> None:
        super().__init__(window, start)
        self.limit = limit
        self.factor = factor
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with those before."""
        norm = record.grad_norm
        assert norm is not None
        if not math.isfinite(norm):
            return None
        rise, deviations = self._rise(norm)
        spike = deviations > self.limit and rise > math.log(self.factor)
        self._streak = self._streak + 1 if spike else 0
        if not spike or self._streak > 10:  # what has lasted is a new level, or growth
            self._remember(norm)
            return None
        usual, largest = self._usual(), math.exp(self._history.largest)
        alarming = self._streak == 1 and norm > self.factor * largest
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}"
        severity = Severity.WARNING if alarming else Severity.INFO
        return self.finding(record, severity, norm, usual * self.factor, message)


class GradientGrowth(_AgainstHistory):
    """The gradient norm keeps growing away from its usual level.

    A norm above `factor` times the usual one, and far outside its scatter, for `patience` steps in a row is worth
    knowing, and a WARNING if it keeps rising (`keeps_rising`). It is CRITICAL if it is `factor` times the highest level
    of the whole run as well (gradients of a run that has converged may rise far and still be small), and if another
    number confirms it: the loss, `units` above its start, or the weights, `grown` times theirs; from `alone` times the
    highest level on, a loss that has not fallen is enough. CRITICAL, too, is slow growth that no window shows, to `far`
    times the start, while the loss runs away in either direction, by `runaway` units: a loss without a floor falls for
    ever. Half of that, with gradients `factor` times the start and weights that grow geometrically, is a WARNING.

    Args:
        factor: Times the median of the last `window` steps that were not growth themselves.
        patience: Steps in a row.
        units: Rise of the loss, in the units of `LossBaseline`.
        grown: Growth of the weights, by `WeightBaseline`.
        alone: Times the highest level, with a loss less than a tenth of a unit below its start.
        far: Growth since the start, of gradients and weights together (`Baselines.gradient_growth`).
        runaway: Distance of the loss from its start, in the same units.
        window: Number of steps compared with.
        start: Number of steps before anything is compared.
    """

    sign = "gradient-growth"

    def __init__(
        self,
        factor: float = 10.0,
        patience: int = 3,
        units: float = 1.0,
        grown: float = 3.0,
        alone: float = 1e4,
        far: float = 100.0,
        runaway: float = 9.0,
        window: int = 128,
        start: int = 5,
    ) -> None:
        super().__init__(window, start)
        self.factor = factor
        self.patience = patience
        self.units = units
        self.grown = grown
        self.alone = alone
        self.far = far
        self.runaway = runaway
        self._streak = 0
        self._far_streak = 0
        self._highest = -math.inf
        self._recent: list[float] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with those before, and look for what confirms a growth."""
        norm = record.grad_norm
        assert norm is not None
        baselines = self.baselines(record)
        if not math.isfinite(norm) or norm <= 0:
            return None
        self._recent = [*self._recent[1 - WINDOW :], norm]
        if len(self._history) >= self.start:
            self._highest = max(self._highest, self._history.median)
        rise, deviations = self._rise(norm)
        growing = rise > math.log(self.factor) and deviations > 6.0
        self._streak = self._streak + 1 if growing else 0
        if not growing:
            self._remember(norm)
        far = baselines.gradient_growth >= self.far and abs(baselines.loss_rise) >= self.runaway
        self._far_streak = self._far_streak + 1 if far else 0
        if self._far_streak >= self.patience:
            growth = baselines.gradient_growth
            message = f"gradients and weights together are {growth:.3g} times their start, and the loss runs away"
            return self.finding(record, Severity.CRITICAL, growth, self.far, message)
        if self._falls_for_ever(baselines):
            steps = baselines.weight_rate.steps_until(_LOST_WEIGHTS)
            message = (
                f"the loss falls without a floor, and the weights grow: they are {baselines.weights.growth:.3g} times "
                f"their start, and at this rate {_LOST_WEIGHTS:g} times in about {steps:.0f} steps"
            )
            return self.finding(record, Severity.WARNING, baselines.gradient_growth, self.factor, message)
        if self._streak < self.patience:
            return None
        usual = self._usual()
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}, and stays there"
        severity = Severity.WARNING if keeps_rising(self._recent) else Severity.INFO
        if self._is_certain(norm, baselines):
            severity = Severity.CRITICAL
        return self.finding(record, severity, norm, usual * self.factor, message)

    def _falls_for_ever(self, baselines: Baselines) -> bool:
        """Return whether gradients and weights grow while the loss falls further than one that has a floor at zero."""
        falls = baselines.loss_rise <= -self.runaway / 2 and baselines.gradient_growth >= self.factor
        return falls and baselines.weights.moved and baselines.weight_rate.is_geometric

    def _is_certain(self, norm: float, baselines: Baselines) -> bool:
        rise = math.log(norm) - self._highest
        if baselines.loss_rise >= self.units or baselines.weights.growth >= self.grown:
            return rise > math.log(self.factor)
        return rise > math.log(self.alone) and baselines.loss_rise > -0.1


class GradientAboveOne(Detector):
    """Gradients stay above 1.0: the article's sign 6, for the parameters; a note and never an alarm.

    It depends on the scale of the loss, so it only confirms other signs. Reported is the parameter with the largest
    share of elements of absolute value 1.0 and more, once that share has been at least `share` at `patience`
    measurements in a row.

    Args:
        share: Share of a parameter's elements.
        patience: Measurements in a row; one is taken at each step at which scalars are logged.
    """

    sign = "gradient-above-one"
    reads = ("grad_norm",)

    def __init__(self, share: float = 0.5, patience: int = 5) -> None:
        self.share = share
        self.patience = patience
        self._streaks: dict[str, int] = {}

    def check(self, record: StepRecord) -> Finding | None:
        """Check the shares, where they were measured."""
        shares = record.per_parameter.get("share_above_one")
        if shares is None or record.nonfinite_count:
            return None
        above = {
            name: float(share) for name, share in zip(record.parameters, shares, strict=True) if share >= self.share
        }
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in above}
        lasting = {name: above[name] for name, streak in self._streaks.items() if streak >= self.patience}
        if not lasting:
            return None
        where = max(lasting, key=lasting.__getitem__)
        message = f"{lasting[where]:.0%} of the gradient's elements stay above 1.0"
        return self.finding(record, Severity.INFO, lasting[where], self.share, message, where)


class VanishingGradient(Detector):
    """The gradients are next to nothing: the opposite trouble, never CRITICAL.

    Compared are the gradient norm times the norm of the weights with the size of the loss: to first order, weights that
    changed by as much as they are large would change the loss by less than `limit` of it. Unlike a limit of the norm,
    this holds for a loss of any scale, and not for one that has converged to zero, whose gradients shrink more slowly
    than it does. The limit is the precision of float32.

    Args:
        limit: Change of the loss, over its size, below which gradients count as vanished.
        patience: Steps in a row.
    """

    sign = "vanishing-gradient"
    reads = ("loss", "grad_norm")

    def __init__(self, limit: float = 1e-7, patience: int = 20) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with its loss."""
        norm, loss = record.grad_norm, record.loss
        assert norm is not None
        assert loss is not None
        change = norm * self.baselines(record).weights.norm
        self._streak = self._streak + 1 if 0 < change < self.limit * abs(loss) < math.inf else 0
        if self._streak < self.patience:
            return None
        message = (
            f"the gradient norm is {norm:.3g}: weights that changed by as much as they are large would change the loss "
            f"by {change:.3g}, of {loss:.3g}"
        )
        return self.finding(record, Severity.WARNING, change / abs(loss), self.limit, message)


class ZeroGradient(Detector):
    """All or most gradients are exactly zero: no step changes anything, and no later one will.

    A WARNING if all parameters, or `share` of them that had other gradients before, had gradients of exactly zero at
    `patience` steps in a row while the loss was not zero. Rectified units that are never active make such gradients, a
    loss that is detached from the network, or a criterion that ignores every target. A parameter whose gradient was
    zero from the start may be frozen, and counts only where all gradients are zero. Where some are not, and the loss
    has come down from its start, it is only worth knowing: experts that are never chosen look like that.

    Args:
        share: Share of the parameters.
        patience: Steps in a row.
    """

    sign = "zero-gradient"
    reads = ("loss", "grad_norm")

    _never: list[int] | None

    def __init__(self, share: float = 0.5, patience: int = 20) -> None:
        self.share = share
        self.patience = patience
        self._never = None
        self._streaks: list[int] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Count the steps at which each parameter's gradient is zero."""
        baselines = self.baselines(record)
        norms = record.per_parameter.get("grad_norm")
        if norms is None:
            return None
        if norms.all() or record.loss == 0:
            self._never = [] if norms.all() else self._never
            self._streaks = []
            return None
        count = len(norms)
        never = range(count) if self._never is None else self._never
        self._never = [place for place in never if place < count and norms[place] == 0]
        before = self._streaks if len(self._streaks) == count else [0] * count
        self._streaks = [0 if norm else steps + 1 for steps, norm in zip(before, norms.tolist(), strict=True)]
        dead = [place for place, steps in enumerate(self._streaks) if steps >= self.patience]
        if len(dead) < count:
            dead = sorted(set(dead) - set(self._never))
        if not dead or len(dead) < self.share * count:
            return None
        where = None if len(dead) == count else record.parameters[dead[0]]
        which = f"all {count}" if where is None else f"{len(dead)} of {count}"
        message = f"the gradients of {which} parameters have been exactly zero for {self.patience} steps or more"
        learns = where is not None and baselines.loss_rise < -0.1
        severity = Severity.INFO if learns else Severity.WARNING
        return self.finding(record, severity, len(dead) / count, self.share, message, where)


class ClipSaturated(Detector):
    """Clipping binds at nearly every step, by a large factor: it hides a fault, and sets the size of every step.

    A WARNING if nine in ten of the last `window` steps were clipped by more than `factor`. Clipping is meant for single
    steps; usual thresholds lie between half and ten times the usual norm (Pascanu, Mikolov, Bengio 2013, section 3.2).

    Args:
        factor: Size of the gradients over the clip value: of their norm, or of the largest element in clipping by
        value. window: Number of steps.
    """

    sign = "clip-saturated"
    reads = ("grad_norm", "clip_val")

    def __init__(self, factor: float = 1000.0, window: int = 50) -> None:
        self.factor = factor
        self._excess = RollingQuantiles(window)

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the size of the step's gradients with the clip value."""
        size = record.grad_norm if record.clip_algorithm == "norm" else record.grad_max
        if not record.clip_val or size is None or not 0 < size < math.inf:
            return None
        self._excess.add(math.log(size / record.clip_val))
        if len(self._excess) < self._excess.size or self._excess.quantile(0.1) <= math.log(self.factor):
            return None
        usual = math.exp(self._excess.median)
        message = f"clipping to {record.clip_val:.3g} makes nearly every gradient smaller, usually {usual:.3g} times"
        return self.finding(record, Severity.WARNING, usual, self.factor, message)
