"""The operation at fault that a replay has found, and sentences about it that several rules share."""

from __future__ import annotations

from lightning_gradexplode.diagnose.batch import is_float, targets
from lightning_gradexplode.diagnose.faults import Fault, fault_of
from lightning_gradexplode.diagnose.trends import Trend
from lightning_gradexplode.records import Evidence, Operation


def fault(evidence: Evidence) -> tuple[Operation, Fault] | None:
    """Return the operation at fault that a replay has found, and what it has done wrong."""
    replay = evidence.replay
    if replay is None or replay.first is None or replay.status == "not-reproduced":
        return None
    return replay.hidden or replay.first, fault_of(
        replay.first, replay.hidden, largest_target(evidence), replay.operation_names
    )


def largest_target(evidence: Evidence) -> float:
    """Return the largest target that is a quantity: the usual one, which no outlier has made."""
    sizes = [
        abs(one.usual_greatest if one.usual_greatest is not None else one.greatest or 0.0)
        for one in targets(evidence)
        if is_float(one)
    ]
    return max(sizes, default=1.0)


def follows_divergence(course: Trend) -> bool:
    """Return whether the run had diverged before, so that the operation was only the first to fail."""
    has_left = course.steps > 1 and (course.loss_rise >= 10 or course.gradient_growth >= 1000)
    return has_left or (course.steps > 0 and course.weight_growth >= 3)


def divergence_sentence(course: Trend) -> str:
    """Return a sentence with the growth of gradients and weights."""
    return (
        f"The run had left its usual range before: the gradient norm is {course.gradient_growth:.3g} times its usual "
        f"level, the weights are {course.weight_growth:.3g} times those of the start."
    )


def located(operation: Operation, remedy: str) -> str:
    """Return a remedy of a line with its place, where that is known."""
    return remedy if operation.line is None else f"at {operation.file}:{operation.line} {remedy}"


def line_sentence(operation: Operation) -> str:
    """Return a sentence with the line of an operation; empty where it is not known."""
    if operation.file is None or not operation.code:
        return ""
    return f"The line is {operation.file}:{operation.line}: `{operation.code.strip()}`."


def rows_sentence(operation: Operation) -> str:
    """Return a sentence with the rows in which the result is not finite; empty where they are not known."""
    if not operation.rows:
        return ""
    listed = ", ".join(str(row) for row in operation.rows[:6]) + (", ..." if len(operation.rows) > 6 else "")
    return f"Its result is not finite in row{'s' if len(operation.rows) > 1 else ''} {listed} of the batch."
