"""Operations in float16, one of which has computed the first value of a loss that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_gradexplode.diagnose.faults.operations import FILLS
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node
from lightning_gradexplode.diagnose.graph.search import CARRYING

_SUMS = {"add", "cumsum", "mean", "rsub", "sub", "sum"}
"""Operations that only carry finite values in float32, and may overflow in float16."""


def half_operations(graph: Graph) -> tuple[str, ...]:
    """Return the names of the operations of which one computed the first non-finite value, if all are in float16.

    Autograd saves the values before and after them, but not those between, so that it is not known which one it was.

    Args:
        graph: The graph, with all results that can be computed.

    Returns:
        None of them if one computes in another type, or if a weight or a tensor without a gradient is not finite.
    """
    first = next((node for node in graph.nodes if _is_nonfinite(graph, node)), None)
    found, waiting = set[Any](), [first]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        is_half = _is_half(node)
        if name_of_node(node) in FILLS:
            return ()  # a filled-in infinity
        for argument in graph.arguments[node]:
            value = graph.value(argument)
            is_finite = None if value is None else graph.is_finite(value)
            if is_finite:
                continue
            is_weight = hasattr(argument.source, "variable")
            if is_finite is False and (is_weight or argument.source is None):
                return ()
            if argument.source is None and not is_half:
                return ()  # a tensor of any type, such as the batch
            if not is_weight:
                waiting.append(argument.source)
        if not is_half and name_of_node(node) not in CARRYING and not _makes_smaller(graph, node):
            return ()
    ordered = [node for node in graph.nodes if node in found and _is_half(node)]
    return tuple(dict.fromkeys(name for node in ordered if (name := name_of_node(node)) not in CARRYING - _SUMS))


def _makes_smaller(graph: Graph, node: Any) -> bool:
    """Return whether an operation divides by known numbers of at least one, or multiplies by ones of at most one.

    What it returns is infinite only if what it takes is.
    """
    name, arguments = name_of_node(node), graph.arguments[node]
    factor = graph.value(arguments[1]) if name in ("div", "mul") and len(arguments) == 2 else None
    if factor is None or not factor.numel():
        return False
    sizes = factor.detach().abs()
    return bool(sizes.min() >= 1) if name == "div" else bool(sizes.max() <= 1)


def _is_nonfinite(graph: Graph, node: Any) -> bool:
    value = graph.values.get((node, 0))
    return value is not None and graph.is_finite(value) is False


def _is_half(node: Any) -> bool:
    results: Sequence[Any] = getattr(node, "_input_metadata", ())  # of the inputs of the backward pass
    return bool(results) and results[0].dtype == torch.float16
