"""The inputs of an operation, as text and numbers."""

from __future__ import annotations

from lightning_gradexplode.records import Operation


def inputs_in_words(operation: Operation, owner: str = "") -> str:
    """Return the inputs of the operation at the element at fault, as the end of a sentence.

    Args:
        operation: The operation.
        owner: Whose inputs they are, as `` of `name```; empty for the operation that the sentence is about.
    """
    at_fault = [one.at_fault for one in operation.inputs if one.at_fault is not None]
    if at_fault:
        return f" (input{owner}: {' and '.join(f'{one:.4g}' for one in at_fault[:2])})"
    ranges = [
        (one.least, one.greatest) for one in operation.inputs if one.least is not None and one.greatest is not None
    ]
    return f" (input{owner}: values from {ranges[0][0]:.4g} to {ranges[0][1]:.4g})" if ranges else ""


def at_fault(operation: Operation) -> float | None:
    """Return the value of the first input at the element at fault, None if it is not known."""
    return next((one.at_fault for one in operation.inputs if one.at_fault is not None), None)


def number_or(value: float | None, otherwise: str) -> str:
    """Return a number as text, or `otherwise` if it is not known."""
    return otherwise if value is None else f"{value:.4g}"


def type_of(operation: Operation) -> str:
    """Return the type of the first floating-point input, float32 without one."""
    return next((one.dtype for one in operation.inputs if "float" in one.dtype), "float32")


def holds_nonfinite(operation: Operation) -> bool:
    """Return whether an input holds NaN or infinity."""
    return any(one.nan_count or one.inf_count for one in operation.inputs)


def holds_infinity(operation: Operation) -> bool:
    """Return whether an input holds infinity."""
    return any(one.inf_count for one in operation.inputs)
