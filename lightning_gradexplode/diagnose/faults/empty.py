"""Reductions over no elements, or over one."""

from __future__ import annotations

from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.operands import holds_nonfinite
from lightning_gradexplode.diagnose.faults.operations import DIVISIONS, largest_input
from lightning_gradexplode.diagnose.remedies.lines import divides_by_count
from lightning_gradexplode.records import Operand, Operation

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


def empty_reduction(operation: Operation, name: str) -> Fault | None:
    """Return the fault of a mean, a standard deviation or a loss over no or one element, None for other operations."""
    empty = any(0 in one.shape for one in operation.inputs)
    code = operation.expression or operation.code or ""
    if empty and (name in _REDUCTIONS or operation.result == "nan"):
        return Fault(
            "empty",
            f"`{name}` was computed over no element at all.",
            "leave the term out where nothing is selected: `loss = term.sum() / max(term.numel(), 1)`",
        )
    if name == "nll_loss" and operation.result == "nan" and not holds_nonfinite(operation):
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
        if below == 0 and above in (0, None) and _is_count(divisor, code):
            return Fault(
                "empty",
                "A mean was computed over nothing: 0/0, a sum over no element by a count of zero.",
                "divide by a count that is at least one: `total / count.clamp(min=1)`",
            )
    return None


def _is_count(divisor: Operand, code: str) -> bool:
    """Return whether a divisor is a number of elements: whole everywhere, which a sum of squares seldom is."""
    if not divisor.dtype.removeprefix("torch.").startswith(("float", "bfloat")):
        return True
    ends = [one for one in (divisor.least, divisor.greatest) if one is not None]
    return all(one.is_integer() for one in ends) and (divisor.is_constant or divides_by_count(code))
