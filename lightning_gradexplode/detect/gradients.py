"""Symptoms in the gradients of a step, among them the article's sign 6."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, Severity, StepRecord


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
