"""The first operation in an autograd graph that made a non-finite value out of finite ones, or the tensor that held it.

Where autograd keeps too few values to tell, nothing is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.graph.fields import field_of, fields_in_graph, owner_of
from lightning_gradexplode.diagnose.graph.nodes import (
    Argument,
    Graph,
    graph_of,
    name_of_node,
    scalars_of,
    shape_of,
)
from lightning_gradexplode.diagnose.replay.batch_shape import BatchShape
from lightning_gradexplode.diagnose.replay.finiteness import first_place, has_nan, kind_of, nonfinite_mask, operand
from lightning_gradexplode.records import FieldFacts, LossTerm, Operand, Operation, Replay

_CARRYING = {
    "add", "alias", "amax", "amin", "as_strided", "cat", "clone", "copy_slices", "cumsum", "diagonal", "embedding",
    "embedding_bag", "expand", "flip", "gather", "index", "index_select", "max", "mean", "min", "narrow", "neg",
    "permute", "relu", "repeat", "reshape", "roll", "rsub", "select", "select_backward", "slice", "slice_backward",
    "split", "squeeze", "stack", "sub", "sum", "t", "to_copy", "topk", "transpose", "unbind", "unsafe_split",
    "unsafe_view", "unsqueeze", "view",
}  # fmt: skip
"""Operations whose result is finite if their arguments are, and far from the end of the number format."""

_FILLS = {"constant_pad_nd", "fill", "index_fill", "index_put", "masked_fill", "masked_scatter", "scatter", "where"}
"""Operations that put values in place: what they make infinite was meant to be."""

_EXPONENTIALS = {"exp", "exp2", "expm1", "cosh", "sinh"}

_ADDING = {"add", "sub", "rsub"}
"""Operations that are finite for finite arguments, so that a result that is not shows what an argument was."""

_TAKING = {*_ADDING, "mul", "div", "cat", "stack", "addmm", "addcmul", "addcdiv", "lerp"}
"""Operations whose arguments without a gradient may be numbers, and no indices or masks."""

NEAR_THE_END = 1e30
"""Values below it are far from the end of float32, so that their sum is finite."""

_LOSSES = {"mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"}

NO_LINE = "read from the autograd graph of the loss, which knows operations and not their lines"
"""The note of a `Replay` that was made from a graph."""


@dataclass(frozen=True, slots=True)
class GraphFault:
    """What an autograd graph shows of a loss that is not finite.

    Args:
        replay: The first operation or tensor at fault, as a replay of the step would have named it.
        fields: What is known of the tensors that no gradient is computed for: the data, or what was made of it.
    """

    replay: Replay | None
    fields: tuple[FieldFacts, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The origin of a value that is not finite.

    Args:
        node: The operation that made it, or that took it from outside of the graph.
        argument: The argument that was not finite before, None if the operation made the value.
    """

    node: Any
    argument: Argument | None = None


_Answer = _Found | Literal["finite", "filled", "unclear"]
"""Where a value comes from that is not finite; or that it is finite, or may hold fill values only; or not known."""


def fault_in_graph(loss: Tensor, module: nn.Module) -> GraphFault | None:
    """Return what made a loss non-finite, None if its graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
    """
    graph = graph_of(loss)
    if graph is None or not graph.nodes:
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    fields = fields_in_graph(graph, names)
    found = _Search(graph).explain(loss.grad_fn)
    if not isinstance(found, _Found):
        return GraphFault(None, fields)
    return _explained(graph, found, fields, names, loss)


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an autograd graph shows of any loss.

    Args:
        fields: What is known of the tensors that no gradient is computed for.
        operation_names: Plain names of the operations, each once.
    """

    fields: tuple[FieldFacts, ...] = ()
    operation_names: tuple[str, ...] = ()


def facts_of_loss(loss: Tensor, module: nn.Module) -> GraphFacts:
    """Return what the graph of a loss shows of data and operations; nothing if the graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
    """
    graph = graph_of(loss)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if graph is None:
        return GraphFacts()
    operations = dict.fromkeys(name_of_node(node) for node in graph.nodes)
    return GraphFacts(fields_in_graph(graph, names), tuple(operations))


class _Search:
    """Follows a value that is not finite back to where it comes from.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._answers: dict[Any, _Answer] = {}

    def explain(self, last: Any) -> _Answer:
        """Return where the result of the last operation comes from."""
        for node in self._graph.nodes:  # in the order of execution, so that arguments are known before results
            self._graph.compute(node)
            self._answers[node] = self._of(node)
        return self._answers[last]

    def _of(self, node: Any) -> _Answer:
        is_whole = shape_of(node, 1) is None or name_of_node(node) not in _CARRYING
        value = self._graph.values.get((node, 0)) if is_whole else None
        known = None if value is None else self._graph.is_finite(value)
        if known:
            return "finite"
        answers = [self._of_argument(node, one) for one in self._graph.arguments[node]]
        origins = [one for one in answers if isinstance(one, _Found)]
        if origins:
            return self._through(node, origins, value)
        name = name_of_node(node)
        if "filled" in answers and "unclear" not in answers:
            # An operation that makes NaN of what was put in place is at fault.
            return _Found(node) if known is False and value is not None and has_nan(value) else "filled"
        if "unclear" in answers:
            if known is False and name in _EXPONENTIALS and value is not None and not has_nan(value):
                return _Found(node)  # infinite for large arguments; data are seldom infinite themselves
            return self._from_outside(node, answers) if known is False and name in _ADDING else "unclear"
        if name == "mean" and _is_over_nothing(node):
            return _Found(node)
        if known is False:
            # What carries values on makes none of finite ones, unless they are known to be near the end.
            return _Found(node) if name not in _CARRYING or self._is_known(node) else "unclear"
        if name in _FILLS:
            return "filled"
        return "finite" if name in _CARRYING and self._is_small(node) else "unclear"

    def _of_argument(self, node: Any, argument: Argument) -> _Answer:
        value = self._graph.value(argument)
        finite = None if value is None else self._graph.is_finite(value)
        if finite:
            return "finite"
        is_leaf = argument.source is None or hasattr(argument.source, "variable")
        if not is_leaf:
            answer = self._answers[argument.source]
            return "unclear" if finite is False and answer == "finite" else answer
        if finite is False:
            return _Found(node, argument)
        return "finite" if argument.source is None and not _takes_numbers(node) else "unclear"

    def _through(self, node: Any, origins: Sequence[_Found], value: Tensor | None) -> _Answer:
        """Return where the result of an operation comes from whose arguments are not all finite."""
        made = [one for one in origins if name_of_node(one.node) not in _FILLS]
        if made:
            return made[0]
        # An infinity that was put in place is no fault, unless an operation makes NaN of it.
        if value is not None and has_nan(value):
            return _Found(node)
        return origins[0]

    def _from_outside(self, node: Any, answers: Sequence[_Answer]) -> _Answer:
        """Return that a sum is not finite because of an argument that is not kept, if it is the only one."""
        arguments = self._graph.arguments[node]
        outside = [one for one, answer in zip(arguments, answers, strict=True) if answer == "unclear"]
        is_data = len(outside) == 1 and outside[0].source is None
        return _Found(node, outside[0]) if is_data and self._is_small(node) else "unclear"

    def _is_known(self, node: Any) -> bool:
        """Return whether all arguments are known, and one is near the end of the number format."""
        values = [self._graph.value(one) for one in self._graph.arguments[node]]
        return all(one is not None for one in values) and not self._is_small(node)

    def _is_small(self, node: Any) -> bool:
        values = [self._graph.value(one) for one in self._graph.arguments[node]]
        return all(
            one is None or not one.is_floating_point() or (one.element_size() > 2 and _size(one) < NEAR_THE_END)
            for one in values
        )


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _is_over_nothing(node: Any) -> bool:
    """Return whether a reduction has no element to reduce."""
    return 0 in getattr(node, "_saved_self_sym_sizes", ()) or getattr(node, "_saved_self_sym_numel", 1) == 0


