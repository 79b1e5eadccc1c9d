"""Numbers that a loss or its terms are divided by, and the elements that it is the sum of, from its graph."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradexplode.diagnose.graph.applied import PRODUCTS, VIEWS
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node, shape_of

_REDUCTIONS = {"abs", "div", "mean", "pow", "sqrt", "sum"}
"""Operations that make a loss of a difference."""


def divisors_of(graph: Graph) -> tuple[float, ...] | None:
    """Return the numbers that results of one element are divided by, None if autograd does not save one of them."""
    divisors = []
    for node in graph.nodes:
        name = name_of_node(node)
        if name not in ("div", "mul") or math.prod(shape_of(node, 0) or ()) != 1:
            continue
        values = _constants(graph, node)
        if None in values:
            return None
        divisors += [value if name == "div" else 1 / value for value in values if value]
    return tuple(divisors)


def _constants(graph: Graph, node: Any) -> list[float | None]:
    """Return the arguments of a node that hold one number without a gradient, None for others without a gradient."""
    constants = [one for one in graph.arguments[node] if one.source is None]
    return [None if one.value is None or one.value.numel() != 1 else float(one.value) for one in constants]


def summed_elements(graph: Graph, node: Any) -> int | None:
    """Return the number of elements that a node adds up, None if it is no sum of all elements of a tensor."""
    while node is not None and name_of_node(node) == "div" and _constants(graph, node) == [1.0]:
        node = node.next_functions[0][0]  # by the number of micro-batches
    if node is None or name_of_node(node) != "sum" or shape_of(node, 0) != ():
        return None
    source, output = node.next_functions[0]
    shape = None if source is None else shape_of(source, output)
    return None if shape is None else math.prod(shape)


def compares_layer(node: Any) -> bool:
    """Return whether a loss is made of the difference of the result of a layer and a tensor without a gradient alone.

    Args:
        node: The node of the loss.
    """
    while node is not None and name_of_node(node) in _REDUCTIONS:
        node = node.next_functions[0][0]
    if node is None or name_of_node(node) not in ("sub", "rsub"):
        return False
    sources = [one for one, _ in node.next_functions]
    layer = next(filter(None, sources), None)
    while layer is not None and name_of_node(layer) in VIEWS:
        layer = layer.next_functions[0][0]
    return sources.count(None) == 1 and layer is not None and name_of_node(layer) in PRODUCTS
