"""Means, standard deviations and losses over no elements, or over one."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_computed, place_of, source_in_graph, targets
from lightning_gradexplode.diagnose.causes.operation_evidence import (
    fault,
    found_sentence,
    line_sentence,
    located,
    rows_sentence,
)
from lightning_gradexplode.diagnose.curves import first_nonfinite
from lightning_gradexplode.diagnose.faults.operations import DIVISIONS, base_name, location_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, FieldFacts, Operation

IGNORED_LABELS = (-100.0, -1.0, 255.0)
"""Labels that losses are usually set to ignore."""


def empty_reduction(evidence: Evidence) -> Cause | None:
    """Return the cause if a mean, a standard deviation or a loss was computed over no elements, or over one."""
    found = fault(evidence)
    ignored = _all_ignored(evidence)
    single, number = _single_row(evidence), _computed_number(evidence)
    if found is not None and found[1].kind == "empty":
        operation, what = found
        where: str | None = location_of(operation)
        sentences = [what.sentence, line_sentence(operation), rows_sentence(operation), found_sentence(evidence)]
        confidence = 0.95
        remedy = located(operation, what.remedy)
    elif (
        ignored is not None
        and first_nonfinite(evidence) is not None
        and (found is None or _divides_by_one_zero(found[0]))
    ):
        where, sentences, confidence = place_of(ignored), [], 0.9
        remedy = (
            'divide by a count that is at least one: `loss = F.cross_entropy(logits, labels, reduction="sum") / '
            f"(labels != {ignored.most_common or 0:.0f}).sum().clamp(min=1)`"
        )
    elif evidence.update_is_harmless and found is None and not _has_source(evidence) and _loss_is_nan(evidence):
        where, confidence = None, 0.7 if ignored is not None or single else 0.5
        sentences = ["The loss is not finite and has no gradient, as with a mean over an empty selection."]
        remedy = "leave the term out where nothing is selected: `loss = term.sum() / max(term.numel(), 1)`"
    elif number is not None and found is None:
        value = "infinite" if number.inf_count else "NaN"
        where, confidence = place_of(number), 0.6
        sentences = [
            f"The `{place_of(number)}` is a single number without a gradient, which is {value}. It is no part of the "
            "batch: it was computed, as a ratio to a count that is zero is, or a mean over nothing."
        ]
        remedy = (
            "keep the count that the number is divided by at one or more: `ratio = total / count.clamp(min=1)`, or "
            "leave the term out where nothing is selected"
        )
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
        (remedy, *more, *remedies.skip(evidence), *remedies.step_again(evidence)),
    )


def _divides_by_one_zero(operation: Operation) -> bool:
    """Return whether an operation divided by a single number that is zero, such as the number of labels."""
    divisor = operation.inputs[-1] if operation.inputs and base_name(operation.name) in DIVISIONS else None
    return divisor is not None and math.prod(divisor.shape) == 1 and divisor.least == divisor.greatest == 0.0


def _has_source(evidence: Evidence) -> bool:
    """Return whether the first value that is not finite is known to be of data or a parameter.

    Gradients are zero then because the training loop clears those that are not finite.
    """
    return evidence.replay is not None and evidence.replay.source is not None


def _computed_number(evidence: Evidence) -> FieldFacts | None:
    """Return the single number without a gradient that made a loss non-finite, None if there is none.

    In a loop that learns from one sample at a time a target or an advantage is a single number, too, but what it is
    multiplied by is another one. In float16, a large number may have overflowed.
    """
    field, batch = source_in_graph(evidence), evidence.batch
    if field is None or batch is None or trend(evidence).has_diverged:
        return None
    if field.shape or field.dtype == "float16" or not is_computed(field):
        return None
    return field if field.read_as == "factor" or (batch.size or 0) > 1 else None


def _loss_is_nan(evidence: Evidence) -> bool:
    """Return whether the loss is NaN, as 0/0 is; an infinite loss has another cause."""
    finding = first_nonfinite(evidence)
    return finding is not None and finding.sign == "nonfinite-loss" and math.isnan(finding.value)


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
