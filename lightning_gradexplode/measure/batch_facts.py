"""What is recorded of the batch of an incident: every element is looked at, and none is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_gradexplode.measure.batch_fields import Field, batch_size, fields_of
from lightning_gradexplode.measure.field_rows import most_common, scan_rows
from lightning_gradexplode.measure.field_totals import scan
from lightning_gradexplode.measure.usual_ranges import UsualBatch, UsualField
from lightning_gradexplode.records import BatchFacts, FieldFacts, RunFacts


def collect_batch_facts(
    batch: Any,
    usual: UsualBatch | None = None,
    *,
    batch_idx: int = 0,
    epoch: int = 0,
    is_last: bool = False,
    sample_indices: tuple[int, ...] | None = None,
) -> BatchFacts:
    """Return what a diagnosis needs to know of a batch, from all of its elements.

    Args:
        batch: A batch of any kind, see `lightning_gradexplode.measure.batch_fields.fields_of`.
        usual: What was usual of earlier batches.
        batch_idx: Its index in the epoch.
        epoch: Index of the epoch.
        is_last: Whether it is the last one of its epoch.
        sample_indices: Index in the dataset of each row, see `lightning_gradexplode.measure.sample_indices`.

    Returns:
        The facts. A field that torch cannot compute with has its name, shape and type only.
    """
    usual = usual or UsualBatch()
    fields = fields_of(batch)
    size = batch_size(fields)
    if sample_indices is not None:
        # Rows of a field without the dimension of the batch, such as class weights, would be taken for samples.
        fields = [replace(field, has_rows=field.has_rows and size in field.shape) for field in fields]
    return BatchFacts(
        fields=tuple(_collected(field, usual.fields.get(field.name)) for field in fields),
        batch_idx=batch_idx,
        epoch=epoch,
        size=size,
        usual_size=usual.size,
        is_last=is_last,
        sample_indices=sample_indices if sample_indices is not None and len(sample_indices) == size else None,
    )


def usual_batch_facts(batch: BatchFacts, usual: UsualBatch) -> BatchFacts:
    """Return facts of the batches of a run, from the ranges of those that were sampled.

    Args:
        batch: A batch of which names, shapes and types are known.
        usual: What was usual of batches. The middle of a field's range stands for its mean, unless single elements make
            that range.
    """
    fields = []
    for field in batch.fields:
        found = usual.fields.get(field.name)
        if found is not None and found.stds:
            width, middle = found.greatest - found.least, (found.least + found.greatest) / 2
            field = replace(
                field,
                least=found.least,
                greatest=found.greatest,
                mean=middle if width <= 20 * found.std else 0.0,
                std=found.std,
                usual_std=found.std,
            )
        fields.append(field)
    return replace(batch, fields=tuple(fields), usual_size=usual.size)


def with_first_batch(facts: RunFacts, batch: Any) -> RunFacts:
    """Return the facts of a run with the number of rows of its first batch, and the length of its sequences.

    A sequence length is only recorded where a module is recurrent. It is the second dimension (the first where the
    second is that of the batch) of the first field that can be an input of it: real numbers with three dimensions or
    more, or whole numbers with two.
    """
    fields = fields_of(batch)
    size = batch_size(fields)
    lengths = [
        field.shape[1] if field.shape[0] == size else field.shape[0]
        for field in fields
        if len(field.shape) > (2 if "float" in field.dtype else 1)
    ]
    is_recurrent = any(module.role == "recurrent" for module in facts.modules)
    return replace(facts, batch_size=size, sequence_length=lengths[0] if lengths and is_recurrent else None)


def _collected(field: Field, usual: UsualField | None) -> FieldFacts:
    known = FieldFacts(name=field.name, shape=field.shape, dtype=field.dtype)
    if usual is not None:
        known = replace(known, usual_nonfinite=usual.is_nonfinite)
    if usual is not None and usual.stds:
        known = replace(known, usual_least=usual.least, usual_greatest=usual.greatest, usual_std=usual.std)
    for add in (_with_totals, _with_rows):
        known = _attempted(add, known, field, usual)
    return known


def _attempted(
    add: Callable[[FieldFacts, Field, UsualField | None], FieldFacts],
    known: FieldFacts,
    field: Field,
    usual: UsualField | None,
) -> FieldFacts:
    """Add to the facts what can be computed of a field; some types, and the meta device, lack the operations."""
    try:
        return add(known, field, usual)
    except (RuntimeError, NotImplementedError, TypeError):
        return known


def _with_totals(known: FieldFacts, field: Field, usual: UsualField | None) -> FieldFacts:
    found = scan(field)
    if not found.elements:
        return known
    common, share = most_common(field, found) if found.are_whole else (None, 0.0)
    return replace(
        known,
        nan_count=found.nans,
        inf_count=found.infinities,
        least=found.least if found.count else None,
        greatest=found.greatest if found.count else None,
        mean=found.mean if found.count else None,
        std=found.std,
        is_integral=found.are_whole,
        most_common=common,
        most_common_share=share,
    )


def _with_rows(known: FieldFacts, field: Field, usual: UsualField | None) -> FieldFacts:
    rows = scan_rows(field, usual.largest if usual is not None and usual.stds else None)
    return replace(known, nonfinite_rows=rows.nonfinite, outlier_rows=rows.outliers, row_size=rows.size)
