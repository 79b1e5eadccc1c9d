"""The names under which the scalars of a record are logged."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.text import printable

PREFIX = "gradexplode"

TOTALS = (
    "grad_norm",
    "grad_norm_clipped",
    "grad_max",
    "clip_val",
    "clip_rate",
    "update_ratio",
    "weight_norm",
    "nonfinite_count",
    "severity",
    "skipped_steps",
)
"""Fields of `StepRecord` that are logged for the whole model."""

PER_PARAMETER = (
    "grad_norm",
    "grad_norm_clipped",
    "grad_max",
    "update_ratio",
    "weight_norm",
    "nonfinite_count",
)
"""Keys of `StepRecord.per_parameter` that are logged for each parameter with ``per_parameter=True``."""


def total_scalars(record: StepRecord, prefix: str = PREFIX) -> dict[str, float]:
    """Return the scalars of the whole model, or of one optimizer, by logged name: ``<prefix>/<name>``.

    Scalars that were not measured are left out.

    Args:
        record: The record.
        prefix: The first part of the names.
    """
    measured = {name: getattr(record, name) for name in TOTALS}
    values = {name: float(value) for name, value in measured.items() if value is not None} | dict(record.responses)
    return {f"{prefix}/{name}": value for name, value in values.items()}


def parameter_scalars(record: StepRecord, shown: Sequence[bool]) -> dict[str, float]:
    """Return the scalars of each shown parameter, by logged name: ``gradexplode/<quantity>/<parameter>``.

    Args:
        record: The record of one optimizer.
        shown: Whether each of its parameters is logged by itself.
    """
    return {
        f"{PREFIX}/{quantity}/{printable(name)}": float(value)
        for quantity in PER_PARAMETER
        if quantity in record.per_parameter
        for name, value, is_shown in zip(record.parameters, record.per_parameter[quantity], shown, strict=True)
        if is_shown
    }
