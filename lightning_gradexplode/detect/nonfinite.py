"""Losses, gradients and weights that are NaN or infinite: the article's signs 3 and 5."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import LEFT_OUT, Finding, Severity, StepRecord

LEAVES_OUT = "; the training loop leaves this step out, so that it reaches no weight"


class NonFiniteLoss(Detector):
    """The loss is NaN or infinite: the article's sign 3.

    CRITICAL at once, even if its gradients are finite, such as those of the logarithm of a negative number. WARNING if
    the update cannot change the weights, since all gradients are exactly zero (such as those of a mean over no label),
    or are finite with a learning rate of zero, or since the training loop itself leaves the step out. With a gradient
    scaler that adapts its scale, which skips the step, it is a WARNING, and CRITICAL after `patience` consecutive
    steps. The default is 20, since a scale of 65536 reaches 1 after 16 halvings.

    Args:
        patience: Number of consecutive steps that are allowed with an adapting gradient scaler.
    """

    sign = "nonfinite-loss"
    reads = ("loss",)

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Check for a loss that is not finite."""
        assert record.loss is not None
        if math.isfinite(record.loss):
            self._streak = 0
            return None
        self._streak += 1
        rank = "" if record.rank is None else f" of rank {record.rank}"
        # The last window of an epoch may have fewer batches.
        count = min(record.micro_batches, record.backward_passes or record.micro_batches)
        first = max(0, record.batch_idx - count + 1)
        batches = f"batch {record.batch_idx}" if first == record.batch_idx else f"batches {first} to {record.batch_idx}"
        message = f"the loss is {'NaN' if math.isnan(record.loss) else 'infinite'} at {batches}{rank}"
        is_harmless = False
        if record.grad_norm == 0:
            is_harmless, message = True, f"{message}; all gradients are exactly zero, so that it reaches no weight"
        elif record.learning_rate == 0 and record.grad_norm is not None and math.isfinite(record.grad_norm):
            is_harmless, message = True, f"{message}; the learning rate is zero, so that it reaches no weight"
        elif record.skipped_by == LEFT_OUT:
            is_harmless, message = True, f"{message}{LEAVES_OUT}"
        passing = is_harmless or (record.scale_adapts and self._streak <= self.patience)
        severity = Severity.WARNING if passing else Severity.CRITICAL
        return self.finding(record, severity, record.loss, math.inf, message)


class NonFiniteGradient(Detector):
    """A gradient is NaN or infinite; the optimizer's step would make weights NaN or infinite.

    CRITICAL at once, except with a gradient scaler that adapts its scale to overflows: then INFO, until there are more
    than `patience` consecutive overflows, or `stuck` consecutive ones at an unchanged scale; and WARNING if the
    training loop itself leaves the step out.

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
        if record.skipped_by == LEFT_OUT and not passing:
            severity, message = Severity.WARNING, f"{message}{LEAVES_OUT}"
        return self.finding(record, severity, count, 0, message, record.last_nonfinite("grad_norm"))

    def _is_stuck(self, scale: float | None) -> bool:
        """Return whether the scale of an adapting scaler did not come down over the last overflows."""
        if scale is None or not math.isfinite(scale):
            return False
        self._scales = [*self._scales[-self.stuck :], scale]
        return len(self._scales) > self.stuck and self._scales[-1] > 0.9 * self._scales[0]


def _nonfinite(record: StepRecord) -> tuple[int, str]:
    """Return the number of non-finite elements or parameters in a step's gradients, and a message."""
    count = record.nonfinite_count
    if count is not None:
        return count, f"{count} gradient element{'s are' if count > 1 else ' is'} NaN or infinite"
    assert record.grad_norm is not None
    norms = record.per_parameter.get("grad_norm", [record.grad_norm])
    count = sum(not math.isfinite(norm) for norm in norms)
    return count, f"the gradient{'s' if count > 1 else ''} of {count} parameter{'s are' if count > 1 else ' is'} " + (
        "NaN or infinite"
    )


class NonFiniteWeight(Detector):
    """A weight is NaN or infinite: the article's sign 5. The run is lost; later steps cannot repair it."""

    sign = "nonfinite-weight"
    reads = ("nonfinite_weights",)

    def check(self, record: StepRecord) -> Finding | None:
        """Check the count of parameters with non-finite elements."""
        count = record.nonfinite_weights
        assert count is not None
        if not count:
            return None
        message = f"{count} parameter{'s have' if count > 1 else ' has'} NaN or infinite weights"
        return self.finding(record, Severity.CRITICAL, count, 0, message, record.first_nonfinite("weight_norm"))
