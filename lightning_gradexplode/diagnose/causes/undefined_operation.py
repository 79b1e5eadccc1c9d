"""Operations outside of their domain, or at values without a finite derivative."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_computed, place_of, rows_of, source_in_graph, unusual_infinities
from lightning_gradexplode.diagnose.causes.module_values import nonfinite_constant, written_buffer
from lightning_gradexplode.diagnose.causes.operation_evidence import (
    divergence_sentence,
    fault,
    follows_divergence,
    found_sentence,
    line_sentence,
    located,
    loss_without_slope,
    names_without_line,
    rows_sentence,
    without_slope,
)
from lightning_gradexplode.diagnose.curves import critical_step, curve, failing_step, first_nonfinite
from lightning_gradexplode.diagnose.faults.operations import is_half, location_of
from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.diagnose.remedies.lines import remedy_for
from lightning_gradexplode.diagnose.trends import initial_weight_norm, trend
from lightning_gradexplode.records import Cause, Evidence

MAX_NAMED = 3
"""Maximum number of operations that are named together where any of them may be at fault."""

FALLEN, CALM_GRADIENT = -0.5, 10.0
"""Change of the loss since the start below which a run has learned, and growth of a calm run's gradient."""

LEAP = 3.0
"""Growth of the weights' norm by one update from which that update alone determines their scale."""


def undefined_operation(evidence: Evidence) -> Cause | None:
    """Return the cause if an operation had an input at which its result or its derivative is not finite."""
    found = fault(evidence)
    own = nonfinite_constant(evidence) or (written_buffer(evidence) if found is None else None)
    if own is not None:
        return own
    if found is None:
        return _computed_in_step(evidence) or _slope_by_elimination(evidence)
    operation, what = found
    if what.kind != "undefined":
        return None
    course = trend(evidence)
    confidence = 0.95
    sentences = [what.sentence, line_sentence(operation), rows_sentence(operation), found_sentence(evidence)]
    if follows_divergence(course):
        confidence = 0.25 if _is_reached_by_the_rate(evidence) else 0.5
        sentences.append(divergence_sentence(course))
    if unusual_infinities(evidence) is not None:
        confidence = min(confidence, 0.5)  # the operation is defined for what other batches hold
    if is_half(operation):
        confidence = min(confidence, 0.7)
        if evidence.experiments is not None and evidence.experiments.finite_in_float32:
            confidence = 0.3
    return Cause(
        "undefined-operation",
        location_of(operation),
        tuple(one for one in sentences if one),
        confidence,
        (located(operation, what.remedy), *remedies.skip(evidence)),
    )


def _is_reached_by_the_rate(evidence: Evidence) -> bool:
    """Return whether one update at an unusually high rate multiplied the weights before the operation failed.

    Keeping the operation within its domain does not save such a run.
    """
    rate, usual = remedies.learning_rate(evidence), usual_rate(evidence.run)
    if rate is None or usual is None or rate <= usual[1]:
        return False
    weights = curve(evidence, "weight_norm").before(failing_step(evidence)).finite
    start = initial_weight_norm(evidence)
    steps, norms = weights.step.tolist(), weights.value.tolist()
    if start is not None:
        steps, norms = [evidence.run.first_step - 1, *steps], [start, *norms]
    pairs = zip(steps, steps[1:], norms, norms[1:], strict=False)
    return any(after > LEAP ** (last - first) * before > 0 for first, last, before, after in pairs)


def _computed_in_step(evidence: Evidence) -> Cause | None:
    """Return the cause if a factor or a summand of the loss is not finite, which is no input and no target.

    Most such tensors are computed in the step. If all elements are not finite, for the first time, they were computed
    by a statistic of the batch: the data of several samples are seldom missing all at once.
    """
    field = source_in_graph(evidence)
    if field is None or not is_computed(field) or not field.shape:
        return None
    if field.dtype == "float16" or trend(evidence).has_diverged:
        return None
    count = math.prod(field.shape)
    is_first = critical_step(evidence) == evidence.run.first_step
    is_whole = field.nan_count + field.inf_count == count and field.shape[0] > 1 and not is_first
    rows = f", in {rows_of(field.nonfinite_rows)}" if field.nonfinite_rows and not is_whole else ""
    which = f"All {count}" if is_whole else f"{field.nan_count + field.inf_count} of {count}"
    how = (
        "was computed from the batch: by its deviation, sum or largest value, which is zero here."
        if is_whole
        else "is neither the input of a layer nor the target of a loss: most such tensors are computed in the step, "
        "such as weights of samples, where 0/0 is NaN."
    )
    return Cause(
        "undefined-operation",
        place_of(field),
        (
            f"{which} elements of `{place_of(field)}` are not finite{rows}{', for the first time' * (not is_first)}. "
            f"It has no gradient, and {how}",
        ),
        0.5 if is_whole else 0.4,
        (
            "keep the divisor away from zero where it is computed, with a small eps: `(x - x.mean()) / (x.std() + "
            "1e-6)`, `x / x.sum().clamp(min=1e-6)`",
            *remedies.skip(evidence),
            *remedies.step_again(evidence),
        ),
    )


def _slope_by_elimination(evidence: Evidence) -> Cause | None:
    """Return a cause of low confidence if only a derivative can be at fault, after a calm run with a finite loss."""
    finding, loss, names = first_nonfinite(evidence), loss_without_slope(evidence), names_without_line(evidence)
    course = trend(evidence)
    # Weights also grow in a run that learns; an update that goes too far raises the loss first.
    is_calm = not course.has_diverged or (course.loss_rise < FALLEN and course.gradient_growth < CALM_GRADIENT)
    if finding is None or loss is None or not is_calm:
        return None
    steep = without_slope(names)
    if names and not steep:
        return None
    if {"div", "exp"} <= {*names}:
        steep.append("div")  # by an exponential that is nearly zero, whose square vanishes
    unlikely = ("div", "pow")  # most divisors are no exponentials, and most powers are squares
    named = sorted(steep, key=lambda one: one in unlikely) if len(steep) <= MAX_NAMED else []
    before = "the loss had fallen to it" if course.has_diverged else "nothing had grown before"
    which = " or ".join(f"`{one}`" for one in named)
    if len(named) == 1:
        likely = f"{which} is the only such operation of the loss."
    else:
        likely = f"Of the operations of the loss it is {which}." if named else "Which one is not known."
    return Cause(
        "undefined-operation",
        which or finding.where,
        (
            f"The loss is {loss:.4g} at step {finding.step} and its gradient is not finite; {before}.",
            "An operation without a finite slope does that: a root or a norm of zero, a logarithm of a number or a "
            f"division by one that is nearly zero, or a `torch.where` whose other branch is infinite. {likely}",
        ),
        0.5,
        (
            *dict.fromkeys(remedy_for(one) for one in named),
            *remedies.anomaly_mode(evidence),
            *([] if named else ["keep roots and norms away from zero: `torch.sqrt(x + 1e-12)`"]),
            *remedies.skip(evidence),
        ),
    )