def _takes_numbers(node: Any) -> bool:
    """Return whether a tensor without a gradient among the arguments may be one of numbers, and no index or mask."""
    return name_of_node(node) in _TAKING


def _explained(
    graph: Graph, found: _Found, fields: tuple[FieldFacts, ...], names: Mapping[int, str], loss: Tensor
) -> GraphFault:
    """Return what was found as a replay of the step would have."""
    given: dict[str, Any] = {}
    argument = found.argument
    if argument is None:
        given["first"] = _operation(graph, found.node, fields, names)
    elif argument.source is not None:
        given["source"], given["source_name"] = "parameter", names.get(id(argument.source.variable))
    else:
        last = max((node._sequence_nr() for node in graph.nodes if owner_of(graph, node, names)), default=-1)
        field = field_of(graph, found.node, argument, names, is_target=found.node._sequence_nr() > last)
        fields = (*(one for one in fields if one.name != field.name), field)
        given["source"], given["source_name"], given["source_rows"] = "batch", field.name, field.nonfinite_rows
    return GraphFault(
        Replay("reproduced", notes=(NO_LINE,), loss=_number(loss), losses=_losses(graph), **given), fields
    )


def _operation(graph: Graph, node: Any, fields: tuple[FieldFacts, ...], names: Mapping[int, str]) -> Operation:
    result = graph.values.get((node, 0))
    mask = None if result is None else nonfinite_mask(result)
    shape = torch.Size(shape_of(node, 0) or ())
    place = first_place(mask)
    inputs = [graph.value(one) for one in graph.arguments[node]]
    dtype = "float32" if result is None else str(result.dtype).removeprefix("torch.")
    unknown = [shape_of(one.source, one.output) for one in graph.arguments[node] if one.source is not None]
    owner = owner_of(graph, node, names)
    return Operation(
        name=name_of_node(node),
        phase="forward",
        result="nan" if result is None else kind_of(result),
        module=None if owner is None else owner.rpartition(".")[0],
        inputs=tuple(operand(one, place, shape) for one in inputs if one is not None)
        or tuple(Operand(one, dtype) for one in unknown if one is not None),
        scalars=scalars_of(node),
        rows=() if mask is None else _batch_shape(fields).rows(mask),
        element_count=1 if mask is None else int(mask.sum()),
    )


def _batch_shape(fields: Sequence[FieldFacts]) -> BatchShape:
    """Return the number of rows that all tensors of the data have, unknown if they differ."""
    sizes = {one.shape[0] for one in fields if one.shape}
    return BatchShape(sizes.pop() if len(sizes) == 1 else None, frozenset())


def _losses(graph: Graph) -> tuple[LossTerm, ...]:
    """Return the loss functions of the graph, with what they took."""
    terms = []
    for node in graph.nodes:
        name = name_of_node(node)
        values = [graph.value(one) for one in graph.arguments[node]]
        if name in _LOSSES and len(values) > 1 and values[0] is not None and values[1] is not None:
            result = graph.values.get((node, 0))
            inputs = tuple(operand(one, None, one.shape) for one in values[:2] if one is not None)
            terms.append(LossTerm(name, inputs, None if result is None else _number(result)))
    return tuple(terms[:32])


def _number(tensor: Tensor) -> float | None:
    return float(tensor.detach()) if tensor.numel() == 1 else None
