"""The operations of an autograd graph, with the values that are saved for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.faults.operations import base_name
from lightning_gradexplode.diagnose.graph.recompute import recomputed
from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite, is_in_memory

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

MAX_NODES = 20_000
"""Graphs with more nodes are not read."""

MAX_BYTES = 1 << 28
"""Total size of the values that are checked."""

_POSITIONS: Mapping[str, int] = {
    "self": 0,
    "input": 0,
    "query": 0,
    "mat1": 1,
    "mat2": 1,
    "other": 1,
    "target": 1,
    "exponent": 1,
    "weight": 1,
    "vec": 1,
    "tensor": 1,
    "tensor1": 1,
    "batch1": 1,
    "key": 1,
    "tensor2": 2,
    "batch2": 2,
    "value": 2,
}
"""Index of the argument of an operation that autograd saves under a name."""


class Loss(Protocol):
    """A loss with its autograd graph: a tensor, or a `ReleasedLoss`."""

    @property
    def grad_fn(self) -> Any:
        """The node that computed it, None without one."""

    def detach(self) -> Tensor:
        """Return its value."""


@dataclass(frozen=True, slots=True, eq=False)
class ReleasedLoss:
    """A loss whose tensor may not exist any more, as after ``loss = loss / 4``, while its graph does.

    Args:
        value: Its value.
        grad_fn: The node that computed it.
    """

    value: Tensor
    grad_fn: Any

    def detach(self) -> Tensor:
        """Return its value."""
        return self.value


@dataclass(frozen=True, slots=True, eq=False)
class Argument:
    """An argument of an operation that may hold numbers.

    Args:
        source: The node that computed it, None for a tensor without a gradient.
        output: Index of the result of that node.
        value: The tensor, None if autograd does not save it.
    """

    source: Any
    output: int
    value: Tensor | None


@dataclass(slots=True, eq=False)
class Graph:
    """An autograd graph.

    Args:
        nodes: Its nodes, in the order in which their operations ran.
        values: Saved results of nodes, by node and index of the result.
        arguments: The arguments of each node.
        saved: The tensors that autograd saves for each node without hooks, by name.
    """

    nodes: list[Any] = field(default_factory=list)
    values: dict[tuple[Any, int], Tensor] = field(default_factory=dict)
    arguments: dict[Any, list[Argument]] = field(default_factory=dict)
    saved: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    _finite: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)  # by identity, which the tensor keeps valid
    _bytes: int = 0

    def value(self, argument: Argument) -> Tensor | None:
        """Return an argument's tensor, None if no operation that uses or returns it saves it."""
        if argument.value is not None or argument.source is None:
            return argument.value
        variable = getattr(argument.source, "variable", None)
        if variable is None:
            return self.values.get((argument.source, argument.output))
        return variable.detach() if is_in_memory(variable) else None

    def saved_by(self, node: Any) -> dict[str, Tensor]:
        """Return the tensors that autograd saves for a node without hooks, by name."""
        return self.saved.get(node, {})

    def is_finite(self, tensor: Tensor) -> bool | None:
        """Return whether a tensor is finite, None once more than `MAX_BYTES` were checked."""
        if id(tensor) not in self._finite:
            self._bytes += tensor.numel() * tensor.element_size()
            if self._bytes > MAX_BYTES:
                return None
            self._finite[id(tensor)] = (tensor, all_finite(tensor))
        return self._finite[id(tensor)][1]

    def compute(self, node: Any) -> None:
        """Compute the result of an operation again, if it is not saved and its arguments are known."""
        shape = shape_of(node, 0)
        if (node, 0) in self.values or shape is None or shape_of(node, 1) is not None or self._bytes > MAX_BYTES:
            return
        arguments = [self.value(one) for one in self.arguments[node]]
        name = name_of_node(node)
        if name == "pow" and len(arguments) == 2 and arguments[1] is None:
            arguments = arguments[:1]
        given = [one for one in arguments if one is not None]
        if len(given) < len(arguments) or not given:
            return
        with suppress(Exception), torch.no_grad():  # the operation may not fit these arguments
            result = recomputed(name, node, given, shape)
            if result is not None:
                self._bytes += result.numel() * result.element_size()
                self.values[node, 0] = result


