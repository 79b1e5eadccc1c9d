"""Targets outside of the domain of the loss."""

from __future__ import annotations

import math
import re

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_from_graph, is_same, place_of, rows_of, size_of, targets
from lightning_gradexplode.diagnose.causes.operation_evidence import fault
from lightning_gradexplode.diagnose.causes.target_ranges import (
    code_of,
    has_label_between,
    range_remedies,
    third_label_remedies,
)
from lightning_gradexplode.diagnose.curves import loss_curve
from lightning_gradexplode.diagnose.faults.operations import DIVISIONS, base_name, location_of, name_of
from lightning_gradexplode.records import Cause, Evidence, FieldFacts, LossTerm, Operand, Operation

PROBABILITY_LOSSES = ("binary_cross_entropy", "bce", "kl_div", "multilabel_soft_margin")
COUNT_LOSSES = ("poisson",)

LOGARITHMS = frozenset({"log", "log2", "log10"})

_REWARD = re.compile("reward|return|advantage|rtg")


def target_out_of_range(evidence: Evidence) -> Cause | None:
    """Return the cause if a target is outside the domain of the loss: labels, probabilities, counts, a CTC target."""
    return (
        _misaligned(evidence)
        or _logarithm_of_a_probability(evidence)
        or _outside_domain(evidence)
        or _operation_on_target(evidence)
        or _divergence_from_scores(evidence)
    )


def _misaligned(evidence: Evidence) -> Cause | None:
    found = fault(evidence)
    if found is None or found[1].kind != "alignment":
        return None
    operation, what = found
    return Cause(
        "target-out-of-range",
        location_of(operation),
        (what.sentence, *([f"It is so in {rows_of(operation.rows)} of the batch."] if operation.rows else [])),
        0.95,
        (what.remedy, *remedies.skip(evidence)),
    )


def _outside_domain(evidence: Evidence) -> Cause | None:
    """Return the cause if a loss of probabilities or counts had targets of other ranges."""
    if evidence.batch is None and evidence.replay is None:
        return None
    below = _lowest_loss(evidence)
    for name, target, field in _pairs(evidence):
        least, greatest = target.least, target.greatest
        if least is None or greatest is None:
            continue
        if any(word in name for word in PROBABILITY_LOSSES) and (least < -1e-3 or greatest > 1 + 1e-3):
            takes, are_probabilities = "targets from 0 to 1", True
        elif any(word in name for word in COUNT_LOSSES) and least < 0:
            takes, are_probabilities = "targets of 0 and above", False
        else:
            continue
        where = place_of(field) if field is not None else "targets"
        given = "its target" if field is not None and is_from_graph(field) else f"`{where}`"
        sentences = [f"`{name}` takes {takes}; {given} ranges from {least:.4g} to {greatest:.4g}."]
        if below is not None and below < 0:
            sentences.append(f"The loss has gone down to {below:.4g}: with such targets it has no lower bound.")
        cure = range_remedies(code_of(field), least, greatest, are_probabilities=are_probabilities)
        if are_probabilities and has_label_between(evidence, least, greatest):
            cure = third_label_remedies(code_of(field))
        return Cause("target-out-of-range", where, tuple(sentences), 0.93, cure)
    return _negative_loss(evidence, below)


def _pairs(evidence: Evidence) -> list[tuple[str, Operand | FieldFacts, FieldFacts | None]]:
    """Return the name of each loss that is known by name, its target, and the field that the target is, if known.

    From the replay or the graph, else from the first loss of the run, else from the names of loss modules.
    """
    fields = targets(evidence)
    first = fields[0] if fields else None
    terms: tuple[LossTerm, ...] = evidence.replay.losses if evidence.replay is not None else ()
    is_graph = any(map(is_from_graph, fields))
    seen: list[tuple[str, Operand | FieldFacts, FieldFacts | None]] = [
        (base_name(term.name), term.inputs[1], first)
        for term in terms or (() if is_graph else evidence.first_losses)
        if len(term.inputs) > 1
    ]
    if seen or not fields:
        return seen
    if is_graph:
        return [(base_name(one.read_by), one, one) for one in fields]
    return [
        (one.kind.lower().replace("bcewithlogits", "binary_cross_entropy_"), field, field)
        for one in evidence.run.modules
        if one.role == "loss"
        for field in fields
    ]


def _negative_loss(evidence: Evidence, below: float | None) -> Cause | None:
    """Return the cause if the loss fell below zero with integer targets above one, also if the loss is not known."""
    if evidence.batch is None or below is None or evidence.update_is_harmless:
        return None
    first = loss_curve(evidence).first
    if first is None or below > -10 * max(abs(first), 1.0):
        return None
    known = {base_name(term.name) for term in evidence.replay.losses} if evidence.replay is not None else set()
    if known and not any(word in name for name in known for word in PROBABILITY_LOSSES):
        return None
    for field in targets(evidence):
        least, greatest = field.least or 0.0, field.greatest or 0.0
        if not field.is_integral or "float" not in field.dtype:
            continue
        if least < 0 <= greatest and not known:  # a signed weight, such as a reward, is also possible
            takes, are_probabilities, confidence = "counts and labels are not negative", False, 0.55
        elif field.least == 0 and greatest > 1:
            takes, are_probabilities, confidence = "targets of a cross-entropy range from 0 to 1", True, 0.7
        else:
            continue
        place = place_of(field)
        return Cause(
            "target-out-of-range",
            place,
            (
                f"`{place}` holds whole numbers from {least:g} to {greatest:g}; {takes}.",
                f"The loss has gone down to {below:.4g}, where with such targets it has a lower bound.",
            ),
            confidence,
            range_remedies(code_of(field), least, greatest or 1.0, are_probabilities=are_probabilities),
        )
    return None


