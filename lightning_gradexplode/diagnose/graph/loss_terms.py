"""The operations of an autograd graph by name, and its loss functions with their inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_gradexplode.diagnose.faults.operations import LOSSES, SYMMETRIC_LOSSES
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node
from lightning_gradexplode.diagnose.replay.observation.finiteness import operand
from lightning_gradexplode.records import LossTerm

MAX_TERMS = 32
"""Largest number of loss functions of one graph."""


def operation_names(graph: Graph) -> tuple[str, ...]:
    """Return the names of the operations, each once, without powers that have a finite derivative everywhere."""
    return tuple(dict.fromkeys(name_of_node(node) for node in graph.nodes if not _is_plain_power(node)))


def _is_plain_power(node: Any) -> bool:
    exponent = getattr(node, "_saved_exponent", None)
    return name_of_node(node) == "pow" and isinstance(exponent, (int, float)) and exponent >= 1


def loss_terms(graph: Graph) -> tuple[LossTerm, ...]:
    """Return the loss functions of the graph, with their inputs."""
    terms = []
    for node in graph.nodes:
        name = name_of_node(node)
        arguments = graph.arguments[node]
        if name in SYMMETRIC_LOSSES and arguments[0].source is None:
            arguments = arguments[::-1]
        values = [(graph.value(one), one.source is None) for one in arguments]
        if name == "nll_loss":  # its labels have no gradient, and are no argument in the graph
            values.append((graph.saved_by(node).get("target"), True))
        if name in LOSSES and len(values) > 1 and values[0][0] is not None and values[1][0] is not None:
            graph.compute(node)  # autograd does not save the result of a sum of losses
            result = graph.values.get((node, 0))
            inputs = tuple(
                replace(operand(one, None, one.shape), is_constant=is_constant)
                for one, is_constant in values[:2]
                if one is not None
            )
            terms.append(LossTerm(name, inputs, None if result is None else number_of(result)))
    return tuple(terms[:MAX_TERMS])


def number_of(tensor: Tensor) -> float | None:
    """Return the value of a tensor of one element, None for any other."""
    return float(tensor.detach()) if tensor.numel() == 1 else None
