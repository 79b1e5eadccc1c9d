"""The messages of the sign ``backward-gain``, which its detector writes and a diagnosis reads.

A finding has one value and no fields for what is particular to its sign: the number of modules of a gain over the depth
of a network, and whether a gain is one per time step, are in its message only.
"""

from __future__ import annotations

import math
import re

from lightning_gradexplode.records.finding import Finding

SIGN = "backward-gain"

_DEPTH = re.compile(r"from the last of (\d+) modules")
_AT_EACH_TIME_STEP = "at each time step"


def message_of_depth(modules: int, gain: float, per_module: float, above_one: float) -> str:
    """Return the message about a gain over the depth of a network.

    Args:
        modules: Number of modules.
        gain: The gain over all of them.
        per_module: The gain of each.
        above_one: Share of the elements of error gradients that are above 1.
    """
    return (
        f"from the last of {modules} modules to the first the gradient grows {gain:.3g} times, {per_module:.3g} per "
        f"module; {above_one:.0%} of the elements are above 1.0"
    )


def message_of_time(growth: float, singular_value: float) -> str:
    """Return the message about a gain over the time steps of a sequence.

    Args:
        growth: The gain per time step.
        singular_value: The largest singular value of the recurrent matrix over Pascanu's bound, NaN if unknown.
    """
    bound = (
        "" if math.isnan(singular_value) else f"; its recurrent matrix is at {singular_value:.3g} times Pascanu's bound"
    )
    return f"the gradient grows {growth:.3g} times {_AT_EACH_TIME_STEP}{bound}"


def modules_of(finding: Finding) -> int | None:
    """Return the number of modules over which the gradient grows, None if a finding is about something else."""
    found = _DEPTH.search(finding.message) if finding.sign == SIGN else None
    return None if found is None else int(found[1])


def is_in_time(finding: Finding) -> bool:
    """Return whether a finding is about a gradient that grows from time step to time step."""
    return finding.sign == SIGN and _AT_EACH_TIME_STEP in finding.message