def _is_numerator(operand: Operand, operation: Operation) -> bool:
    """Return whether an operand is the numerator of a division, so that the divisor is at fault."""
    return name_of(operation) in DIVISIONS and operand is operation.inputs[0]


def _lowest_loss(evidence: Evidence) -> float | None:
    return loss_curve(evidence).least


def _operation_on_target(evidence: Evidence) -> Cause | None:
    """Return the cause if the target is an input of the operation at fault, with a value outside of its domain."""
    found = fault(evidence)
    if found is None or found[1].kind != "undefined" or evidence.batch is None:
        return None
    operation, what = found
    name = name_of(operation)
    # A result that the code masks is one that it expects: only its derivative is not.
    is_masked = evidence.replay is not None and operation == evidence.replay.hidden
    if name in ("nll_loss", "cross_entropy"):
        return None  # a label outside of the classes raises an error instead
    takes_probabilities = any(word in name for word in PROBABILITY_LOSSES)
    for field in targets(evidence):
        if takes_probabilities and (field.least or 0) >= 0 and (field.greatest or 0) <= 1:
            continue
        if name in LOGARITHMS and field.read_by == name:  # it multiplies the logarithm, and is not its input
            continue
        for operand in operation.inputs:
            if field.least is None or size_of(field) == 0 or field.least == field.greatest or field.dtype == "bool":
                continue
            same = (operand.least, operand.greatest) == (field.least, field.greatest) != (0.0, 1.0)
            same = same and operation.phase == "forward"
            same = (same or is_same(field, operand)) and not _is_numerator(operand, operation)
            if (operand.least, operand.greatest) == (0.0, 1.0) and operation.element_count != _zeros(field):
                continue  # saturated probabilities have the range of labels, too
            if same and operand.shape and field.shape and operand.shape[0] == field.shape[0]:
                place = place_of(field)
                return Cause(
                    "target-out-of-range",
                    f"{place}, {rows_of(operation.rows)}" if operation.rows else place,
                    (f"`{place}` ranges from {field.least:.4g} to {field.greatest or 0:.4g}.", what.sentence),
                    0.5 if is_masked else 0.96,
                    (
                        f"look at {rows_of(operation.rows) if operation.rows else 'the rows'} of `{place}`, and "
                        "repair or drop targets that the loss does not take",
                        what.remedy,
                        *remedies.skip(evidence),
                    ),
                )
    return None


def _zeros(field: FieldFacts) -> int | None:
    """Return the number of zeros in a field of zeros and ones, None for other fields."""
    count = math.prod(field.shape)
    return round(count * (1 - field.mean)) if field.is_integral and field.mean is not None else None


def _logarithm_of_a_probability(evidence: Evidence) -> Cause | None:
    """Return the cause if a loss of logarithms of probabilities fell below zero, by labels that are no probabilities.

    Weighted by probabilities, such a loss is never negative. Rewards of any sign are valid weights and are excluded.
    """
    found, first, below = fault(evidence), loss_curve(evidence).first, _lowest_loss(evidence)
    if found is None or name_of(found[0]) not in LOGARITHMS or first is None or below is None or not below < 0 < first:
        return None
    operation, what = found
    argument = operation.inputs[0] if operation.inputs else None
    if argument is None or argument.least is None or argument.greatest is None:
        return None
    if argument.least < 0 or argument.greatest > 1:
        return None
    for field in targets(evidence):
        least, greatest = field.least, field.greatest
        is_label = field.is_integral and "float" in field.dtype and not _REWARD.search(field.name.lower())
        if not is_label or least is None or greatest is None or (least >= 0 and greatest <= 1):
            continue
        place = place_of(field)
        given = "its target" if is_from_graph(field) else f"`{place}`"
        return Cause(
            "target-out-of-range",
            place,
            (
                f"`{name_of(operation)}` took probabilities, and {given} ranges from {least:.4g} to {greatest:.4g}.",
                f"The loss has gone down to {below:.4g}: with targets from 0 to 1 it is never negative.",
                what.sentence,
            ),
            0.96,
            range_remedies(code_of(field), least, greatest, are_probabilities=True),
        )
    return None


def _divergence_from_scores(evidence: Evidence) -> Cause | None:
    """Return the cause if the target of a divergence is negative, so that its logarithm is NaN."""
    found = fault(evidence)
    if found is None or not name_of(found[0]).endswith("xlogy") or len(found[0].inputs) != 2:
        return None
    operation, _ = found
    target, within = operation.inputs
    least, greatest = target.least, target.greatest
    if target != within or least is None or greatest is None or least >= 0:
        return None
    are_logarithms = greatest <= 0
    return Cause(
        "target-out-of-range",
        location_of(operation),
        (
            f"The target of a divergence is a probability, from 0 to 1; it ranges from {least:.4g} to {greatest:.4g}, "
            "and its logarithm is NaN.",
        ),
        0.96,
        (
            "pass probabilities: `F.kl_div(log_p, target.softmax(dim=-1))`, or `target.exp()` of logarithms"
            if not are_logarithms
            else "its target holds logarithms of probabilities: `F.kl_div(log_p, log_q, log_target=True)`",
            *remedies.skip(evidence),
        ),
    )
