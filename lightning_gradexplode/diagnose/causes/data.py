"""Causes in the batch: values that are not finite, on the wrong scale, or far outside those of other batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import (
    inputs,
    is_float,
    is_from_graph,
    is_index,
    nonfinite_fields,
    place_of,
    rows_of,
    samples_of,
    scale_of,
    size_of,
    targets,
)
from lightning_gradexplode.diagnose.curves import critical_step, curve, first_nonfinite, is_critical, loss_curve, signs
from lightning_gradexplode.diagnose.trends import abrupt_step, trend
from lightning_gradexplode.records import BatchFacts, Cause, Evidence, FieldFacts

LARGE_SCALE = ((1000.0, 0.9), (100.0, 0.8), (30.0, 0.65), (10.0, 0.45))
"""Root mean square of a field, and the confidence that a field on such a scale or a larger one is at fault."""

LARGE_WHOLE = 1e5
"""From this size on, whole numbers are taken for quantities such as times, unless a table has as many rows."""

FAINT = 0.3
"""Confidence of a cause that is listed and not named."""

FAR_OUTSIDE = 10.0
"""So many times the largest value of earlier batches, a value is far outside of them."""


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
        + (f", in {rows_of(rows)} of {batch.size or field.shape[0] if field.shape else 1}." if rows else "."),
        samples_of(batch, rows),
        "Earlier batches held none." if field.usual_least is not None else "",
    ]
    confidence = 0.97 if first_nonfinite(evidence) is not None else 0.5
    experiments, replay = evidence.experiments, evidence.replay
    if experiments is not None and experiments.finite_without_rows is not None and experiments.rows_removed:
        same = set(experiments.rows_removed) >= set(rows)
        if experiments.finite_without_rows and same:
            sentences.append(f"Without {rows_of(rows)} the step is finite.")
        elif same:
            sentences.append(f"Without {rows_of(rows)} the step is not finite either.")
            confidence = 0.5
    elif replay is not None and replay.first is not None and not set(replay.first.rows) & set(rows):
        sentences.append("The first operation with a non-finite result took finite values, though.")
        confidence = 0.4
    look = f"look at {rows_of(rows)} of `{place}`" if rows else f"look at `{place}`"
    check = f"`assert torch.isfinite({'x' if is_from_graph(field) else place}).all()`"
    if is_from_graph(field):
        confidence = _confidence_in_graph(field)
        sentences.append("It is the batch, or was computed from it without a gradient.")
    return Cause(
        kind,
        where,
        tuple(one for one in sentences if one),
        confidence,
        _data_first(evidence, rows, f"{look}; repair, fill or drop such samples in the dataset: {check} finds them"),
    )


def _confidence_in_graph(field: FieldFacts) -> float:
    """Return the confidence that data were not finite, and not made so by an operation that no gradient goes through.

    Whole rows that are not finite may come of a division of each row by its own deviation or largest value, infinite
    targets of an inverse or a logarithm, and constants of any computation.
    """
    size = math.prod(field.shape[1:]) if field.shape else 1
    rows = field.nonfinite_rows or range(field.nan_count // size if size else 0)
    whole = size > 1 and 0 < field.nan_count == size * len(rows)
    difference = field.name.startswith("target of ") and field.name.endswith("sub")
    if whole or field.name.startswith("constant in ") or (difference and field.inf_count):
        return FAINT
    return 0.6 if difference else 0.8


def _data_first(evidence: Evidence, rows: Sequence[int], repair: str) -> tuple[str, ...]:
    """Return the remedies: repairing the data first where many batches hold such rows, skipping where few do."""
    skip = remedies.skip(evidence)
    frequent = len(rows) > 1 or critical_step(evidence) - evidence.run.first_step < 5
    # The forward pass of a batch that is skipped has changed the running averages already.
    averages = running_averages(evidence)
    if averages is not None:
        repair += f"; skipping the batch is not enough, since the running averages of {averages} have taken it in"
        skip = []
    return (repair, *skip) if frequent else (*skip, repair)


def unscaled_data(evidence: Evidence) -> Cause | None:
    """Return the cause if inputs or targets are on a large scale and the run goes wrong from its start."""
    batch = evidence.batch
    if batch is None or not _fails_early(evidence):
        return None
    found = sorted(_large_fields(batch, evidence), key=lambda one: one[0], reverse=True)
    if not found:
        return None
    first_norm = curve(evidence, "grad_norm").first
    scale, _field = found[0]
    confidence = next(value for border, value in LARGE_SCALE if scale >= border)
    sentences = [_scale_sentence(one, field) for one, field in found[:2]]
    if first_norm is not None:
        sentences.append(f"The first gradient, before any update, has the norm {first_norm:.3g}.")
        confidence *= 1.0 if first_norm >= 10 else 0.6
    first_loss = loss_curve(evidence).first
    if first_loss is not None:
        sentences.append(f"The first loss is {first_loss:.4g}.")
    return Cause(
        "unscaled-data",
        " and ".join(place_of(field) for _, field in found[:2]),
        tuple(sentences),
        confidence,
        (
            *(_standardize(field) for _, field in found[:2]),
            *(
                ["normalize inside of the model: `nn.BatchNorm1d(features)` as its first layer"]
                if any(field in inputs(evidence) for _, field in found[:2])
                else []
            ),
        ),
    )


def _standardize(field: FieldFacts) -> str:
    place = place_of(field)
    if is_from_graph(field):
        return f"standardize the {place} by the training set: subtract its mean, and divide by its deviation"
    return remedies.standardize(place)


def _fails_early(evidence: Evidence) -> bool:
    """Return whether the run goes wrong at its start, or has never been below its first loss by much."""
    step = critical_step(evidence)
    if step - evidence.run.first_step <= 30:
        return True
    before = loss_curve(evidence).before(step).finite
    return before.first is not None and before.least is not None and before.least > 0.5 * before.first > 0


def _large_fields(batch: BatchFacts, evidence: Evidence) -> list[tuple[float, FieldFacts]]:
    """Return inputs and real-valued targets on a large scale, with it; not inputs that the first module normalizes."""
    modules = evidence.run.modules
    normalized = bool(modules) and evidence.run.order_is_executed and modules[0].role == "normalization"
    pixels = [one for one in batch.fields if one.dtype == "uint8" and len(one.shape) > 2]
    wholes = [one for one in batch.fields if _is_large_whole(one, evidence)]
    labels = [one for one in targets(evidence) if not one.is_integral or (size_of(one) or 0) > 1000]
    fields = [*([] if normalized else [*inputs(evidence), *pixels, *wholes]), *labels]
    scales = [(_usual_scale(field), field) for field in fields]
    return [(scale, field) for scale, field in scales if scale >= LARGE_SCALE[-1][0]]


def _is_large_whole(field: FieldFacts, evidence: Evidence) -> bool:
    """Return whether a field holds whole numbers too large for indices into a table of this network."""
    if is_float(field) or is_index(field) or field in targets(evidence):
        return False
    rows = max((one.shape[0] for one in evidence.run.parameters if len(one.shape) == 2), default=0)
    return (size_of(field) or 0.0) >= max(LARGE_WHOLE, rows)


def _usual_scale(field: FieldFacts) -> float:
    """Return the scale of a field in most batches: an outlier of this batch is no matter of scale."""
    scale = scale_of(field) or 0.0
    usual = [abs(one) for one in (field.usual_least, field.usual_greatest) if one is not None]
    return min(scale, max(usual)) if usual else scale


def _scale_sentence(scale: float, field: FieldFacts) -> str:
    return (
        f"`{place_of(field)}` ranges from {field.least or 0:.4g} to {field.greatest or 0:.4g}, with a root mean "
        f"square of {scale:.4g}; layers are initialized for inputs and targets near 1."
    )


def outlier_batch(evidence: Evidence) -> Cause | None:
    """Return the cause if this batch, or few rows of it, lies far outside the others."""
    field = outlier_field(evidence.batch)
    experiments = evidence.experiments
    sentences: list[str] = []
    confidence, where = 0.0, None
    if field is not None and evidence.batch is not None:
        place = place_of(field)
        usual = max(abs(field.usual_least or 0.0), abs(field.usual_greatest or 0.0))
        where = f"{place}, {rows_of(field.outlier_rows)}" if field.outlier_rows else place
        sentences.append(f"`{place}` reaches {size_of(field) or 0:.4g}; earlier batches stayed within {usual:.4g}.")
        sentences.append(samples_of(evidence.batch, field.outlier_rows))
        confidence = 0.8
    without = experiments.grad_norm_without_rows if experiments is not None else None
    alone = experiments.batch_grad_norm if experiments is not None else None
    if experiments is not None and without is not None and alone is not None and without < 0.3 * alone:
        sentences.append(
            f"Without {rows_of(experiments.rows_removed)} the gradient norm is {without:.3g}, not {alone:.3g}."
        )
        where = where or f"batch, {rows_of(experiments.rows_removed)}"
        confidence = 0.9
    jump = _single_jump(evidence)
    if jump:
        sentences.append(jump)
        abrupt = abrupt_step(evidence, "loss") is not None
        # Data that are known to be as usual are little reason of a jump.
        confidence = max(confidence, 0.65 if abrupt and not _is_usual(evidence) else 0.4 if abrupt else 0.45)
    share = experiments.row_share if experiments is not None else None
    if experiments is not None and share is not None and share >= 0.5 and confidence:
        row = "" if experiments.heaviest_row is None else f" ({experiments.heaviest_row})"
        sentences.append(f"One row{row} makes {share:.0%} of the loss.")
        confidence = max(confidence, 0.6)
    if not confidence or (trend(evidence).steps < 5 and field is None):
        return None
    return Cause(
        "outlier-batch",
        where,
        tuple(one for one in sentences if one),
        confidence,
        (*_outlier_remedies(evidence, field, where),),
    )


def _outlier_remedies(evidence: Evidence, field: FieldFacts | None, where: str | None) -> list[str]:
    """Return the remedies, limiting the values first where the forward pass alone does harm.

    Args:
        evidence: The evidence.
        field: The field that lies outside, None if none does.
        where: The place.
    """
    limit = f"look at {where}, and drop or limit such values" if where else "look at this batch"
    averages = None if field is None or field not in inputs(evidence) else running_averages(evidence)
    if field is not None and field.usual_least is not None and field.usual_greatest is not None:
        least, greatest = (remedies.rounded(one, 2) for one in (field.usual_least, field.usual_greatest))
        limit += (
            f": `{place_of(field)} = {place_of(field)}.clamp({least:g}, {greatest:g})`, the range of earlier batches"
        )
    # No value clips a gradient that is not finite.
    is_lost = field is not None and first_nonfinite(evidence) is not None
    update = [*([] if is_lost else remedies.clip(evidence)), *remedies.skip(evidence)]
    if averages is not None:
        limit += f"; the running averages of {averages} take it in even where its update is clipped or left out"
    huber = "use a loss that grows linearly for outliers: `F.huber_loss(prediction, target)`"
    return [*update, limit, huber] if averages is None else [limit, *update, huber]


def running_averages(evidence: Evidence) -> str | None:
    """Return the class of the first module that keeps running averages of what it takes, None if there is none."""
    return next((one.kind for one in evidence.run.modules if "BatchNorm" in one.kind), None)


def outlier_field(batch: BatchFacts | None) -> FieldFacts | None:
    """Return the field that is the farthest outside of earlier batches, None if none is."""
    if batch is None:
        return None
    ratios = []
    for field in batch.fields:
        size = size_of(field)
        usual = max(abs(field.usual_least or 0.0), abs(field.usual_greatest or 0.0))
        if size is None or field.usual_greatest is None or usual <= 0:
            continue
        if size >= FAR_OUTSIDE * usual:
            ratios.append((size / usual, field))
    return max(ratios, key=lambda one: one[0])[1] if ratios else None


def _is_usual(evidence: Evidence) -> bool:
    """Return whether the ranges of all fields of the batch are known to be those of earlier batches."""
    batch = evidence.batch
    return (
        batch is not None
        and bool(batch.fields)
        and all(one.usual_greatest is not None and not one.outlier_rows for one in batch.fields)
        and outlier_field(batch) is None
    )


def _single_jump(evidence: Evidence) -> str:
    """Return a sentence if loss or gradient jumped at one step after a calm run and came back; empty otherwise."""
    abrupt = abrupt_step(evidence, "loss")
    if abrupt is not None:
        loss = loss_curve(evidence)
        return (
            f"The loss is {loss.at(abrupt):.4g} at step {abrupt}, before its update; until then it was at most "
            f"{loss.before(abrupt).greatest:.4g}, and the updates were ordinary."
        )
    if "gradient-spike" not in signs(evidence) or is_critical(evidence):
        return ""
    step = next(one.step for one in evidence.findings if one.sign == "gradient-spike")
    norms = curve(evidence, "grad_norm").finite
    before, value, after = norms.before(step).median, norms.at(step), norms.since(step + 1).median
    if before is None or value is None or (after is not None and after > 4 * before):
        return ""
    came_back = "" if after is None else f", and {after:.3g} after it"
    return f"The gradient norm is {value:.3g} at step {step}; it was {before:.3g} before{came_back}."
