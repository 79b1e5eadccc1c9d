"""The first operation in an autograd graph with finite inputs and a non-finite result, or the first non-finite tensor.

If autograd saves too few values to find it, none is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.faults.operations import EXPONENTIALS, LOSSES, SYMMETRIC_LOSSES
from lightning_gradexplode.diagnose.graph.applied import applied_weights
from lightning_gradexplode.diagnose.graph.factors import compares_layer, divisors_of, summed_elements
from lightning_gradexplode.diagnose.graph.fields import field_of, fields_in_graph, owner_of, weight_of
from lightning_gradexplode.diagnose.graph.half_operations import half_operations
from lightning_gradexplode.diagnose.graph.inactive import inactive_rectifier
from lightning_gradexplode.diagnose.graph.nodes import (
    Argument,
    Graph,
    Loss,
    graph_of,
    name_of_node,
    nonfinite_weights,
    saved_tensors,
    scalars_of,
    shape_of,
)
from lightning_gradexplode.diagnose.graph.own_functions import OwnFunctions
from lightning_gradexplode.diagnose.graph.recompute import recomputed
from lightning_gradexplode.diagnose.graph.search import Found, Search
from lightning_gradexplode.diagnose.graph.single_elements import softmax_of_one
from lightning_gradexplode.diagnose.replay.observation.batch_shape import BatchShape
from lightning_gradexplode.diagnose.replay.observation.finiteness import (
    all_finite,
    first_place,
    has_nan,
    kind_of,
    nonfinite_mask,
    operand,
)
from lightning_gradexplode.diagnose.replay.observation.guard import HALF
from lightning_gradexplode.records import AppliedWeight, FieldFacts, LossTerm, Operand, Operation, Replay

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


def fault_in_graph(loss: Loss, module: nn.Module) -> GraphFault | None:
    """Return the fault that made a loss non-finite, None if its graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
    """
    graph = graph_of(loss)
    if graph is None or not graph.nodes:
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    fields = fields_in_graph(graph, names)
    found = Search(graph).explain(loss.grad_fn)
    if not isinstance(found, Found):
        return GraphFault(_in_half_precision(graph, loss), fields, divisors_of(graph))
    return _explained(graph, found, fields, names, loss)


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """Facts about any loss from its autograd graph.

    Args:
        fields: Facts about the tensors without a gradient.
        operation_names: Plain names of the operations, each once.
        losses: The loss functions, with their inputs.
        divisors: The numbers that results of one element are divided by in the loss, None if they are not known.
        applied: The weights that the forward pass multiplies by.
        overflow: The first exponential function with an infinite result, None without one.
        own_functions: Each ``torch.autograd.Function`` that is not of torch itself, None if the graph cannot be read.
        summed: Number of elements that the loss is the sum of, None if it is none.
        compares_layer: Whether the loss is made of the difference of a layer's result and data alone.
        inactive: A rectifier whose result is zero for all elements, and the nearest parameter before it; None without
            one.
        of_one_element: A softmax over one element, and the nearest parameter before it; None without one.
    """

    fields: tuple[FieldFacts, ...] = ()
    operation_names: tuple[str, ...] = ()
    losses: tuple[LossTerm, ...] = ()
    divisors: tuple[float, ...] | None = None
    applied: tuple[AppliedWeight, ...] = ()
    overflow: Operation | None = None
    own_functions: OwnFunctions | None = None
    summed: int | None = None
    compares_layer: bool = False
    inactive: tuple[str, str] | None = None
    of_one_element: tuple[str, str] | None = None


def facts_of_loss(loss: Loss, module: nn.Module) -> GraphFacts:
    """Return facts about data and operations from the graph of a loss; none if the graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
    """
    graph = graph_of(loss)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if graph is None:
        return GraphFacts()
    fields, applied = fields_in_graph(graph, names), applied_weights(graph, names)
    overflow = next((one for one in graph.nodes if _overflows(graph, one)), None)
    operation = None if overflow is None else _operation(graph, overflow, fields, names)
    divisors, summed = divisors_of(graph), summed_elements(graph, loss.grad_fn)
    return GraphFacts(
        fields,
        _names(graph),
        _losses(graph),
        divisors,
        applied,
        operation,
        OwnFunctions(graph),
        summed,
        compares_layer(loss.grad_fn),
        inactive_rectifier(graph, names),
        softmax_of_one(graph, names),
    )


def _overflows(graph: Graph, node: Any) -> bool:
    """Return whether a node is an exponential function with an infinite result that is known."""
    if name_of_node(node) not in EXPONENTIALS:
        return False
    graph.compute(node)
    value = graph.values.get((node, 0))
    return value is not None and graph.is_finite(value) is False and not has_nan(value)


def _names(graph: Graph) -> tuple[str, ...]:
    """Return the names of the operations, each once, without powers that have a finite derivative everywhere."""
    return tuple(dict.fromkeys(name_of_node(node) for node in graph.nodes if not _is_plain_power(node)))


def _is_plain_power(node: Any) -> bool:
    exponent = getattr(node, "_saved_exponent", None)
    return name_of_node(node) == "pow" and isinstance(exponent, (int, float)) and exponent >= 1


def _explained(
    graph: Graph, found: Found, fields: tuple[FieldFacts, ...], names: Mapping[int, str], loss: Loss
) -> GraphFault:
    """Return the operation or tensor that was found, in the form of a replay of the step."""
    given: dict[str, Any] = {}
    argument = found.argument
    division = None if argument is None else _division_of(graph, argument)
    if division is not None:
        node, zeros = division
        given["first"] = _operation(graph, node, fields, names, zeros)
    elif argument is None:
        given["first"] = _operation(graph, found.node, fields, names)
    elif argument.source is not None:
        given["source"], given["source_name"] = "parameter", names.get(id(argument.source.variable))
    else:
        weighted = (one for one in graph.nodes if weight_of(graph, one, names) is not None)
        last = max((one._sequence_nr() for one in weighted), default=-1)
        field = field_of(graph, found.node, argument, names, is_target=found.node._sequence_nr() > last)
        fields = (*(one for one in fields if one.name != field.name), field)
        given["source"], given["source_name"], given["source_rows"] = "batch", field.name, field.nonfinite_rows
    return GraphFault(
        Replay(
            "reproduced",
            notes=(NO_LINE,),
            loss=_number(loss.detach()),
            losses=_losses(graph),
            operation_names=_names(graph),
            **given,
        ),
        fields,
        divisors_of(graph),
    )


def _in_half_precision(graph: Graph, loss: Loss) -> Replay | None:
    """Return the operations in float16 that may be at fault, in the form of a replay of the step; None without them."""
    found = half_operations(graph)
    if not found:
        return None
    return Replay(
        "reproduced",
        notes=(NO_LINE,),
        loss=_number(loss.detach()),
        losses=_losses(graph),
        half_precision=True,
        operation_names=_names(graph),
        half_operations=found,
    )


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


def _operation(
    graph: Graph, node: Any, fields: tuple[FieldFacts, ...], names: Mapping[int, str], mask: Tensor | None = None
) -> Operation:
    result = graph.values.get((node, 0))
    if mask is None and result is not None:
        mask = nonfinite_mask(result)
    shape = torch.Size(shape_of(node, 0) or ())
    place = first_place(mask)
    inputs = [graph.value(one) for one in graph.arguments[node]]
    operands = [
        replace(operand(value, place, shape), is_constant=one.source is None)
        for one, value in zip(graph.arguments[node], inputs, strict=True)
        if value is not None
    ]
    dtype = "float32" if result is None else str(result.dtype).removeprefix("torch.")
    unknown = [shape_of(one.source, one.output) for one in graph.arguments[node] if one.source is not None]
    owner = owner_of(graph, node, names)
    return Operation(
        name=name_of_node(node),
        finite_in_float32=_finite_in_float32(node, inputs, tuple(shape)),
        phase="forward",
        result="nan" if result is None else kind_of(result),
        module=None if owner is None else owner.rpartition(".")[0],
        inputs=(*operands, *(operand(one, place, shape) for one in nonfinite_weights(node)))
        or tuple(Operand(one, dtype) for one in unknown if one is not None),
        scalars=scalars_of(node),
        rows=() if mask is None else _batch_shape(fields).rows(mask),
        element_count=1 if mask is None else int(mask.sum()),
    )


def _finite_in_float32(node: Any, arguments: Sequence[Tensor | None], shape: tuple[int, ...]) -> bool | None:
    """Return whether an operation in half precision is finite in float32, None if it cannot be computed in it."""
    given = [one for one in arguments if one is not None]
    if len(given) < len(arguments) or not any(one.dtype in HALF for one in given):
        return None
    device = given[0].device.type
    with suppress(Exception), torch.no_grad(), torch.autocast(device, enabled=False):  # it would narrow them again
        wide = [one.float() if one.dtype in HALF else one for one in given]
        result = recomputed(name_of_node(node), node, wide, shape)
        return None if result is None else all_finite(result)
    return None


def _batch_shape(fields: Sequence[FieldFacts]) -> BatchShape:
    """Return the number of rows that all tensors of the data have, unknown if they differ."""
    sizes = {one.shape[0] for one in fields if one.shape}
    return BatchShape(sizes.pop() if len(sizes) == 1 else None, frozenset())


def _losses(graph: Graph) -> tuple[LossTerm, ...]:
    """Return the loss functions of the graph, with their inputs."""
    terms = []
    for node in graph.nodes:
        name = name_of_node(node)
        arguments = graph.arguments[node]
        if name in SYMMETRIC_LOSSES and arguments[0].source is None:
            arguments = arguments[::-1]
        values = [(graph.value(one), one.source is None) for one in arguments]
        if name == "nll_loss":  # its labels have no gradient, and are no argument in the graph
            values.append((saved_tensors(node).get("target"), True))
        if name in LOSSES and len(values) > 1 and values[0][0] is not None and values[1][0] is not None:
            graph.compute(node)  # autograd does not save the result of a sum of losses
            result = graph.values.get((node, 0))
            inputs = tuple(
                replace(operand(one, None, one.shape), is_constant=is_constant)
                for one, is_constant in values[:2]
                if one is not None
            )
            terms.append(LossTerm(name, inputs, None if result is None else _number(result)))
    return tuple(terms[:32])


def _number(tensor: Tensor) -> float | None:
    return float(tensor.detach()) if tensor.numel() == 1 else None
