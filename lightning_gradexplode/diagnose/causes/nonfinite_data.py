"""Inputs and targets that hold NaN or infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import (
    is_computed,
    is_from_graph,
    nonfinite_fields,
    place_of,
    rows_of,
    running_averages,
    samples_of,
    targets,
    unusual_infinities,
)
from lightning_gradexplode.diagnose.causes.operation_evidence import follows_divergence
from lightning_gradexplode.diagnose.curves import critical_step, first_nonfinite
from lightning_gradexplode.diagnose.faults.operations import name_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, FieldFacts

FAINT = 0.3
"""Confidence of a cause that is listed but not reported as the cause."""


def nonfinite_input(evidence: Evidence) -> Cause | None:
    """Return the cause if an input of the batch holds NaN or infinity."""
    return _nonfinite(evidence, "nonfinite-input")


def nonfinite_target(evidence: Evidence) -> Cause | None:
    """Return the cause if a target of the batch holds NaN or infinity."""
    return _nonfinite(evidence, "nonfinite-target")


def _nonfinite(evidence: Evidence, kind: str) -> Cause | None:
    batch = evidence.batch
    if batch is None:
        return None
    wanted = {field.name for field in targets(evidence)}
    replay = evidence.replay
    if replay is not None and replay.source_name is not None and replay.source_reaches_layers is False:
        wanted.add(replay.source_name)  # only the loss reads it
    found = [one for one in nonfinite_fields(batch) if (one.name in wanted) == (kind == "nonfinite-target")]
    if not found:
        return None
    field = found[0]
    place = place_of(field)
    rows = field.nonfinite_rows
    counts = [f"{count} {word}" for count, word in ((field.nan_count, "NaN"), (field.inf_count, "infinite")) if count]
    where = f"{place}, {rows_of(rows)}" if rows else place
    sentences = [
        f"`{place}` holds {' and '.join(counts)} element{'s' if field.nan_count + field.inf_count > 1 else ''}"
        + (f", in {rows_of(rows)} of {batch.size if batch.size in field.shape else field.shape[0]}." if rows else "."),
        samples_of(batch, rows),
        "Earlier batches held none." if field.usual_least is not None else "",
    ]
    confidence = 0.97 if first_nonfinite(evidence) is not None else 0.5
    experiments = evidence.experiments
    if experiments is not None and experiments.finite_without_rows is not None and experiments.rows_removed:
        same = set(experiments.rows_removed) >= set(rows)
        if experiments.finite_without_rows and same:
            sentences.append(f"Without {rows_of(rows)} the step is finite.")
        elif same:
            sentences.append(f"Without {rows_of(rows)} the step is not finite either.")
            confidence = 0.5
    elif replay is not None and replay.first is not None and unusual_infinities(evidence) is field:
        sentences.append(f"They vanished in the loss, and `{name_of(replay.first)}` made NaN of them.")
    elif replay is not None and replay.first is not None and not set(replay.first.rows) & set(rows):
        sentences.append("The first operation with a non-finite result took finite values, though.")
        confidence = 0.4
    look = f"look at {rows_of(rows)} of `{place}`" if rows else f"look at `{place}`"
    check = f"`assert torch.isfinite({'x' if is_from_graph(field) else place}).all()`"
    if is_from_graph(field):
        is_first = critical_step(evidence) == evidence.run.first_step
        computed = FAINT if follows_divergence(trend(evidence)) else _confidence_in_graph(field, is_first)
        confidence = min(confidence, computed)
        sentences.append("It is the batch, or was computed from it without a gradient.")
    return Cause(
        kind,
        where,
        tuple(one for one in sentences if one),
        confidence,
        _data_first(evidence, rows, f"{look}; repair, fill or drop such samples in the dataset: {check} finds them"),
    )


def _confidence_in_graph(field: FieldFacts, is_first: bool) -> float:
    """Return the confidence that the data are not finite, instead of the result of an operation without a gradient.

    Non-finite values may be computed from finite data: whole rows by a division of each row by its standard deviation
    or largest value; a column, if it was finite in other batches, by a division by that of the batch; infinite targets
    by an inverse or a logarithm; infinite values by a conversion to float16; and constants by any computation.

    Args:
        field: The field that is not finite.
        is_first: Whether it is of the first batch of the run.
    """
    size = math.prod(field.shape[1:]) if field.shape else 1
    rows = field.nonfinite_rows or range(field.nan_count // size if size else 0)
    whole = size > 1 and 0 < field.nan_count == size * len(rows)
    difference = field.read_as == "target" and field.read_by.endswith("sub")
    in_all = not is_first and 1 < len(rows) == field.shape[0]
    infinite = field.inf_count > 0 and (difference or field.dtype == "float16")
    if whole or in_all or infinite or is_computed(field):
        return FAINT
    return 0.5 if difference else 0.65


def _data_first(evidence: Evidence, rows: Sequence[int], repair: str) -> tuple[str, ...]:
    """Return the remedies: repairing the data first if many batches hold such rows, skipping if few do."""
    skip = remedies.skip(evidence)
    frequent = len(rows) > 1 or critical_step(evidence) - evidence.run.first_step < 5
    # If the update of a batch is skipped, its forward pass has changed the running averages already.
    averages = running_averages(evidence)
    if averages is not None:
        repair += f"; skipping the batch is not enough, since it has changed the running averages of {averages}"
        skip = []
    return (repair, *skip) if frequent else (*skip, repair)
