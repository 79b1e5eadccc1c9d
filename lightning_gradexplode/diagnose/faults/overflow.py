"""Results beyond the number format."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.operands import at_fault, number_or
from lightning_gradexplode.diagnose.faults.operations import is_exponential, largest_input, limit_of
from lightning_gradexplode.diagnose.remedies.lines import remedy_for_overflow
from lightning_gradexplode.records import Operation


def overflow(operation: Operation, name: str, needed: float, names: Sequence[str]) -> Fault:
    """Return the fault of a result that is beyond the number format, or unbounded.

    Args:
        operation: The operation.
        name: Its plain name.
        needed: The largest result that the model must be able to return.
        names: Names of the operations of the loss, used if no line of code is known.
    """
    limit = limit_of(operation)
    largest = largest_input(operation)
    if operation.result == "large":
        taken = number_or(at_fault(operation), f"{largest:.4g}")
        sentence = f"`{name}` took {taken}, and nothing bounds it: its result is beyond 1e8."
    elif is_exponential(operation) and not largest:
        sentence = (
            f"The result of `{name}` is beyond the number format, as it is for arguments above {math.log(limit):.3g}."
        )
    elif is_exponential(operation):
        sentence = (
            f"`{name}` took {number_or(at_fault(operation), f'{largest:.4g}')}; above {math.log(limit):.3g} its "
            "result is beyond the number format."
        )
    else:
        sentence = (
            f"`{name}` made {operation.result} of finite values up to {largest:.3g} (the format ends at {limit:.3g})."
        )
    # The logarithm at the end of a product of exponentials distinguishes it from an exponential of another part.
    is_sum_of_exponentials = not {"log", "log1p"}.isdisjoint(names) and (is_exponential(operation) or "exp" in names)
    code = operation.code or ("torch.log(torch.exp(x))" if is_sum_of_exponentials else "")
    return Fault("overflow", sentence, remedy_for_overflow(name, code, needed))
