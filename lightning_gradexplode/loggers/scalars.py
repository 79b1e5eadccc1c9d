"""The names under which a record's numbers are logged."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.records import StepRecord

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
"""Keys of `StepRecord.per_parameter` that are logged for each parameter, if asked for."""


def totals(record: StepRecord, several_optimizers: bool = False) -> dict[str, float]:
    """Give the scalars of the whole model, by logged name; what was not measured is left out.

    Args:
        record: The step of one optimizer.
        several_optimizers: Give each also as ``gradexplode/optimizer_<index>/<name>``, since several optimizers may
            step in one batch, and their curves would mix.
    """
    found = {name: getattr(record, name) for name in TOTALS}
    values = {name: float(value) for name, value in found.items() if value is not None} | dict(record.responses)
    logged = {f"{PREFIX}/{name}": value for name, value in values.items()}
    if several_optimizers:
        logged |= {f"{PREFIX}/optimizer_{record.optimizer}/{name}": value for name, value in values.items()}
    return logged


def per_parameter(record: StepRecord, shown: Sequence[bool]) -> dict[str, float]:
    """Give the scalars of each shown parameter, by logged name: ``gradexplode/<quantity>/<parameter>``."""
    return {
        f"{PREFIX}/{quantity}/{name}": float(value)
        for quantity in PER_PARAMETER
        if quantity in record.per_parameter
        for name, value, show in zip(record.parameters, record.per_parameter[quantity], shown, strict=True)
        if show
    }
