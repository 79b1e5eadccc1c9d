"""The first operation in an autograd graph with finite inputs and a non-finite result, or the first non-finite tensor.

If autograd saves too few values to find it, none is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.graph.factors import divisors_of
from lightning_gradexplode.diagnose.graph.fields import field_of, fields_in_graph, weight_of
from lightning_gradexplode.diagnose.graph.half_operations import half_operations
from lightning_gradexplode.diagnose.graph.loss_terms import loss_terms, number_of, operation_names
from lightning_gradexplode.diagnose.graph.nodes import Argument, Graph, Loss, graph_of, name_of_node, shape_of
from lightning_gradexplode.diagnose.graph.operation import operation_of
from lightning_gradexplode.diagnose.graph.search import Found, Search
from lightning_gradexplode.diagnose.replay.observation.finiteness import nonfinite_mask
from lightning_gradexplode.records import FieldFacts, Replay

NO_LINE = "read from the autograd graph of the loss, which holds operations but not their lines"
"""The note of a `Replay` that was made from a graph."""


@dataclass(frozen=True, slots=True)
class GraphFault:
    """What an autograd graph shows of a loss that is not finite.

    Args:
        replay: The first operation or tensor at fault, in the form of a replay of the step.
        fields: Facts about the tensors without a gradient: the data, or tensors computed from it.
        divisors: The numbers that results of one element are divided by in the loss, None if they are not known.
    """

    replay: Replay | None
    fields: tuple[FieldFacts, ...] = ()
    divisors: tuple[float, ...] | None = None


def fault_in_graph(loss: Loss, module: nn.Module, may_have_hooks: bool = False) -> GraphFault | None:
    """Return the fault that made a loss non-finite, None if its graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
        may_have_hooks: Whether saved tensors may have hooks that they do not show, so that no value is read.
    """
    graph = graph_of(loss, may_have_hooks)
    if graph is None or not graph.nodes:
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    fields = fields_in_graph(graph, names)
    found = Search(graph).explain(loss.grad_fn)
    if isinstance(found, Found):
        given, fields = _explained(graph, found, fields, names)
    else:
        half = half_operations(graph)
        given = {"half_precision": True, "half_operations": half} if half else {}
    replay = Replay(
        "reproduced",
        notes=(NO_LINE,),
        loss=number_of(loss.detach()),
        losses=loss_terms(graph),
        operation_names=operation_names(graph),
        **given,
    )
    return GraphFault(replay if given else None, fields, divisors_of(graph))


def _explained(
    graph: Graph, found: Found, fields: tuple[FieldFacts, ...], names: Mapping[int, str]
) -> tuple[dict[str, Any], tuple[FieldFacts, ...]]:
    """Return the operation or tensor that was found as fields of a replay, and the facts with those of that tensor."""
    given: dict[str, Any] = {}
    argument = found.argument
    division = None if argument is None else _division_of(graph, argument)
    if division is not None:
        node, zeros = division
        given["first"] = operation_of(graph, node, fields, names, zeros)
    elif argument is None:
        given["first"] = operation_of(graph, found.node, fields, names)
    elif argument.source is not None:
        given["source"], given["source_name"] = "parameter", names.get(id(argument.source.variable))
    else:
        weighted = (one for one in graph.nodes if weight_of(graph, one, names) is not None)
        last = max((one._sequence_nr() for one in weighted), default=-1)
        field = field_of(graph, found.node, argument, names, is_target=found.node._sequence_nr() > last)
        fields = (*(one for one in fields if one.name != field.name), field)
        given["source"], given["source_name"], given["source_rows"] = "batch", field.name, field.nonfinite_rows
    return given, fields


def _division_of(graph: Graph, argument: Argument) -> tuple[Any, Tensor] | None:
    """Return a division by zero in the rows in which a tensor of the data is not finite, and a mask of its zeros.

    A mean over the neighbors in a graph network, for example, divides by their number in each layer. In the first layer
    autograd does not save the division, only its result: the same divisor is found in a later layer.
    """
    value = graph.value(argument) if argument.source is None else None
    rows = None if value is None else nonfinite_mask(value)
    if rows is None or rows.dim() == 0:
        return None
    for node in graph.nodes:
        divisor = graph.value(graph.arguments[node][-1]) if name_of_node(node) == "div" else None
        if divisor is None or divisor.dim() == 0:
            continue
        found, zeros = (one.reshape(-1, one.shape[-1]).any(1) for one in (rows, divisor == 0))
        if found.shape == zeros.shape and torch.equal(found, zeros):
            return node, (divisor == 0).expand(shape_of(node, 0) or divisor.shape)
    return None