def graph_of(loss: Loss, may_have_hooks: bool = False) -> Graph | None:
    """Return the autograd graph of a loss, None if it is too large.

    Nothing is computed: a value that autograd saves by hooks, as with activation checkpointing, counts as not saved.

    Args:
        loss: The loss.
        may_have_hooks: Whether saved tensors may have hooks that they do not show.
    """
    graph, waiting, known = Graph(), [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        waiting += [source for source, _ in node.next_functions]
        if len(known) > MAX_NODES:
            return None
    # Parameters are not operations; their sequence number is the largest.
    graph.nodes = sorted((one for one in known if not hasattr(one, "variable")), key=lambda one: one._sequence_nr())
    if loss.grad_fn is not None:
        graph.values[loss.grad_fn, 0] = loss.detach()
    if not may_have_hooks:
        graph.saved = {node: _saved_tensors(node) for node in graph.nodes}
    for node in graph.nodes:
        arguments = []
        for place, (source, output) in enumerate(node.next_functions):
            value = next((one for name, one in graph.saved_by(node).items() if _position(node, name) == place), None)
            if source is not None and value is not None and tuple(value.shape) != shape_of(source, output):
                value = None
            arguments.append(Argument(source, output, value))
            if source is not None and value is not None:
                graph.values.setdefault((source, output), value)
        graph.arguments[node] = arguments
        kept = graph.saved_by(node)
        result = kept.get("result", kept.get("result0"))
        if result is not None and tuple(result.shape) == shape_of(node, 0):
            graph.values[node, 0] = result
    return graph


def values_are_readable() -> bool:
    """Return whether a graph has the shapes of its results, by which values are assigned to them: from torch 2.5 on."""
    return VERSION >= (2, 5)


def shape_of(node: Any, output: int) -> tuple[int, ...] | None:
    """Return the shape of a result of a node, None if it is unknown."""
    shapes = getattr(node, "_input_metadata", ())  # of the inputs of the backward pass
    return tuple(shapes[output].shape) if output < len(shapes) else None


def name_of_node(node: Any) -> str:
    """Return the plain name of the operation of a node, such as ``"log_softmax"``."""
    return base_name(str(node.name()))


def nonfinite_weights(graph: Graph, node: Any) -> list[Tensor]:
    """Return the class weights of a loss function, if they are not finite."""
    if name_of_node(node) not in ("nll_loss", "binary_cross_entropy_with_logits"):
        return []
    kept = graph.saved_by(node)
    return [kept[name] for name in ("weight", "pos_weight") if name in kept and not all_finite(kept[name])]


def scalars_of(node: Any) -> tuple[float, ...]:
    """Return the numeric arguments of an operation that autograd saves, such as an exponent."""
    values = (getattr(node, f"_saved_{name}", None) for name in ("exponent", "min", "max", "p", "eps"))
    return tuple(float(one) for one in values if isinstance(one, (int, float)) and math.isfinite(one))


def _position(node: Any, name: str) -> int | None:
    if name == "mat2" and "mm" in name_of_node(node) and len(node.next_functions) == 3:
        return 2  # the first argument is the summand
    return _POSITIONS.get(name)


def _saved_tensors(node: Any) -> dict[str, Tensor]:
    """Return the tensors that autograd saves for an operation without hooks, by name."""
    found = {}
    for attribute in dir(node):
        raw = getattr(node, attribute, None) if attribute.startswith("_raw_saved_") else None
        if not isinstance(raw, torch._C._autograd.SavedTensor) or getattr(raw, "unpack_hook", None) is not None:
            continue
        name = attribute.removeprefix("_raw_saved_")
        try:
            value = getattr(node, f"_saved_{name}")
        except RuntimeError:  # changed in place, or released
            continue
        if isinstance(value, Tensor) and value.layout is torch.strided and is_in_memory(value):
            # The sum of a number of Python, as autograd saves it, is what memory holds; not so of a view of it.
            found[name] = value.detach().view(value.shape)
    return found
