"""A rectifier in the graph of a loss that returns zero for all elements, so that no gradient passes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node


def inactive_rectifier(graph: Graph, names: Mapping[int, str]) -> tuple[str, str] | None:
    """Return the last rectifier whose result is zero for all elements, None without one.

    Args:
        graph: The graph of a loss.
        names: Names of the parameters, by their identity.

    Returns:
        The name of the operation, and that of the nearest parameter before it, empty if none is known.
    """
    for node in reversed(graph.nodes):
        if name_of_node(node) == "relu":
            result = _saved(node)
            if result is not None and result.is_cpu and result.numel() and not bool(result.any()):
                return name_of_node(node), parameter_before(node, names)
    return None


def _saved(node: Any) -> Tensor | None:
    """Return the result of a rectifier, None if it was overwritten since."""
    try:
        with torch.no_grad():
            result = node._saved_result
    except (AttributeError, RuntimeError):
        return None
    return result if isinstance(result, Tensor) else None


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
