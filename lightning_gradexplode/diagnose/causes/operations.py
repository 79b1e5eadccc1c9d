"""Causes in one operation: outside of its domain, over nothing, or beyond the number format."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_float, is_from_graph, place_of, targets
from lightning_gradexplode.diagnose.causes.module_values import nonfinite_constant, written_buffer
from lightning_gradexplode.diagnose.curves import first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.faults import Fault, fault_of
from lightning_gradexplode.diagnose.line_remedies import remedy_for
from lightning_gradexplode.diagnose.operation_names import (
    is_exponential,
    is_half,
    is_product,
    largest_input,
    location_of,
    name_of,
)
from lightning_gradexplode.diagnose.trends import Trend, trend
from lightning_gradexplode.records import Cause, Evidence, FieldFacts, Operation

IGNORED_LABELS = (-100.0, -1.0, 255.0)
"""Labels that losses are usually set to ignore."""


STEEP = frozenset(
    ("acos", "acosh", "asin", "cdist", "float_power", "hypot", "linalg_vector_norm", "norm", "pow", "sqrt", "std")
)
"""Operations that have a finite result where their slope is infinite."""

POLES = frozenset({"div", "log", "log10", "log2", "reciprocal", "rsqrt", "xlogy"})
"""Operations that have neither, so that the loss is finite only if something leaves their result out."""

LEAVING_OUT = frozenset({"where", "masked_fill", "masked_select", "index"})
"""Operations that leave out elements."""

LARGE = 1e8
"""Values beyond it are what an operation may overflow with that is no exponential function."""


def fault(evidence: Evidence) -> tuple[Operation, Fault] | None:
    """Return the operation at fault that a replay has found, and what it has done wrong."""
    replay = evidence.replay
    if replay is None or replay.first is None or replay.status == "not-reproduced":
        return None
    return replay.hidden or replay.first, fault_of(
        replay.first, replay.hidden, _largest_target(evidence), replay.operation_names
    )


def _largest_target(evidence: Evidence) -> float:
    """Return the largest target that is a quantity: the usual one, which no outlier has made."""
    sizes = [
        abs(one.usual_greatest if one.usual_greatest is not None else one.greatest or 0.0)
        for one in targets(evidence)
        if is_float(one)
    ]
    return max(sizes, default=1.0)


def undefined_operation(evidence: Evidence) -> Cause | None:
    """Return the cause if an operation was handed a value at which it, or its slope, is not finite."""
    found = fault(evidence)
    own = nonfinite_constant(evidence) or (written_buffer(evidence) if found is None else None)
    if own is not None:
        return own
    if found is None:
        return _slope_by_elimination(evidence)
    operation, what = found
    if what.kind != "undefined":
        return None
    course = trend(evidence)
    confidence = 0.95
    sentences = [what.sentence, _line(operation), _rows(operation)]
    if _is_consequence(course, operation):
        confidence = 0.5
        sentences.append(_after_divergence(course))
    if is_half(operation):
        confidence = min(confidence, 0.7)
        if evidence.experiments is not None and evidence.experiments.finite_in_float32:
            confidence = 0.3
    remedy = what.remedy if operation.line is None else f"at {operation.file}:{operation.line} {what.remedy}"
    return Cause(
        "undefined-operation",
        location_of(operation),
        tuple(one for one in sentences if one),
        confidence,
        (remedy, *remedies.skip(evidence)),
    )


def forward_overflow(evidence: Evidence) -> Cause | None:
    """Return the cause if finite values grew past the number format in one operation of the forward pass."""
    found = fault(evidence)
    grown = evidence.replay.grown if evidence.replay is not None else None
    if found is None or (grown is not None and not is_exponential(found[0]) and largest_input(found[0]) > LARGE):
        return None if grown is None else _growth(evidence, grown, found)
    operation, what = found
    if what.kind != "overflow":
        return None
    course = trend(evidence)
    confidence = 0.92 if is_exponential(operation) else 0.75
    sentences = [what.sentence, _line(operation), _rows(operation)]
    if is_product(operation) or largest_input(operation) > 1e15:
        # What a matrix product overflows with has grown before it: that growth is the cause.
        confidence = 0.45 if course.steps < 2 else 0.35
        if is_from_graph_only(evidence):
            confidence = 0.3  # what has grown, and where, is not known there
    if _is_consequence(course, operation):
        confidence = min(confidence, 0.55 if is_exponential(operation) else 0.25)
        sentences.append(_after_divergence(course))
    if is_half(operation):
        confidence = min(confidence, 0.4)
    remedy = what.remedy if operation.line is None else f"at {operation.file}:{operation.line} {what.remedy}"
    return Cause(
        "forward-overflow",
        location_of(operation),
        tuple(one for one in sentences if one),
        confidence,
        (remedy, *(remedies.skip(evidence) if course.steps > 5 else ())),
    )


def is_from_graph_only(evidence: Evidence) -> bool:
    """Return whether operations are known from the graph of the loss, without a replay of the step."""
    batch = evidence.batch
    return batch is not None and any(map(is_from_graph, batch.fields))


def _growth(evidence: Evidence, grown: Operation, failed: tuple[Operation, Fault] | None) -> Cause | None:
    """Return the cause if an exponential function without a bound made what others overflow with.

    Args:
        evidence: The evidence.
        grown: The exponential function.
        failed: The operation with a result that is not finite, None where all was finite.
    """
    if failed is not None and failed[1].kind not in ("overflow", "undefined"):
        return None
    course = trend(evidence)
    what = fault_of(grown, needed=_largest_target(evidence))
    end = "" if failed is None else f" `{name_of(failed[0])}` ended beyond the number format with it."
    sentences = [what.sentence + end, _line(grown)]
    confidence = 0.85 if failed is not None else 0.7
    if _is_consequence(course, grown):
        confidence = 0.5 if failed is not None else 0.3
        sentences.append(_after_divergence(course))
    remedy = what.remedy if grown.line is None else f"at {grown.file}:{grown.line} {what.remedy}"
    return Cause("forward-overflow", location_of(grown), tuple(one for one in sentences if one), confidence, (remedy,))


def empty_reduction(evidence: Evidence) -> Cause | None:
    """Return the cause if a mean, a standard deviation or a loss was computed over nothing, or over one element."""
    found = fault(evidence)
    ignored = _all_ignored(evidence)
    single = _single_row(evidence)
    if found is not None and found[1].kind == "empty":
        operation, what = found
        where: str | None = location_of(operation)
        sentences, confidence, remedy = [what.sentence, _line(operation), _rows(operation)], 0.95, what.remedy
        if operation.line is not None:
            remedy = f"at {operation.file}:{operation.line} {remedy}"
    elif ignored is not None and first_nonfinite(evidence) is not None and found is None:
        where, sentences, confidence = place_of(ignored), [], 0.9
        remedy = (
            'divide by a count that is at least one: `loss = F.cross_entropy(logits, labels, reduction="sum") / '
            f"(labels != {ignored.most_common or 0:.0f}).sum().clamp(min=1)`"
        )
    elif evidence.update_is_harmless and found is None and _loss_is_nan(evidence):
        where, confidence = None, 0.7 if ignored is not None or single else 0.5
        sentences = ["The loss is not finite and no gradient comes of it, as a mean over an empty selection has none."]
        remedy = "leave the term out where nothing is selected: `loss = term.sum() / max(term.numel(), 1)`"
    elif single and first_nonfinite(evidence) is not None and found is None and not trend(evidence).has_diverged:
        where, sentences, confidence = "batch", [], 0.6
        remedy = "drop the last incomplete batch: `DataLoader(..., drop_last=True)`"
    else:
        return None
    if ignored is not None:
        sentences.append(
            f"All labels of `{place_of(ignored)}` are {ignored.most_common or 0:.0f}, which a loss ignores."
        )
    if single:
        sentences.append(single)
    if evidence.update_is_harmless:
        sentences.append("All gradients of the step are zero, so that no weight is changed.")
    more = (
        ["drop the last incomplete batch: `DataLoader(..., drop_last=True)`"]
        if single and "drop_last" not in remedy
        else []
    )
    return Cause(
        "empty-reduction",
        where,
        tuple(one for one in sentences if one),
        confidence,
        (remedy, *more, *remedies.skip(evidence)),
    )


def _loss_is_nan(evidence: Evidence) -> bool:
    """Return whether the loss is NaN, as 0/0 is; an infinite one comes of something else."""
    finding = first_nonfinite(evidence)
    return finding is not None and finding.sign == "nonfinite-loss" and math.isnan(finding.value)


def _slope_by_elimination(evidence: Evidence) -> Cause | None:
    """Return a cause of low confidence if nothing but a slope can be at fault: all is calm and the loss is finite."""
    finding = first_nonfinite(evidence)
    if finding is None or finding.sign != "nonfinite-gradient" or trend(evidence).has_diverged:
        return None
    half = "16" in evidence.run.precision or any("16" in one.dtype for one in evidence.run.parameters)
    loss = loss_curve(evidence).at(finding.step)
    batch = evidence.batch
    if evidence.run.has_unknown_processes:  # the loss of another one may not be finite
        return None
    if half or loss is None or (batch is not None and any(one.nan_count or one.inf_count for one in batch.fields)):
        return None
    if evidence.replay is not None and evidence.replay.status != "not-possible":
        return None
    names = evidence.replay.operation_names if evidence.replay is not None else ()
    known = STEEP | POLES if LEAVING_OUT & {*names} else STEEP
    steep = [name for name in names if name in known or name.startswith("linalg")]
    if names and not steep:
        return None
    besides = [name for name in steep if name != "pow"]
    is_square = "pow" in steep and len(besides) == 1  # of a square, which a root or a norm is usually taken of
    steep = besides if is_square else steep
    beside = " beside powers, of which squares have a slope" if is_square else ""
    likely = f"`{steep[0]}` is the only such operation of the loss{beside}." if len(steep) == 1 else ""
    return Cause(
        "undefined-operation",
        f"`{steep[0]}`" if len(steep) == 1 else finding.where,
        (
            f"The loss is {loss:.4g} at step {finding.step} and its gradient is not finite; nothing had grown before.",
            "An operation without a finite slope does that: a root or a norm of zero, or a `torch.where` whose other "
            f"branch is infinite. {likely or 'Which one is not known.'}",
        ),
        0.5,
        (
            *([remedy_for(steep[0])] if len(steep) == 1 else []),
            *remedies.anomaly_mode(evidence),
            *([] if len(steep) == 1 else ["keep roots and norms away from zero: `torch.sqrt(x + 1e-12)`"]),
            *remedies.skip(evidence),
        ),
    )


def _is_consequence(course: Trend, operation: Operation) -> bool:
    """Return whether the run had diverged before, so that the operation was only the first to fail."""
    return course.steps > 1 and (course.loss_rise >= 10 or course.gradient_growth >= 1000 or course.weight_growth >= 3)


def _after_divergence(course: Trend) -> str:
    return (
        f"The run had left its usual range before: the gradient norm is {course.gradient_growth:.3g} times its usual "
        f"level, the weights are {course.weight_growth:.3g} times those of the start."
    )


def _line(operation: Operation) -> str:
    if operation.file is None or not operation.code:
        return ""
    return f"The line is {operation.file}:{operation.line}: `{operation.code.strip()}`."


def _rows(operation: Operation) -> str:
    if not operation.rows:
        return ""
    listed = ", ".join(str(row) for row in operation.rows[:6]) + (", ..." if len(operation.rows) > 6 else "")
    return f"Its result is not finite in row{'s' if len(operation.rows) > 1 else ''} {listed} of the batch."


def _all_ignored(evidence: Evidence) -> FieldFacts | None:
    """Return the field of labels that are all ignored, None if there is none."""
    if evidence.batch is None:
        return None
    for field in targets(evidence) or evidence.batch.fields:
        if field.is_integral and field.most_common_share >= 1.0 and field.most_common in IGNORED_LABELS:
            return field
    return None


def _single_row(evidence: Evidence) -> str:
    """Return a sentence if the batch has one row and most have more; empty otherwise."""
    batch = evidence.batch
    if batch is None or batch.size != 1 or not batch.usual_size or batch.usual_size <= 1:
        return ""
    last = ", the last one of its epoch" if batch.is_last else ""
    return f"The batch has one row{last}; most batches have {batch.usual_size}."
