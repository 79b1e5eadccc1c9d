"""Functions of the user's own in the graph of a loss, and what those multiply the gradient by that change no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.graph.nodes import Graph, shape_of
from lightning_gradexplode.records import OwnFunction

MAX_FUNCTIONS = 64
"""Number of nodes whose gradients are compared."""

SAME = 1e-3
"""Relative difference of two gradients up to which one is a multiple of the other."""


class OwnFunctions:
    """Each ``torch.autograd.Function`` of a graph that is not of torch itself, observed in the coming backward pass.

    Args:
        graph: The graph of a loss, before its backward pass.
    """

    def __init__(self, graph: Graph) -> None:
        own = [node for node in graph.nodes if _own_name(node) is not None][:MAX_FUNCTIONS]
        self._names = tuple(dict.fromkeys(str(_own_name(node)) for node in own))
        self._measured: dict[str, OwnFunction] = {}
        for node in own:
            if _changes_no_value(graph, node):
                node.register_hook(self._hook(str(_own_name(node)), _is_only_way(graph, node)))

    @property
    def found(self) -> tuple[OwnFunction, ...]:
        """The functions, in the order of their first use."""
        return tuple(self._measured.get(name, OwnFunction(name)) for name in self._names)

    def _hook(self, name: str, is_only_way: bool) -> Callable[[Sequence[Any], Sequence[Any]], None]:
        def measure(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            gradient = next((one for one in inputs if isinstance(one, Tensor)), None)
            factor = None
            with suppress(Exception):  # within the backward pass of the run, which must not fail by it
                factor = _factor(gradient, outputs[0])
            if factor is not None and abs(factor) >= abs(self._measured.get(name, OwnFunction(name, 0.0)).factor or 0):
                self._measured[name] = OwnFunction(name, factor, is_only_way)

        return measure


def _own_name(node: Any) -> str | None:
    """Return the name of the user's own function of a node, None for those of torch."""
    kind = getattr(type(node), "_forward_cls", None)
    return None if kind is None or kind.__module__.startswith("torch.") else str(kind.__name__)


def _changes_no_value(graph: Graph, node: Any) -> bool:
    """Return whether the only result of a function is known to be its only input with a gradient."""
    sources = [one for one in graph.arguments[node] if one.source is not None]
    result = graph.values.get((node, 0))
    if len(sources) != 1 or shape_of(node, 1) is not None or result is None:
        return False
    graph.compute(sources[0].source)
    value = graph.value(sources[0])
    return value is not None and value.shape == result.shape and torch.equal(value, result)


def _is_only_way(graph: Graph, node: Any) -> bool:
    """Return whether nothing that a function takes reaches the loss in another way."""
    return not _reached([graph.nodes[-1]], without=node) & _reached([one.source for one in graph.arguments[node]])


def _reached(waiting: list[Any], without: Any = None) -> set[Any]:
    """Return the nodes from which some nodes are computed, and these; not through one of them."""
    known: set[Any] = {None, without}
    while waiting:
        node = waiting.pop()
        if node not in known:
            known.add(node)
            waiting += [source for source, _ in node.next_functions]
    return known - {None, without}


def _factor(gradient: Tensor | None, of: Any) -> float | None:
    """Return the number that one gradient is another one multiplied by, None if it is none."""
    if gradient is None or not isinstance(of, Tensor) or gradient.shape != of.shape or not gradient.is_cpu:
        return None
    one, other = gradient.detach().float(), of.detach().float()
    size = float(other.square().sum())
    factor = float((one * other).sum()) / size if size > 0 else 0.0
    return factor if float((one - factor * other).norm()) <= SAME * float(one.norm()) else None
