"""Symptoms that the gradients of a step show; the article's sign 6 is among them."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, Severity, StepRecord


class NonFiniteGradient(Detector):
    """A gradient is NaN or infinite; the optimizer's step would make weights NaN or infinite.

    CRITICAL at once, except with a gradient scaler that adapts its scale by overflows: then INFO, until there are
    `patience` consecutive overflows, or `stuck` consecutive ones at an unchanged scale.
    The finding names the last parameter, in the order of the forward pass, whose gradient is not finite: the backward
    pass starts there, and propagates non-finite values to all earlier layers.

    Args:
        patience: Number of consecutive overflows that are allowed for an adapting gradient scaler; from 65536 to 1 are
            16 halvings.
        stuck: Number of consecutive overflows after which the scale must have decreased by a tenth.
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


class GradientAboveOne(Detector):
    """Gradients stay above 1.0: the article's sign 6, for the parameters; never CRITICAL.

    It depends on the scale of the loss, so it only confirms other signs. INFO if a parameter has a share of at least
    `share` of elements with an absolute value of at least 1.0 at `patience` consecutive measurements. The finding names
    the parameter with the largest share.

    WARNING at once if the largest element is above `enormous`, which the scale of a loss does not explain, but unscaled
    inputs or targets do. (TheDeepChecker's limit of the mean is 1e6, which a loss that is summed over many
    elements can exceed.)

    Args:
        share: Share of a parameter's elements.
        patience: Number of consecutive measurements; there is one at each step at which scalars are logged.
        enormous: Absolute value of an element that is a WARNING; the squares of Adam overflow in float32 at 2e19.
    """

    sign = "gradient-above-one"
    reads = ("grad_norm",)

    def __init__(self, share: float = 0.5, patience: int = 5, enormous: float = 1e10) -> None:
        self.share = share
        self.patience = patience
        self.enormous = enormous
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
        size = record.grad_max or 0.0
        if self.enormous < size < math.inf:
            message = f"the largest element of the gradient is {size:.3g}; inputs or targets may be unscaled"
            where = record.largest("grad_max")
            return self.finding(record, Severity.WARNING, size, self.enormous, message, where)
        lasting = {name: above[name] for name, streak in self._streaks.items() if streak >= self.patience}
        if not lasting:
            return None
        where = max(lasting, key=lasting.__getitem__)
        message = f"{lasting[where]:.0%} of the gradient's elements stay above 1.0"
        return self.finding(record, Severity.INFO, lasting[where], self.share, message, where)
