"""The weights that a forward pass multiplies by, how often in turn, and the size of what they are multiplied with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.graph.nodes import MAX_BYTES, Graph, name_of_node
from lightning_gradexplode.records import AppliedWeight

MAX_WEIGHTS = 256
"""Largest number of weights that are listed."""

REPEATED = 8
"""Number of uses from which it is counted how many of them follow one another."""

PRODUCTS = {"addbmm": 1, "addmm": 1, "addmv": 1, "baddbmm": 1, "bmm": 0, "convolution": 0, "mm": 0, "mul": 0, "mv": 0}
"""Products, with the index of the first factor among the arguments; the other one follows."""

VIEWS = {
    "alias", "expand", "permute", "reshape", "squeeze", "t", "to_copy", "transpose", "unsafe_view", "unsqueeze", "view",
}  # fmt: skip
"""Operations that keep the values of a weight; in autocast it is converted."""


def applied_weights(graph: Graph, names: Mapping[int, str]) -> tuple[AppliedWeight, ...]:
    """Return the weights that the forward pass has multiplied by, in the order of their first use.

    Args:
        graph: The graph of a loss.
        names: Names of the parameters, by their identity.
    """
    uses: dict[int, list[tuple[Any, int]]] = {}  # by weight: the products, and the place of the other factor
    for node in graph.nodes:
        place = PRODUCTS.get(name_of_node(node))
        factors = () if place is None else node.next_functions[place : place + 2]
        if place is not None and len(factors) == 2:  # within `torch.func`, a number is none of the arguments
            first, second = (_leaf(source) for source, _ in factors)
            if (first in names) != (second in names):
                weight, other = (first, place + 1) if first in names else (second, place)
                uses.setdefault(weight, []).append((node, other))
    measured = 0
    applied = []
    for weight, products in [*uses.items()][:MAX_WEIGHTS]:
        calls = len(products) if len(products) < REPEATED else _longest_chain(graph, [node for node, _ in products])
        values = [graph.value(graph.arguments[node][other]) for node, other in products]
        measured += sum(one.numel() * one.element_size() for one in values if one is not None)
        sizes = _sizes(values) if measured <= MAX_BYTES else []
        first_size, last = (sizes[0], sizes[-1]) if sizes else (None, None)
        applied.append(AppliedWeight(names[weight], calls, first_size, last))
    return tuple(applied)


def _leaf(node: Any) -> int:
    """Return the identity of the parameter that a node holds or is a view of, 0 for any other node."""
    while node is not None and not hasattr(node, "variable"):
        if name_of_node(node) not in VIEWS:
            return 0
        node = node.next_functions[0][0]
    return 0 if node is None else id(node.variable)


def _longest_chain(graph: Graph, products: Sequence[Any]) -> int:
    """Return the largest number of some operations that follow one another, each with a result of the one before."""
    counted, own = dict.fromkeys(graph.nodes, 0), set(products)
    for node in graph.nodes:  # in the order of execution
        before = (counted.get(one.source, 0) for one in graph.arguments[node])
        counted[node] = max(before, default=0) + (node in own)
    return max(counted[node] for node in products)


def _sizes(values: Sequence[Tensor | None]) -> list[float]:
    """Return the root mean squares of those tensors that are known, finite and not zero."""
    with torch.no_grad():
        found = [
            float(torch.linalg.vector_norm(one, dtype=torch.float64)) / math.sqrt(max(one.numel(), 1))
            for one in values
            if one is not None and one.is_floating_point()
        ]
    return [one for one in found if 0 < one < math.inf]
