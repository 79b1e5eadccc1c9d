"""The fault of the first operation without a finite result, and the correction of its line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_gradexplode.diagnose.line_remedies import (
    divides_by_count,
    remedy_for,
    remedy_for_divisor,
    remedy_for_number,
    remedy_for_overflow,
)
from lightning_gradexplode.diagnose.operation_names import is_exponential, largest_input, limit_of, name_of
from lightning_gradexplode.records import Operation

FaultKind = Literal["undefined", "empty", "overflow", "alignment"]

_REDUCTIONS = {
    "mean",
    "nanmean",
    "std",
    "var",
    "var_mean",
    "std_mean",
    "median",
    "logsumexp",
    "nll_loss",
    "cross_entropy",
}
_SPREADS = {"std", "var", "var_mean", "std_mean"}
_POLES = {"log", "log2", "log10", "log1p", "div", "true_divide", "reciprocal", "rsqrt", "logit", "special_logit",
          "atanh", "erfinv", "xlogy", "special_xlogy", "lgamma", "digamma", "tan", "log_ndtr"}  # fmt: skip
DIVISIONS = {"div", "true_divide", "reciprocal", "remainder", "fmod", "floor_divide"}
_ARITHMETIC = {"add", "div", "full", "mul", "sub"}
_SOFTMAXES = {"softmax", "log_softmax", "safe_softmax", "masked_softmax", "logsumexp", "scaled_dot_product_attention"}
_MATRIX = ("linalg", "cholesky", "inverse", "svd", "eigh", "logdet", "slogdet")
_MATRIX_CALL = re.compile(r"\b(logdet|slogdet|cholesky|inverse|pinv|svd|eigh|linalg\.(inv|solve|det|lstsq))\(")


@dataclass(frozen=True, slots=True)
class Fault:
    """The kind of an operation's fault.

    Args:
        kind: ``"undefined"`` for an operation outside of its domain or without a slope, ``"empty"`` for a reduction
            over nothing or one element, ``"overflow"`` for a result beyond the number format, ``"alignment"`` for a
            CTC loss whose target does not fit its input.
        sentence: What the operation did, with numbers.
        remedy: How its line is put right.
    """

    kind: FaultKind
    sentence: str
    remedy: str


def fault_of(
    operation: Operation, hidden: Operation | None = None, needed: float = 1.0, names: Sequence[str] = ()
) -> Fault:
    """Return what an operation has done wrong.

    Args:
        operation: The first one with a result that is not finite.
        hidden: The operation of the forward pass whose infinity was masked there, None if there is none.
        needed: The largest result that the model has to be able to make, such as its largest target.
        names: Names of the operations of the loss, where no line of code is known.
    """
    name = name_of(operation)
    if hidden is not None:
        return _hidden(hidden, needed)
    if operation.result == "large":
        return _overflow(operation, name, needed, names)
    if "ctc" in name:
        return Fault(
            "alignment",
            "The CTC loss is infinite: a target is longer than its input allows (each repeated label needs one more "
            "step of the input).",
            "drop samples whose target is longer than the input, or set `zero_infinity=True` in the CTC loss",
        )
    return (
        _constant(operation, name)
        or _empty(operation, name)
        or _undefined(operation, name)
        or _overflow(operation, name, needed, names)
    )


def _constant(operation: Operation, name: str) -> Fault | None:
    """Return the fault of an operation that a number or a tensor was handed to that is not finite itself."""
    # An infinite argument of another operation, such as the order of a norm, is meant to be.
    numbers = [one for one in operation.scalars if math.isnan(one) or (math.isinf(one) and name in _ARITHMETIC)]
    held = sum(one.nan_count for one in operation.inputs)
    if operation.phase == "backward" or not (numbers or held) or _is_of_matrix(operation, name):
        return None
    what = f"the number {numbers[0]:g}" if numbers else "a tensor with NaN"
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
    name, taken = name_of(hidden), _inputs(hidden)
    sentence = (
        f"`{name}` is {hidden.result} there{taken}; the loss does not show it, and the backward pass multiplies it "
        "by zero: 0 * inf is NaN."
    )
    own = _undefined(hidden, name)
    if own is not None and name in _SOFTMAXES:
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


def _empty(operation: Operation, name: str) -> Fault | None:
    empty = any(0 in one.shape for one in operation.inputs)
    code = operation.expression or operation.code or ""
    if empty and (name in _REDUCTIONS or operation.result == "nan"):
        return Fault(
            "empty",
            f"`{name}` was computed over no element at all.",
            "leave the term out where nothing is selected: `loss = term.sum() / max(term.numel(), 1)`",
        )
    if name == "nll_loss" and operation.result == "nan" and not _holds_nonfinite(operation):
        return Fault(
            "empty",
            "The loss is a mean over the labels that are not ignored, and all labels are: 0/0.",
            'divide by a count that is at least one: `loss = F.cross_entropy(logits, labels, reduction="sum") / '
            "(labels != -100).sum().clamp(min=1)`",
        )
    if name in _SPREADS and operation.result == "nan" and largest_input(operation) < 1e15:
        return Fault(
            "empty",
            f"`{name}` was computed over one element: with the unbiased estimate it divides by n - 1 = 0.",
            "use `correction=0` in that call, or drop the last incomplete batch with `DataLoader(..., drop_last=True)`",
        )
    if name in DIVISIONS and len(operation.inputs) > 1 and operation.result == "nan":
        above, below = operation.inputs[0].at_fault, operation.inputs[1].at_fault
        divisor = operation.inputs[1]
        below = divisor.least if below is None and divisor.least == divisor.greatest else below
        whole = not divisor.dtype.removeprefix("torch.").startswith(("float", "bfloat"))
        if below == 0 and above in (0, None) and (whole or divides_by_count(code)):
            return Fault(
                "empty",
                "A mean was computed over nothing: 0/0, a sum over no element by a count of zero.",
                "divide by a count that is at least one: `total / count.clamp(min=1)`",
            )
    return None


def _undefined(operation: Operation, name: str) -> Fault | None:
    forward = operation.phase == "forward"
    taken, code = _inputs(operation), operation.expression or operation.code or ""
    if (
        name in _SOFTMAXES
        and operation.result == "nan"
        and (_holds_infinity(operation) or largest_input(operation) < 1e30)
    ):
        had = "had a row" if any(one.least is not None for one in operation.inputs) else "is NaN, as it is of a row"
        return Fault(
            "undefined",
            f"`{name}` {had} with -inf in every place, as a fully masked sequence makes it: 0/0.",
            "leave at least one place of each row unmasked: `mask = mask & ~mask.all(dim=-1, keepdim=True)`, or drop "
            "samples that are all padding",
        )
    if _is_of_matrix(operation, name):
        return Fault(
            "undefined",
            f"`{name}` met a matrix that is singular, or has equal singular values, which leave it without a slope.",
            remedy_for("linalg" if forward else name),
        )
    if not forward:
        return _slope(operation, name, taken)
    if name in DIVISIONS:
        if len(operation.inputs) == 1 and operation.scalars == (0.0,):
            return Fault("undefined", f"`{name}` divided by a number that is 0{taken}.", remedy_for_number())
        divisor = operation.inputs[-1] if operation.inputs else None
        below = None if divisor is None else divisor.at_fault
        if below is None and divisor is not None and divisor.least == 0:
            below = 0.0
        if operation.result == "nan" or (below is not None and abs(below) < 1e-20):
            sentence = f"`{name}` divided by {_number(below, 'zero')}{taken}."
            return Fault("undefined", sentence, remedy_for_divisor(code, divisor))
        return None
    if name in _POLES or (name in ("pow", "float_power") and operation.result == "inf" and _is_small(operation)):
        return Fault(
            "undefined", f"`{name}` is {operation.result} there{taken}.", remedy_for(name, code, _type_of(operation))
        )
    if operation.result == "nan" and largest_input(operation) < limit_of(operation) ** 0.4:
        return Fault("undefined", f"`{name}` is NaN there{taken}.", remedy_for(name, code, _type_of(operation)))
    return None


def _is_of_matrix(operation: Operation, name: str) -> bool:
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
    # Before the node is known by its name, the line says which function it belongs to.
    code = "" if operation.node else operation.expression or operation.code or ""
    slope = next((word for word in ("norm", "sqrt", "acos", "asin", "log", "cdist", "std") if word in code), name)
    return Fault(
        "undefined",
        f"The slope of `{slope}` is {operation.result} there: the loss is finite and its gradient is not{taken}.",
        remedy_for(slope, dtype=_type_of(operation)),
    )


def _overflow(operation: Operation, name: str, needed: float, names: Sequence[str]) -> Fault:
    limit = limit_of(operation)
    largest = largest_input(operation)
    if operation.result == "large":
        taken = _number(_at_fault(operation), f"{largest:.4g}")
        sentence = f"`{name}` took {taken}, and nothing bounds it: its result is beyond 1e8."
    elif is_exponential(operation) and not largest:
        sentence = (
            f"The result of `{name}` is beyond the number format, as it is for arguments above {math.log(limit):.3g}."
        )
    elif is_exponential(operation):
        sentence = (
            f"`{name}` took {_number(_at_fault(operation), f'{largest:.4g}')}; above {math.log(limit):.3g} its "
            "result is beyond the number format."
        )
    else:
        sentence = (
            f"`{name}` made {operation.result} of finite values up to {largest:.3g} (the format ends at {limit:.3g})."
        )
    # The logarithm at the end of a product of exponentials tells that from an exponential of another part.
    code = operation.code or ("torch.log(torch.exp(x))" if {"exp", "log"} <= {*names} else "")
    return Fault("overflow", sentence, remedy_for_overflow(name, code, needed))


def _inputs(operation: Operation) -> str:
    """Return the inputs of the operation at the fault, as the end of a sentence."""
    at_fault = [one.at_fault for one in operation.inputs if one.at_fault is not None]
    if at_fault:
        return f" (input: {' and '.join(f'{one:.4g}' for one in at_fault[:2])})"
    ranges = [
        (one.least, one.greatest) for one in operation.inputs if one.least is not None and one.greatest is not None
    ]
    return f" (input: values from {ranges[0][0]:.4g} to {ranges[0][1]:.4g})" if ranges else ""


def _at_fault(operation: Operation) -> float | None:
    return next((one.at_fault for one in operation.inputs if one.at_fault is not None), None)


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.4g}"


def _is_small(operation: Operation) -> bool:
    """Return whether a power's base is at most one, so that only a negative exponent makes it infinite."""
    base = _at_fault(operation)
    return base is not None and abs(base) <= 1


def _type_of(operation: Operation) -> str:
    return next((one.dtype for one in operation.inputs if "float" in one.dtype), "float32")


def _holds_nonfinite(operation: Operation) -> bool:
    return any(one.nan_count or one.inf_count for one in operation.inputs)


def _holds_infinity(operation: Operation) -> bool:
    return any(one.inf_count for one in operation.inputs)
