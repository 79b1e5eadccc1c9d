"""The operation at fault that a replay has found, or that is left by elimination, and sentences about it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.diagnose.batch import is_float, targets
from lightning_gradexplode.diagnose.curves import first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.faults import Fault, fault_of
from lightning_gradexplode.diagnose.trends import Trend
from lightning_gradexplode.records import Evidence, Operation
from lightning_gradexplode.records.replay import OBSERVED_LATER, SIMILAR_WEIGHTS

STEEP = frozenset(
    ("acos", "acosh", "asin", "cdist", "float_power", "hypot", "linalg_vector_norm", "norm", "pow", "sqrt", "std")
)
"""Operations that have a finite result where their derivative is infinite."""

POLES = frozenset({"div", "log", "log10", "log2", "reciprocal", "rsqrt", "xlogy"})
"""Operations with poles, where result and derivative are infinite: the loss is finite only without these results."""

LOGARITHMS = frozenset({"log", "log10", "log2", "xlogy"})
"""Operations with a finite result whose derivative overflows for the smallest positive numbers."""

VANISHING = frozenset({"exp", "exp2", "sigmoid", "softmax", "prod", "cumprod"})
"""Operations that can compute such small numbers from ordinary ones."""

LEAVING_OUT = frozenset({"where", "masked_fill", "masked_select", "index"})
"""Operations that exclude elements."""


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


def found_sentence(evidence: Evidence) -> str:
    """Return a sentence with how an operation was found, if not by computing its step again; else empty."""
    notes = evidence.replay.notes if evidence.replay is not None else ()
    found = next((one for one in notes if one in (OBSERVED_LATER, SIMILAR_WEIGHTS)), "")
    return f"{found[:1].upper()}{found[1:]}." if found else ""


def rows_sentence(operation: Operation) -> str:
    """Return a sentence with the rows in which the result is not finite; empty where they are not known."""
    if not operation.rows:
        return ""
    listed = ", ".join(str(row) for row in operation.rows[:6]) + (", ..." if len(operation.rows) > 6 else "")
    return f"Its result is not finite in row{'s' if len(operation.rows) > 1 else ''} {listed} of the batch."


def loss_without_slope(evidence: Evidence) -> float | None:
    """Return the finite loss of a step whose gradient is not finite, if only a derivative can be at fault."""
    finding = first_nonfinite(evidence)
    if finding is None or finding.sign != "nonfinite-gradient":
        return None
    half = "16" in evidence.run.precision or any("16" in one.dtype for one in evidence.run.parameters)
    batch = evidence.batch
    if evidence.run.has_unknown_processes:  # the loss of another process may not be finite
        return None
    if half or (batch is not None and any(one.nan_count or one.inf_count for one in batch.fields)):
        return None
    replay = evidence.replay
    # A weight as the source is that of the next loss, after the gradients have made the weights NaN.
    shows_weights = replay is not None and replay.first is None and replay.source == "parameter"
    if replay is not None and replay.status != "not-possible" and not shows_weights:
        return None
    return loss_curve(evidence).at(finding.step)


def names_without_line(evidence: Evidence) -> tuple[str, ...]:
    """Return the names of the operations of a loss whose lines are not known."""
    return evidence.replay.operation_names if evidence.replay is not None else ()


def without_slope(names: Sequence[str]) -> list[str]:
    """Return those of the operations of a finite loss whose derivative may be infinite."""
    known = STEEP | POLES if LEAVING_OUT & {*names} else STEEP | LOGARITHMS if VANISHING & {*names} else STEEP
    return [name for name in names if name in known or name.startswith("linalg")]
