"""Operations outside of their domain, or without a finite derivative."""

from __future__ import annotations

import math
import re

from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.operands import at_fault, holds_infinity, inputs_in_words, number_or, type_of
from lightning_gradexplode.diagnose.faults.operations import (
    DIVISIONS,
    FILLS,
    LIMITS,
    base_name,
    largest_input,
    limit_of,
)
from lightning_gradexplode.diagnose.remedies.lines import remedy_for, remedy_for_divisor, remedy_for_number
from lightning_gradexplode.records import Operation

_POLES = {"log", "log2", "log10", "log1p", "div", "true_divide", "reciprocal", "rsqrt", "logit", "special_logit",
          "atanh", "erfinv", "xlogy", "special_xlogy", "lgamma", "digamma", "tan", "log_ndtr"}  # fmt: skip
_FILLING = {*FILLS, "copy", "full", "full_like"}
SOFTMAXES = {"softmax", "log_softmax", "safe_softmax", "masked_softmax", "logsumexp", "scaled_dot_product_attention"}
_MATRIX = ("linalg", "cholesky", "inverse", "svd", "eigh", "logdet", "slogdet")
_MATRIX_CALL = re.compile(r"\b(logdet|slogdet|cholesky|inverse|pinv|svd|eigh|linalg\.(inv|solve|det|lstsq))\(")


def undefined_operation(operation: Operation, name: str) -> Fault | None:
    """Return the fault of an operation outside of its domain or without a finite derivative, None for others."""
    forward = operation.phase == "forward"
    taken, code = inputs_in_words(operation), operation.expression or operation.code or ""
    if (
        name in SOFTMAXES
        and operation.result == "nan"
        and (holds_infinity(operation) or largest_input(operation) < 1e30)
    ):
        had = "had a row" if any(one.least is not None for one in operation.inputs) else "is NaN, as it is of a row"
        return Fault(
            "undefined",
            f"`{name}` {had} of -inf only, such as that of a fully masked sequence: 0/0.",
            "leave at least one place of each row unmasked: `mask = mask & ~mask.all(dim=-1, keepdim=True)`, or drop "
            "samples that are all padding",
        )
    if is_of_matrix(operation, name):
        return Fault(
            "undefined",
            f"The input of `{name}` is singular, or has equal singular values, where there is no derivative.",
            remedy_for("linalg" if forward else name),
        )
    if not forward:
        return _slope(operation, name, taken)
    if name in DIVISIONS:
        if len(operation.inputs) == 1 and operation.scalars == (0.0,):
            return Fault("undefined", f"`{name}` divided by a number that is 0{taken}.", remedy_for_number())
        divisor = operation.inputs[-1] if operation.inputs else None
        below = None if divisor is None else divisor.at_fault
        is_zero = divisor is not None and (divisor.least == 0 or _is_reciprocal_of_zero(operation, name))
        if below is None and is_zero:
            below = 0.0
        if operation.result == "nan" or (below is not None and abs(below) < 1e-20):
            sentence = f"`{name}` divided by {number_or(below, 'zero')}{taken}."
            return Fault("undefined", sentence, remedy_for_divisor(code, divisor))
        return None
    if name in _POLES or (name in ("pow", "float_power") and operation.result == "inf" and _is_small(operation)):
        return Fault(
            "undefined", f"`{name}` is {operation.result} there{taken}.", remedy_for(name, code, type_of(operation))
        )
    if operation.result == "nan" and largest_input(operation) < limit_of(operation) ** 0.4:
        return Fault("undefined", f"`{name}` is NaN there{taken}.", remedy_for(name, code, type_of(operation)))
    return None


def filled_infinity(operation: Operation, name: str) -> Fault | None:
    """Return the fault of an infinity that was filled in deliberately, and reached the loss; None for others."""
    is_given = holds_infinity(operation) or any(map(math.isinf, operation.scalars))
    if not is_given or name not in _FILLING or operation.phase != "forward" or operation.result == "nan":
        return None
    return Fault(
        "undefined",
        f"`{name}` filled in {operation.result}, which has reached the loss. With scores of masked classes, a label of "
        "such a class does that, and label smoothing, which gives a share to each class.",
        "give masked elements no target, or fill in a large finite number: `x.masked_fill(mask, -1e4)`",
    )


def is_of_matrix(operation: Operation, name: str) -> bool:
    """Return whether an operation belongs to a decomposition, an inverse or a determinant."""
    is_named = name.startswith(_MATRIX) and not name.endswith("_norm")
    return is_named or re.search(_MATRIX_CALL, operation.expression or "") is not None


def _slope(operation: Operation, name: str, taken: str) -> Fault | None:
    if largest_input(operation) > limit_of(operation) ** 0.4:
        return None
    filled = next((one.at_fault for one in operation.inputs if one.at_fault in (math.inf, -math.inf)), None)
    if filled is not None:
        return Fault(
            "undefined",
            f"`{name}` took {filled}, which was filled in before: the loss is finite and the gradient of what it was "
            f"combined with is not{taken}.",
            "fill in infinity after this operation and not before, or a finite number in its place: "
            "`x.masked_fill(mask, torch.finfo(x.dtype).min)`",
        )
    # Without the name of the node, the function is found in the line of code.
    code = "" if operation.node else operation.expression or operation.code or ""
    slope = next((word for word in ("norm", "sqrt", "acos", "asin", "log", "cdist", "std") if word in code), name)
    part = base_name(operation.name)
    if part != slope:
        taken = inputs_in_words(operation, f" of `{part}` in its backward pass")
    return Fault(
        "undefined",
        f"The slope of `{slope}` is {operation.result} there: the loss is finite and its gradient is not{taken}.",
        remedy_for(slope, dtype=type_of(operation)),
    )


def _is_reciprocal_of_zero(operation: Operation, name: str) -> bool:
    """Return whether the argument of an infinite reciprocal, which autograd does not save, can only be zero.

    In float16 the reciprocal of an ordinary small number is infinite, too.
    """
    is_unknown = operation.inputs[-1].least is None
    return name == "reciprocal" and is_unknown and limit_of(operation) > LIMITS["float16"]


def _is_small(operation: Operation) -> bool:
    """Return whether a power's base is at most one, so that only a negative exponent makes it infinite."""
    base = at_fault(operation)
    return base is not None and abs(base) <= 1
