"""What has made the argument of an operation too large all at once, so that its overflow is only the consequence."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.batch import place_of, rows_of, targets
from lightning_gradexplode.diagnose.causes.outliers import field_of_failed_rows
from lightning_gradexplode.diagnose.causes.rate_rise import abrupt_rise
from lightning_gradexplode.diagnose.causes.unscaled_data import unscaled_data
from lightning_gradexplode.diagnose.curves import first_nonfinite
from lightning_gradexplode.diagnose.layers import LARGE_GAIN, gain_of, layers
from lightning_gradexplode.records import Evidence

EVIDENT = 0.7
"""Confidence from which the scale of the data explains an overflow of the first step."""

HUGE_GAIN = 30.0
"""Product of the factors by which large weights multiply their inputs from which they explain an overflow of the first
step."""


def origin_of_overflow(evidence: Evidence) -> str | None:
    """Return a sentence about what has made the argument of an operation too large, None if nothing evident has."""
    return _of_rate(evidence) or _of_rows(evidence) or _of_start(evidence)


def _of_rate(evidence: Evidence) -> str | None:
    rise = abrupt_rise(evidence)
    if rise is None:
        return None
    return f"The learning rate had risen from {rise.before:.3g} to {rise.after:.3g} at step {rise.step}, right before."


def _of_rows(evidence: Evidence) -> str | None:
    field = field_of_failed_rows(evidence)
    if field is None:
        return None
    return f"`{place_of(field)}` is far outside of the other rows in {rows_of(field.outlier_rows)}, as here."


def _of_start(evidence: Evidence) -> str | None:
    """Return a sentence if the first loss is not finite, and inputs or weights are on a scale that explains it."""
    failed = first_nonfinite(evidence)
    if failed is None or failed.step != evidence.run.first_step:
        return None
    data, of_targets = unscaled_data(evidence), [place_of(one) for one in targets(evidence)]
    if data is not None and data.confidence >= EVIDENT and data.where not in of_targets:
        return f"It is the first loss of the run, and the scale of {data.where} explains so large an argument."
    large = sorted((one for one in layers(evidence.run) if gain_of(one) > LARGE_GAIN), key=gain_of, reverse=True)
    if math.prod(map(gain_of, large)) < HUGE_GAIN:
        return None
    others = f", and {len(large) - 1} more weights by more than {LARGE_GAIN:g}" if len(large) > 1 else ""
    largest = f"`{large[0].name}` multiplies its inputs by {gain_of(large[0]):.3g}"
    return f"It is the first loss of the run, and {largest}{others}."
