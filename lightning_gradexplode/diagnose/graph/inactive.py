"""An operation in the graph of a loss whose derivative is zero for all elements, so that no gradient passes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.faults.operations import STEPS
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node

_LIMITS = {"clamp": ("min", "max"), "hardtanh": ("min_val", "max_val")}
"""Names of the limits of operations that return them for arguments beyond."""


def inactive_operation(graph: Graph, names: Mapping[int, str]) -> tuple[str, str] | None:
    """Return the last operation whose derivative is zero for all elements, None without one.

    Args:
        graph: The graph of a loss.
        names: Names of the parameters, by their identity.

    Returns:
        The name of the operation, and that of the nearest parameter before it, empty if none is known.
    """
    for node in reversed(graph.nodes):
        if _passes_nothing(node):
            return name_of_node(node), parameter_before(node, names)
    return None


def _passes_nothing(node: Any) -> bool:
    """Return whether the derivative of an operation is known to be zero for all elements."""
    name = name_of_node(node)
    if name in STEPS:
        return True
    if name == "relu":
        result = _saved(node, "result")
        return result is not None and not bool(result.any())
    least, greatest = _limits(node, name)
    argument = None if least == -math.inf and greatest == math.inf else _saved(node, "self")
    return argument is not None and not bool(((argument >= least) & (argument <= greatest)).any())


def _limits(node: Any, name: str) -> tuple[float, float]:
    """Return the least and the greatest argument with a derivative other than zero; infinite ones if not known."""
    if name == "hardsigmoid":
        return -3.0, 3.0
    if name == "threshold":
        return math.nextafter(float(node._saved_threshold), math.inf), math.inf
    found = [getattr(node, f"_saved_{one}", None) for one in _LIMITS.get(name, ())]
    if not found or any(isinstance(one, Tensor) for one in found):
        return -math.inf, math.inf
    least, greatest = found
    return -math.inf if least is None else float(least), math.inf if greatest is None else float(greatest)


def _saved(node: Any, name: str) -> Tensor | None:
    """Return a tensor that an operation has saved, None if it was overwritten since or has no elements."""
    try:
        with torch.no_grad():
            value = getattr(node, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None
    return value if isinstance(value, Tensor) and not value.is_meta and value.numel() else None


def parameter_before(node: Any, names: Mapping[int, str]) -> str:
    """Return the name of the parameter that is the fewest operations before a node."""
    waiting, seen = [node], {node}
    for one in waiting:  # which grows by those before
        name = names.get(id(getattr(one, "variable", None)))
        if name is not None:
            return name
        for source, _ in one.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)
    return ""
