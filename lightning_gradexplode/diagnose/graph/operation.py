"""An operation of an autograd graph in the form in which a replay records one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.graph.fields import common_rows, owner_of
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node, nonfinite_weights, scalars_of, shape_of
from lightning_gradexplode.diagnose.graph.recompute import recomputed
from lightning_gradexplode.diagnose.replay.observation.batch_shape import BatchShape
from lightning_gradexplode.diagnose.replay.observation.finiteness import (
    all_finite,
    first_place,
    kind_of,
    nonfinite_mask,
    operand,
)
from lightning_gradexplode.diagnose.replay.observation.guard import HALF
from lightning_gradexplode.records import FieldFacts, Operand, Operation


def operation_of(
    graph: Graph, node: Any, fields: tuple[FieldFacts, ...], names: Mapping[int, str], mask: Tensor | None = None
) -> Operation:
    """Return an operation of a graph with its arguments, as far as they are known.

    Args:
        graph: The graph.
        node: The node of the operation.
        fields: Facts about the tensors without a gradient, whose first dimension is that of the batch.
        names: Names of the parameters by their identities.
        mask: The elements of the result that are at fault; None for those that are not finite.
    """
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
        inputs=(*operands, *(operand(one, place, shape) for one in nonfinite_weights(graph, node)))
        or tuple(Operand(one, dtype) for one in unknown if one is not None),
        scalars=scalars_of(node),
        rows=() if mask is None else BatchShape(common_rows(fields), frozenset()).rows(mask),
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
