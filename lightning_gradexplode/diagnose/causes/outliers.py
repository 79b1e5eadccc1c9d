"""Batches, or rows of a batch, far outside the range of the others."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import (
    inputs,
    is_float,
    is_from_graph,
    place_of,
    rows_of,
    running_averages,
    samples_of,
    size_of,
)
from lightning_gradexplode.diagnose.causes.lost_progress import has_ordinary_loss
from lightning_gradexplode.diagnose.causes.operation_evidence import follows_divergence
from lightning_gradexplode.diagnose.curves import critical_step, curve, first_nonfinite, is_critical, loss_curve, signs
from lightning_gradexplode.diagnose.learning import ENOUGH
from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.diagnose.trends import abrupt_step, trend
from lightning_gradexplode.records import BatchFacts, Cause, Evidence, FieldFacts

FAR_OUTSIDE = 10.0
"""Multiple of the largest value of earlier batches from which a value is far outside of them."""

FAR_FROM_OTHERS = 100.0
"""Multiple of the size of the other rows from which a row is far outside of them, even if earlier batches have such."""

FAR_FROM_USUAL = 1e4
"""Multiple of the usual loss of the run from which the loss of a batch is far above it."""

FAINT = 0.3
"""Confidence of a cause that is listed but not reported as the cause."""


def outlier_batch(evidence: Evidence) -> Cause | None:
    """Return the cause if this batch, or a few rows of it, are far outside the range of the others."""
    field = outlier_field(evidence.batch)
    experiments = evidence.experiments
    sentences: list[str] = []
    confidence, where = 0.0, None
    course = trend(evidence)
    if field is not None and evidence.batch is not None:
        place = place_of(field)
        usual = max(abs(field.usual_least or 0.0), abs(field.usual_greatest or 0.0))
        where = f"{place}, {rows_of(field.outlier_rows)}" if field.outlier_rows else place
        sentences.append(f"`{place}` reaches {size_of(field) or 0:.4g}; earlier batches stayed within {usual:.4g}.")
        sentences.append(samples_of(evidence.batch, field.outlier_rows))
        confidence = 0.8
        if is_from_graph(field) and follows_divergence(course):
            # The input of a layer may be the output of another network, such as a generator.
            confidence = FAINT
    if field is None and (marked := _marked_field(evidence)) is not None:
        return _of_marked_rows(evidence, marked)
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
        # If the ranges of the data are those of earlier batches, something else has grown.
        confidence = max(confidence, FAINT if abrupt and _is_usual(evidence) else 0.45)
    if not confidence and not is_critical(evidence):
        return far_off_batch(evidence)
    if not confidence and not _knows_usual_ranges(evidence.batch) and (back := _falls_back(evidence)) is not None:
        return back
    if not confidence or (course.steps < 5 and field is None):
        return None
    return Cause(
        "outlier-batch",
        where,
        tuple(one for one in sentences if one),
        confidence,
        (*_outlier_remedies(evidence, field, where),),
    )


def _outlier_remedies(evidence: Evidence, field: FieldFacts | None, where: str | None) -> list[str]:
    """Return the remedies, with a limit of the values first if the forward pass alone does harm.

    Args:
        evidence: The evidence.
        field: The field with outliers, None without one.
        where: The rows or the field in words, None if they are not known.
    """
    jump = abrupt_step(evidence, "loss")
    this = "this batch" if jump is None else f"the batch of step {jump}"
    limit = f"look at {where}, and drop or limit such values" if where else f"look at {this}"
    averages = None if field is None or field not in inputs(evidence) else running_averages(evidence)
    if field is not None and field.usual_least is not None and field.usual_greatest is not None:
        least, greatest = (remedies.rounded(one, 2) for one in (field.usual_least, field.usual_greatest))
        limit += (
            f": `{place_of(field)} = {place_of(field)}.clamp({least:g}, {greatest:g})`, the range of earlier batches"
        )
    # Clipping does not help against a gradient that is not finite.
    is_lost = field is not None and first_nonfinite(evidence) is not None
    update = [*([] if is_lost else remedies.clip(evidence)), *remedies.skip(evidence)]
    if averages is not None:
        limit += f"; the running averages of {averages} include it even if its update is clipped or skipped"
    huber = "use a loss that grows linearly for outliers: `F.huber_loss(prediction, target)`"
    return [*update, limit, huber] if averages is None else [limit, *update, huber]


def far_off_batches(evidence: Evidence) -> tuple[int, ...]:
    """Return the steps of batches whose loss is far above that of the batches before and after them.

    A loss that an update has raised stays up at the next step. One such step may be an accident of the run, and where
    they are many there is no usual loss: then none is returned.
    """
    loss = loss_curve(evidence).finite
    size = np.abs(loss.value)
    if len(size) < ENOUGH:
        return ()
    around = np.maximum(np.append(0.0, size[:-1]), np.append(size[1:], 0.0))
    alone = (size >= FAR_FROM_USUAL * np.median(size)) & (size >= FAR_FROM_OTHERS * around)
    steps = tuple(int(one) for one in loss.step[alone])
    return steps if 2 <= len(steps) <= len(size) / 4 else ()


def _knows_usual_ranges(batch: BatchFacts | None) -> bool:
    """Return whether an outlier of the batch would be known, since earlier batches are."""
    return batch is not None and any(one.usual_std is not None for one in batch.fields)


def _falls_back(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss of a batch was far above those before and after it, and that of a later one again.

    Updates that raise the loss that far do not bring it back at the next step, unless the learning rate is one with
    which most networks fail.
    """
    rate, usual = remedies.learning_rate(evidence), usual_rate(evidence.run)
    if rate is None or usual is None or rate > usual[1]:
        return None
    loss = loss_curve(evidence).since(critical_step(evidence) - ENOUGH // 2).finite
    size = np.abs(loss.value)
    if len(size) < 5:
        return None
    around = np.maximum(size[:-2], size[2:])
    alone = np.flatnonzero(size[1:-1] >= FAR_FROM_OTHERS * np.maximum(around, 1e-30)) + 1
    if not len(alone) or not np.any(size[alone[0] + 2 :] >= FAR_OUTSIDE * size[alone[0] + 1]):
        return None
    first = int(alone[0])
    high = loss.step[size >= FAR_OUTSIDE * size[first + 1]]
    named = ", ".join(str(one) for one in high[:4].tolist())
    sentence = (
        f"The loss of step {int(loss.step[first])} was {loss.value[first]:.4g}, that of the next one "
        f"{loss.value[first + 1]:.4g}, and those of later ones are far higher again: their batches hold something that "
        "the others do not."
    )
    return Cause(
        "outlier-batch",
        None,
        (sentence,),
        0.5,
        (
            f"look at the rows in the batches of steps {named}, and scale, limit or drop what the others do not hold",
            "use a loss that grows linearly for outliers: `F.huber_loss(prediction, target)`",
            *remedies.clip(evidence),
            *remedies.skip(evidence),
        ),
    )


def far_off_batch(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss of some batches is far above that of the others each time, and the next is not."""
    steps = far_off_batches(evidence)
    if not steps:
        return None
    loss = loss_curve(evidence).finite
    usual, greatest = float(np.median(np.abs(loss.value))), float(np.abs(loss.value).max())
    fields = () if evidence.batch is None else evidence.batch.fields
    far = [one for one in fields if one.std and (size_of(one) or 0.0) >= FAR_FROM_OTHERS * one.std]
    where = max(far, key=lambda one: (size_of(one) or 0.0) / (one.std or 1.0), default=None)
    named = ", ".join(str(one) for one in steps[:3])
    sentences = [
        f"At {len(steps)} of {len(loss)} steps, such as {named}, the loss is far above its usual {usual:.3g}, up to "
        f"{greatest:.3g}, and usual again at the next: their batches hold something that the others do not.",
    ]
    if where is not None:
        sentences.append(
            f"`{place_of(where)}` reaches {size_of(where):.4g}, and has a usual deviation of {where.std:.3g}."
        )
    place = None if where is None else place_of(where)
    rows = f"the rows of `{place}`" if place else "the rows"
    limit = f"look at {rows} in the batches of steps {named}, and drop or limit such values"
    huber = "use a loss that grows linearly for outliers: `F.huber_loss(prediction, target)`"
    return Cause("outlier-batch", place, tuple(sentences), 0.75, (limit, huber, *remedies.clip(evidence)))


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


def _of_marked_rows(evidence: Evidence, field: FieldFacts) -> Cause:
    """Return the cause of a few rows that are far outside of the others in this batch and in earlier ones."""
    place, rows = place_of(field), rows_of(field.outlier_rows)
    samples = samples_of(evidence.batch, field.outlier_rows) if evidence.batch is not None else ""
    reach = f"`{place}` reaches {size_of(field) or 0:.4g} in {rows}; half of the rows stay within {field.row_size:.3g}."
    repair = "if such values mark missing ones, drop or fill them in the dataset, else limit them"
    return Cause(
        "outlier-batch",
        f"{place}, {rows}",
        tuple(one for one in (reach, samples) if one),
        0.7,
        (f"look at {rows} of `{place}`: {repair}", *remedies.clip(evidence)),
    )


def _marked_field(evidence: Evidence) -> FieldFacts | None:
    """Return a field with values in a few rows, also of earlier batches, that are far outside the scale of the data.

    These are markers of missing values, such as -9999, which make the loss huge from the start.
    """
    fields = () if evidence.batch is None else evidence.batch.fields
    loss = loss_curve(evidence).before(evidence.step + 1).greatest
    known = [one for one in fields if one.outlier_rows and one.row_size and is_float(one)]
    far = [one for one in known if (size_of(one) or 0.0) >= FAR_FROM_OTHERS * max(one.row_size or 0.0, 1.0)]
    is_huge = loss is not None and loss > FAR_FROM_OTHERS and trend(evidence).steps > 0
    return field_of_failed_rows(evidence) or (far[0] if far and is_huge else None)


def field_of_failed_rows(evidence: Evidence) -> FieldFacts | None:
    """Return the field with rows far outside of the others, if the step has failed in no other rows; else None."""
    first = evidence.replay.first if evidence.replay is not None else None
    if first is None or not first.rows or evidence.batch is None:
        return None
    fields = [one for one in evidence.batch.fields if is_float(one) and {*first.rows} <= {*one.outlier_rows}]
    far = (one for one in fields if (size_of(one) or 0.0) >= FAR_FROM_OTHERS * max(one.row_size or 0.0, 1.0))
    return next(far, None)


def _is_usual(evidence: Evidence) -> bool:
    """Return whether the ranges of all fields of the batch are known to be those of earlier batches.

    What the graph of a loss shows is of the step that failed in the end, after the loss has jumped.
    """
    batch = evidence.batch
    fields = batch.fields if batch is not None else ()
    is_known = bool(fields) and all(one.usual_greatest is not None and not is_from_graph(one) for one in fields)
    return is_known and outlier_field(batch) is None


def _is_short(batch: BatchFacts | None) -> bool:
    """Return whether a batch has so few rows that the standard deviation of its mean gradient is at least doubled."""
    return (
        batch is not None and bool(batch.size and batch.usual_size) and 4 * (batch.size or 0) <= (batch.usual_size or 0)
    )


def _single_jump(evidence: Evidence) -> str:
    """Return a sentence if loss or gradient jumped at one step of a calm run and returned; empty otherwise."""
    abrupt = abrupt_step(evidence, "loss")
    if abrupt is not None:
        loss = loss_curve(evidence)
        return (
            f"The loss is {loss.at(abrupt):.4g} at step {abrupt}, before its update; until then it was at most "
            f"{loss.before(abrupt).greatest:.4g}, and the updates were ordinary."
        )
    if "gradient-spike" not in signs(evidence) or is_critical(evidence) or _is_short(evidence.batch):
        return ""
    step = next(one.step for one in evidence.findings if one.sign == "gradient-spike")
    norms = curve(evidence, "grad_norm").finite
    before, value, after = norms.before(step).median, norms.at(step), norms.since(step + 1).median
    if before is None or value is None or (after is not None and after > 4 * before):
        return ""
    if has_ordinary_loss(evidence, step):
        return ""  # a batch unlike the others has a high loss
    came_back = "" if after is None else f", and {after:.3g} after it"
    return f"The gradient norm is {value:.3g} at step {step}; it was {before:.3g} before{came_back}."
