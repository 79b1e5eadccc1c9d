"""The tensors without a gradient in an autograd graph: the data, or tensors computed from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lightning_gradexplode.diagnose.faults.operations import LOSSES, SYMMETRIC_LOSSES
from lightning_gradexplode.diagnose.graph.nodes import Argument, Graph, name_of_node, shape_of
from lightning_gradexplode.measure.batch_facts import collect_batch_facts
from lightning_gradexplode.records import FieldFacts, ReadAs

MAX_FIELDS = 8
"""Maximum number of tensors."""

_INPUT_OF = {"addmm", "mm", "bmm", "convolution", "mkldnn_convolution", "linear", "native_layer_norm",
             "native_batch_norm", "cudnn_batch_norm", "mkldnn_rnn_layer", "cudnn_rnn", "miopen_rnn"}  # fmt: skip
_OF_STEPS = {"mkldnn_rnn_layer", "cudnn_rnn", "miopen_rnn"}
"""Operations whose input has the time steps before the samples, whatever ``batch_first`` is."""

_LOGARITHMS = {"log", "log2", "log10", "log1p"}
"""Operations whose result is multiplied by the target in a loss without a loss function."""

_OF_WEIGHTS = {"t", "transpose", "permute", "to_copy"}
"""Operations on a weight before it is multiplied by: autocast also narrows it."""

_PRODUCTS = {"mul", "div"}
"""Operations in which a single number scales all elements of another tensor."""

_DIFFERENCES = {"sub", "rsub"}
"""Operations with the target as an input in a loss without a loss function."""

_UNKNOWN: dict[str, Any] = {"least": None, "greatest": None, "mean": None, "std": None, "is_integral": False}
"""Facts about a tensor of which only the result of the operation that reads it is known."""


def fields_in_graph(graph: Graph, names: Mapping[int, str]) -> tuple[FieldFacts, ...]:
    """Return facts about the data among the inputs of loss functions and of operations with parameters.

    Args:
        graph: The graph.
        names: Names of the parameters by their identity.
    """
    fields: dict[str, FieldFacts] = {}
    for node in graph.nodes:
        operation = name_of_node(node)
        for place, argument in enumerate(graph.arguments[node]):
            is_data = argument.source is None and argument.value is not None and argument.value.is_floating_point()
            is_target = operation in LOSSES and (place == 1 or operation in SYMMETRIC_LOSSES)
            is_input = is_target or operation in _INPUT_OF or _weighs(graph, node)
            if is_data and is_input and argument.value is not None and argument.value.dim():
                field = field_of(graph, node, argument, names)
                fields.setdefault(field.name, field)
        if len(fields) >= MAX_FIELDS:
            break
    return tuple(fields.values())


def field_of(
    graph: Graph, node: Any, argument: Argument, names: Mapping[int, str], is_target: bool = False
) -> FieldFacts:
    """Return facts about an input without a gradient of an operation.

    Args:
        graph: The graph.
        node: The operation.
        argument: The tensor; if it is not saved, non-finite elements are those of the operation's result.
        names: Names of the parameters by their identity.
        is_target: Whether no operation with a parameter follows.
    """
    operation, weighed = name_of_node(node), _weighs(graph, node)
    read_as: ReadAs
    is_number = argument.value is not None and argument.value.dim() == 0
    if is_number and operation in _PRODUCTS and math.prod(shape_of(node, 0) or ()) > 1:
        read_as, read_by = "factor", operation
    elif weighed is not None or operation in LOSSES or (is_target and operation in _DIFFERENCES):
        read_as, read_by = "target", weighed or operation
    elif operation in _INPUT_OF and weight_of(graph, node, names) is not None:
        owner = owner_of(graph, node, names) or operation
        # A model that is one layer has no name; its `weight` does not say what takes the input.
        read_as, read_by = "input", owner.rpartition(".")[0] or ("" if owner == "weight" else owner)
    else:
        read_as, read_by = "constant", operation
    if argument.value is not None:
        is_of_steps = operation in _OF_STEPS and argument.value.dim() == 3
        facts = _facts(argument.value.transpose(0, 1) if is_of_steps else argument.value)
    else:
        result = graph.values.get((node, 0))
        facts = FieldFacts("", (), "float32") if result is None else replace(_facts(result), **_UNKNOWN)
    return replace(facts, name=_name(read_as, read_by), read_as=read_as, read_by=read_by)


def _name(read_as: ReadAs, read_by: str) -> str:
    """Return the name of a tensor by what reads it."""
    if read_as in ("constant", "factor"):
        return f"{read_as} in {read_by}"
    if read_as == "input" and (not read_by or read_by.isdecimal()):
        return f"input of layer {read_by}" if read_by else "input of the model"
    return f"{read_as} of {read_by}"


def _weighs(graph: Graph, node: Any) -> str | None:
    """Return the name of the logarithm that an operation multiplies by a tensor, None if it does not."""
    sources = [one.source for one in graph.arguments[node]] if name_of_node(node) == "mul" else []
    names = [name_of_node(one) for one in sources if one is not None]
    return names[0] if len(names) == 1 < len(sources) and names[0] in _LOGARITHMS else None


def common_rows(fields: Sequence[FieldFacts]) -> int | None:
    """Return the number of rows that all tensors have, None if they differ."""
    sizes = {one.shape[0] for one in fields if one.shape}
    return sizes.pop() if len(sizes) == 1 else None


def owner_of(graph: Graph, node: Any, names: Mapping[int, str]) -> str | None:
    """Return the name of the parameter that an operation multiplies by, None if it is none or is not known."""
    return names.get(id(weight_of(graph, node, names)))


def weight_of(graph: Graph, node: Any, names: Mapping[int, str]) -> nn.Parameter | None:
    """Return the parameter that an operation multiplies by, None if it is none.

    It has no name if it is gathered from shards for the step.
    """
    for argument in graph.arguments[node]:
        source = argument.source
        while source is not None and name_of_node(source) in _OF_WEIGHTS and graph.arguments.get(source):
            source = graph.arguments[source][0].source
        variable = getattr(source, "variable", None)
        name = names.get(id(variable))
        if isinstance(variable, nn.Parameter) and (variable.dim() > 1 if name is None else not name.endswith("bias")):
            return variable
    return None


def _facts(value: Tensor) -> FieldFacts:
    (field,) = collect_batch_facts(value).fields
    return field
