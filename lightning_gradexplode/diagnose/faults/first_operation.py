"""The fault of the first operation with a non-finite result, and the correction of its line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lightning_gradexplode.diagnose.faults.empty import empty_reduction
from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.operands import inputs_in_words
from lightning_gradexplode.diagnose.faults.operations import DIVISIONS, is_exponential, is_of_other_code, name_of
from lightning_gradexplode.diagnose.faults.overflow import overflow
from lightning_gradexplode.diagnose.faults.undefined import (
    SOFTMAXES,
    filled_infinity,
    is_of_matrix,
    undefined_operation,
)
from lightning_gradexplode.diagnose.remedies.lines import remedy_for, remedy_for_overflow
from lightning_gradexplode.records import Operation

_ARITHMETIC = {"add", "div", "full", "mul", "sub"}

_WEIGHED = {"nll_loss", "cross_entropy", "binary_cross_entropy_with_logits"}
"""Loss functions with class weights, which are infinite if computed from the frequency of an absent class."""


def fault_of(
    operation: Operation, hidden: Operation | None = None, needed: float = 1.0, names: Sequence[str] = ()
) -> Fault:
    """Return the fault of an operation.

    Args:
        operation: The first operation with a result that is not finite.
        hidden: The operation of the forward pass whose infinity was masked there, None if there is none.
        needed: The largest result that the model must be able to return, such as its largest target.
        names: Names of the operations of the loss, used if no line of code is known.
    """
    name = name_of(operation)
    if hidden is not None:
        return _hidden(hidden, needed)
    if operation.result == "large":
        return overflow(operation, name, needed, names)
    if "ctc" in name:
        return Fault(
            "alignment",
            "The CTC loss is infinite: a target is longer than its input allows (each repeated label needs one more "
            "step of the input).",
            "drop samples whose target is longer than the input, or set `zero_infinity=True` in the CTC loss",
        )
    return (
        filled_infinity(operation, name)
        or _constant(operation, name)
        or empty_reduction(operation, name)
        or undefined_operation(operation, name)
        or overflow(operation, name, needed, names)
    )


def _constant(operation: Operation, name: str) -> Fault | None:
    """Return the fault of an operation with a non-finite constant among its inputs, None without one."""
    # Infinite arguments of other operations, such as the order of a norm, are intended.
    numbers = [one for one in operation.scalars if math.isnan(one) or (math.isinf(one) and name in _ARITHMETIC)]
    held = sum(one.nan_count for one in operation.inputs)
    weights = operation.inputs[1:] if name in _WEIGHED else ()
    held += sum(one.inf_count for one in weights)
    if name in DIVISIONS and len(operation.inputs) > 1 and operation.inputs[-1].at_fault == 0:
        return None  # the division by zero is the fault
    is_derivative = operation.phase == "backward" and not is_of_other_code(operation)
    if is_derivative or not (numbers or held) or is_of_matrix(operation, name):
        return None
    what = (
        f"the number {numbers[0]:g}" if numbers else "a tensor that is not finite" if weights else "a tensor with NaN"
    )
    is_infinite = bool(numbers) and math.isinf(numbers[0])
    check = "math.isfinite(float(value))" if numbers else "torch.isfinite(value).all()"
    return Fault(
        "undefined",
        f"`{name}` was given {what}, which no operation of the step has made.",
        remedy_for("mul")
        if is_infinite
        else f"make this constant finite where it is computed, and check it there: `assert {check}`",
    )


def _hidden(hidden: Operation, needed: float) -> Fault:
    """Return the fault of an operation whose infinity does not reach the loss, and becomes NaN in the backward pass."""
    name, taken = name_of(hidden), inputs_in_words(hidden)
    sentence = (
        f"`{name}` is {hidden.result} there{taken}; the loss does not show it, and the backward pass multiplies it "
        "by zero: 0 * inf is NaN."
    )
    own = undefined_operation(hidden, name)
    if own is not None and name in SOFTMAXES:
        return Fault("undefined", f"{own.sentence} The loss does not show it, and the gradient is NaN.", own.remedy)
    code = f"{hidden.expression or ''} {hidden.code or ''}"
    if is_exponential(hidden) and not re.search("where|mask", code):
        return Fault("overflow", sentence, remedy_for_overflow(name, hidden.code or "", needed))
    return Fault(
        "undefined",
        sentence,
        f"make the argument of `{name}` safe, with an inner `torch.where(condition, x, torch.ones_like(x))`, as the "
        "outer one guards its value only and not its slope",
    )
