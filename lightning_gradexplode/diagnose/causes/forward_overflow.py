"""Overflows of the number format by one operation of the forward pass with finite inputs."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.operation_evidence import (
    divergence_sentence,
    fault,
    follows_divergence,
    found_sentence,
    largest_target,
    line_sentence,
    located,
    loss_without_slope,
    names_without_line,
    rows_sentence,
    without_slope,
)
from lightning_gradexplode.diagnose.causes.optimization import disruptive_update, overshoots
from lightning_gradexplode.diagnose.causes.overflow_origins import origin_of_overflow
from lightning_gradexplode.diagnose.causes.within_step import loss_at_start_of_step
from lightning_gradexplode.diagnose.faults import Fault, fault_of
from lightning_gradexplode.diagnose.faults.operations import (
    base_name,
    is_exponential,
    is_half,
    is_product,
    largest_input,
    location_of,
    name_of,
)
from lightning_gradexplode.diagnose.first_update import jump_by_first_update
from lightning_gradexplode.diagnose.long_steps import overlong_step
from lightning_gradexplode.diagnose.trends import grows_calmly, trend
from lightning_gradexplode.records import Cause, Evidence, Operation

OVERFLOWING = frozenset({"cosh", "exp", "exp2", "expm1", "sinh"})
"""Exponential functions without a limit, whose slope overflows as their result does."""

LIMITING = frozenset({"clamp", "div", "masked_fill", "maximum", "minimum", "reciprocal", "where"})
"""Operations that can have a finite result of an infinite argument."""

LARGE = 1e8
"""Inputs from which an operation other than an exponential function may overflow."""


CHECKPOINTS = frozenset({"checkpoint_function", "checkpoint_without_storage_function"})
"""Functions that compute a part of the model without a graph, as reentrant checkpoints do."""


def forward_overflow(evidence: Evidence) -> Cause | None:
    """Return the cause if one operation of the forward pass overflowed with finite inputs."""
    found = fault(evidence)
    grown = evidence.replay.grown if evidence.replay is not None else None
    if found is None or (grown is not None and not is_exponential(found[0]) and largest_input(found[0]) > LARGE):
        return _by_elimination(evidence) if grown is None else _growth(evidence, grown, found)
    operation, what = found
    if what.kind != "overflow":
        return None
    course = trend(evidence)
    confidence = 0.92 if is_exponential(operation) else 0.75
    sentences = [what.sentence, line_sentence(operation), rows_sentence(operation), found_sentence(evidence)]
    if is_product(operation) or largest_input(operation) > 1e15:
        # The inputs of a product have grown in earlier layers, which other rules check; a loss is only a consequence.
        # The square of what is so large is a loss of the user's own, or a consequence.
        is_square = name_of(operation) in ("pow", "square") and largest_input(operation) > 1e15
        confidence = 0.3 if "loss" in name_of(operation) or operation.phase == "backward" or is_square else 0.45
    if (start := loss_at_start_of_step(evidence)) is not None:
        confidence = min(confidence, 0.25)
        sentences.append(f"The step began with a loss of {start:.4g}; the optimizer has changed the weights since.")
    if (origin := origin_of_overflow(evidence) or jump_by_first_update(evidence)) is not None:
        confidence = min(confidence, 0.3)
        sentences.append(origin)
    elif (disruption := disruptive_update(evidence)) is not None:
        confidence = min(confidence, 0.3)
        sentences.append(disruption)
    elif follows_divergence(course) and not grows_calmly(evidence):
        limit = 0.3 if overshoots(evidence) else 0.4 if overlong_step(evidence) is not None else 0.55
        confidence = min(confidence, limit if is_exponential(operation) else 0.25)
        sentences.append(divergence_sentence(course))
    if is_half(operation):
        confidence = min(confidence, 0.4)
    if hides_operations(evidence, operation):
        confidence = min(confidence, 0.3)
        sentences.append(f"The graph does not show what `{name_of(operation)}` computes: any operation in it may fail.")
    return Cause(
        "forward-overflow",
        location_of(operation),
        tuple(one for one in sentences if one),
        confidence,
        (located(operation, what.remedy), *(remedies.skip(evidence) if course.steps > 5 else ())),
    )


def hides_operations(evidence: Evidence, operation: Operation) -> bool:
    """Return whether an operation of a graph is a function of several operations that the graph does not show."""
    own = {base_name(f"{one.name}Backward") for one in evidence.own_functions}
    return operation.line is None and name_of(operation) in CHECKPOINTS | own


def _by_elimination(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss is finite and its gradient is not, and only an exponential function can do that.

    What comes after it keeps the loss finite. Its own slope is infinite all the same, and is multiplied by zero.
    """
    loss, names = loss_without_slope(evidence), names_without_line(evidence)
    exponentials = [one for one in names if one in OVERFLOWING]
    if loss is None or len(exponentials) != 1 or not LIMITING & {*names} or without_slope(names):
        return None
    if trend(evidence).has_risen:
        return None
    name = exponentials[0]
    return Cause(
        "forward-overflow",
        f"`{name}`",
        (
            f"The loss is {loss:.4g} and its gradient is not finite; loss and gradients were ordinary before.",
            f"`{name}` is the only operation of the loss with an infinite slope: where it overflows, a `clamp`, a "
            "`torch.where` or a division after it keeps the loss finite, and its gradient is zero times infinity.",
        ),
        0.65,
        (
            f"limit the argument of `{name}` before it is computed, not its result: `torch.{name}(x.clamp(max=20.0))`; "
            "of a sigmoid or softplus that is written out, use `torch.sigmoid(x)` or `F.softplus(x)`",
            *remedies.anomaly_mode(evidence),
        ),
    )


def _growth(evidence: Evidence, grown: Operation, failed: tuple[Operation, Fault] | None) -> Cause | None:
    """Return the cause if an unbounded exponential function computed the values that overflow later.

    Args:
        evidence: The evidence.
        grown: The exponential function.
        failed: The operation with a result that is not finite, None where all was finite.
    """
    if failed is not None and failed[1].kind not in ("overflow", "undefined"):
        return None
    course = trend(evidence)
    what = fault_of(grown, needed=largest_target(evidence))
    end = "" if failed is None else f" `{name_of(failed[0])}` overflowed because of it."
    sentences = [what.sentence + end, line_sentence(grown)]
    confidence, remedy = 0.85 if failed is not None else 0.7, what.remedy
    if _is_loss(grown, evidence):
        confidence = 0.8
        sentences.append(
            "The loss is this exponential, and its gradient is as large as the loss itself: steps grow exponentially "
            "with the error."
        )
        if not grown.inputs[0].shape:
            remedy = "minimize what it is the exponential of, which has the same minimum and does not overflow"
    elif follows_divergence(course):
        confidence = 0.5 if failed is not None else 0.3
        sentences.append(divergence_sentence(course))
    return Cause(
        "forward-overflow",
        location_of(grown),
        tuple(one for one in sentences if one),
        confidence,
        (located(grown, remedy),),
    )


def _is_loss(grown: Operation, evidence: Evidence) -> bool:
    """Return whether the loss is the result of an exponential function, or its sum or mean over the batch."""
    loss = evidence.replay.loss if evidence.replay is not None else None
    if name_of(grown) != "exp" or not grown.inputs or loss is None or not 0 < loss < math.inf:
        return False
    argument = grown.inputs[0]
    count = math.prod(argument.shape)
    return argument.greatest is not None and -0.1 <= argument.greatest - math.log(loss) <= math.log(count) + 0.1
