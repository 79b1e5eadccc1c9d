"""Combination of the records of all optimizers that stepped in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.records.arrays import FloatArray
from lightning_gradexplode.records.step_record import StepRecord


def combine(records: Sequence[StepRecord]) -> StepRecord:
    """Return one record for all optimizers that stepped in a batch; for a single optimizer its own record.

    If an optimizer stepped several times, its last step counts. Norms are roots of summed squares, counts are sums,
    `grad_max`, `severity` and `learning_rate` are maxima, `clip_rate` is the mean. The update ratio is the root of the
    summed squared updates divided by the root of the summed squared weights. A quantity that was not measured for every
    optimizer is None, and so is a `clip_val` that differs between them.

    Args:
        records: The records of one batch, in the order in which the optimizers stepped; at least one.

    Raises:
        ValueError: There is no record.
    """
    if not records:
        raise ValueError("records must contain at least one record, got none")
    last = list({record.optimizer: record for record in sorted(records, key=lambda one: one.optimizer)}.values())
    if len(last) == 1:
        severity = max(record.severity for record in records)
        return last[0] if last[0].severity == severity else replace(last[0], severity=severity)
    latest = records[-1]
    names, per_parameter = _per_parameter(last)
    return replace(
        latest,
        parameters=names,
        loss=_latest(records, "loss"),
        grad_norm=_root_of_squares(_every(last, "grad_norm")),
        grad_norm_clipped=_root_of_squares(_every(last, "grad_norm_clipped")),
        grad_max=_largest(_every(last, "grad_max")),
        nonfinite_count=_sum(_every(last, "nonfinite_count")),
        clip_val=_common(_every(last, "clip_val")),
        clip_algorithm=_common(_every(last, "clip_algorithm")),
        clip_rate=_mean(_every(last, "clip_rate")),
        weight_norm=_root_of_squares(_every(last, "weight_norm")),
        weight_norm_before=_root_of_squares(_every(last, "weight_norm_before")),
        weight_count=_sum(_every(last, "weight_count")),
        update_ratio=_update_ratio(last),
        nonfinite_weights=_sum(_every(last, "nonfinite_weights")),
        loss_scale=_latest(records, "loss_scale"),
        scale_adapts=any(record.scale_adapts for record in last),
        per_parameter=per_parameter,
        histograms=_merged_histograms(last),
        module_gradients=_latest(records, "module_gradients"),
        severity=max(record.severity for record in records),
        skipped_steps=max(record.skipped_steps for record in records),
        skipped_by=_latest(records, "skipped_by"),
        update_taken=_any_update(last),
        learning_rate=_largest(_every(last, "learning_rate")),
        backward_passes=_largest(_every(last, "backward_passes")),
        logged={name: value for record in records for name, value in record.logged.items()},
        responses={name: value for record in records for name, value in record.responses.items()},
    )


def _every(records: Iterable[StepRecord], name: str) -> list[Any]:
    """Return a field of each record; an empty list if it is None in one of them."""
    values = [getattr(record, name) for record in records]
    return [] if None in values else values


def _latest(records: Sequence[StepRecord], name: str) -> Any:
    return next((value for record in reversed(records) if (value := getattr(record, name)) is not None), None)


def _root_of_squares(values: Sequence[float]) -> float | None:
    # `math.hypot` scales, so that norms near the largest float do not overflow; it prefers infinity to NaN.
    if not values:
        return None
    return math.nan if any(math.isnan(value) for value in values) else math.hypot(*values)


def _largest(values: Sequence[Any]) -> Any:
    return max(values, key=lambda value: math.inf if math.isnan(value) else value) if values else None


def _sum(values: Sequence[int]) -> int | None:
    return sum(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _common(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else None


def _update_ratio(records: Sequence[StepRecord]) -> float | None:
    ratios, weights = _every(records, "update_ratio"), _every(records, "weight_norm_before")
    whole = _root_of_squares(weights)
    if not ratios or not whole:
        return None
    update = _root_of_squares([ratio * weight for ratio, weight in zip(ratios, weights, strict=True)])
    return None if update is None else update / whole


def _any_update(records: Sequence[StepRecord]) -> bool | None:
    taken = [record.update_taken for record in records]
    return True if True in taken else None if None in taken else False


def _per_parameter(records: Sequence[StepRecord]) -> tuple[tuple[str, ...], Mapping[str, FloatArray]]:
    """Return the names of all parameters, and of each quantity that was measured of every optimizer one array."""
    names = tuple(dict.fromkeys(name for record in records for name in record.parameters))
    place = {name: index for index, name in enumerate(names)}
    shared = set.intersection(*(set(record.per_parameter) for record in records))
    arrays = {quantity: np.full(len(names), np.nan) for quantity in sorted(shared)}
    for record in records:
        places = [place[name] for name in record.parameters]
        for quantity, array in arrays.items():
            array[places] = record.per_parameter[quantity]
    return names, arrays


def _merged_histograms(records: Sequence[StepRecord]) -> Mapping[str, Mapping[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for record in records:
        for quantity, histograms in record.histograms.items():
            merged.setdefault(quantity, {}).update(histograms)
    return merged
