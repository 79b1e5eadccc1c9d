"""Symptoms that the gradients show; the article's sign 6 is among them."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import Baselines
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import Finding, Severity, StepRecord


class NonFiniteGradient(Detector):
    """A gradient is NaN or infinite; the optimizer would carry it into every weight.

    Critical at once, but for a gradient scaler that adapts: there overflows are how it finds its scale, so they are
    only worth knowing, until `patience` in a row did not end them, or `stuck` in a row left the scale where it was.
    Named is the last parameter, in the order of the forward pass, whose gradient is not finite: the backward pass
    begins there, and spreads what is not finite to all that come before. First to tell of 5 of the zoo's 124 explosions
    (`default_detectors`).

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
        """Judge the count of non-finite elements; of parameters, where clipping left no elements to count."""
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
        """Tell whether the scale of an adapting scaler did not come down over the last overflows."""
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
    """Shared by the detectors that judge the logarithm of the gradient norm by a robust history of calm steps.

    Args:
        window: Number of steps remembered.
        start: Number of steps to remember before anything is judged.
    """

    reads = ("grad_norm",)
    locates_growth = True

    def __init__(self, window: int, start: int) -> None:
        self.start = start
        self._history = RollingQuantiles(window)

    def _rise(self, norm: float) -> tuple[float, float]:
        """Give the rise of a norm over the usual one: of its logarithm, and the same in standard deviations."""
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

    Judged is the logarithm of the norm, by the median and the quartiles of the last `window` steps that were not spikes
    themselves: more than `limit` standard deviations and `factor` times the median is a warning, since it may pass. The
    six deviations are those of OLMo-core's stability monitor; the factor, by judgement, keeps runs of little noise
    calm.

    Args:
        limit: Standard deviations.
        factor: Times the median.
        window: Number of steps remembered.
        start: Number of steps before anything is judged.
    """

    sign = "gradient-spike"

    def __init__(self, limit: float = 6.0, factor: float = 4.0, window: int = 128, start: int = 20) -> None:
        super().__init__(window, start)
        self.limit = limit
        self.factor = factor
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's gradient norm."""
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
        usual = self._usual()
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}"
        return self.finding(record, Severity.WARNING, norm, usual * self.factor, message)


class GradientGrowth(_AgainstHistory):
    """The gradient norm keeps growing away from its usual level.

    A norm above `factor` times the usual one, and far outside its scatter, for `patience` steps in a row is a warning.
    It is critical if it is `factor` times the highest level of the whole run as well (gradients of a run that has
    converged may rise far and still be small), and if another number bears witness: the loss, `units` above its start,
    or the weights, `grown` times theirs; from `alone` times the highest level on, a loss that has not fallen is witness
    enough. Critical, too, is slow growth that no window shows, to `far` times the first norms, while the loss runs away
    in either direction, by `runaway` units: a loss without a floor falls for ever.

    The constants were chosen on the tuning half of the zoo, where this is the first to tell of 5 of 124 explosions:
    loss and weights mostly are sooner.

    Args:
        factor: Times the median of the last `window` steps that were not growth themselves.
        patience: Steps in a row.
        units: Rise of the loss, in the units of `LossBaseline`.
        grown: Growth of the weights, as `WeightBaseline` tells it.
        alone: Times the highest level, with a loss less than a tenth of a unit below its start.
        far: Times the first norms.
        runaway: Distance of the loss from its start, in the same units.
        window: Number of steps remembered.
        start: Number of steps before anything is judged.
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
        self._first: float | None = None
        self._highest = -math.inf

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's gradient norm, with the loss and the weights as witnesses."""
        norm = record.grad_norm
        assert norm is not None
        if not math.isfinite(norm) or norm <= 0:
            return None
        baselines = self.baselines(record)
        loss_rise = baselines.loss_rise
        self._note_level()
        rise, deviations = self._rise(norm)
        runs_away = self._runs_away(norm, loss_rise)
        if rise <= math.log(self.factor) or deviations <= 6.0:
            self._streak = 0
            self._remember(norm)
        else:
            self._streak += 1
        if self._streak < self.patience and not runs_away:
            return None
        severity = Severity.CRITICAL if runs_away or self._is_certain(norm, baselines) else Severity.WARNING
        usual = math.exp(self._first) if runs_away and self._first is not None else self._usual()
        factor = self.far if runs_away else self.factor
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}, and stays there"
        return self.finding(record, severity, norm, usual * factor, message)

    def _note_level(self) -> None:
        """Keep the median of the first norms, and the highest that the usual level ever was."""
        if len(self._history) >= self.start:
            level = self._history.median
            self._first = level if self._first is None else self._first
            self._highest = max(self._highest, level)

    def _is_certain(self, norm: float, baselines: Baselines) -> bool:
        rise = math.log(norm) - self._highest
        if baselines.loss_rise >= self.units or baselines.weights.growth >= self.grown:
            return rise > math.log(self.factor)
        return rise > math.log(self.alone) and baselines.loss_rise > -0.1

    def _runs_away(self, norm: float, loss_rise: float) -> bool:
        far = self._first is not None and math.log(norm) > self._first + math.log(self.far)
        self._far_streak = self._far_streak + 1 if far and abs(loss_rise) >= self.runaway else 0
        return self._far_streak >= self.patience


class GradientAboveOne(Detector):
    """Gradients stay above 1.0: the article's sign 6, for the parameters; a note and never an alarm.

    It depends on the scale of the loss, so it only confirms other signs. Reported is the parameter with the largest
    share of elements of absolute value 1.0 and more, once that share has been at least `share` at `patience`
    measurements in a row. One half of the elements, and five measurements, are by judgement.

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
        """Judge the shares, where they were measured."""
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
    """The gradients are next to nothing: the opposite trouble, never critical.

    The limit is that of SageMaker Debugger's rule VanishingGradient, which judges the mean absolute value; judged here
    is the norm of all gradients, which is larger.

    Args:
        limit: Norm of all gradients below which they count as vanished.
        patience: Steps in a row.
    """

    sign = "vanishing-gradient"
    reads = ("grad_norm",)

    def __init__(self, limit: float = 1e-7, patience: int = 20) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's gradient norm."""
        norm = record.grad_norm
        assert norm is not None
        self._streak = self._streak + 1 if norm < self.limit else 0
        if self._streak < self.patience:
            return None
        message = f"the gradient norm has been below {self.limit:g} for {self._streak} steps"
        return self.finding(record, Severity.WARNING, norm, self.limit, message)
