"""What an autograd graph shows of any loss: its data, its operations, and the weights that it multiplies by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_gradexplode.diagnose.faults.operations import EXPONENTIALS
from lightning_gradexplode.diagnose.graph.applied import applied_weights
from lightning_gradexplode.diagnose.graph.factors import compares_layer, divisors_of, summed_elements
from lightning_gradexplode.diagnose.graph.fields import fields_in_graph
from lightning_gradexplode.diagnose.graph.inactive import inactive_operation
from lightning_gradexplode.diagnose.graph.loss_terms import loss_terms, operation_names
from lightning_gradexplode.diagnose.graph.nodes import Graph, Loss, graph_of, name_of_node
from lightning_gradexplode.diagnose.graph.operation import operation_of
from lightning_gradexplode.diagnose.graph.own_functions import OwnFunctions
from lightning_gradexplode.diagnose.graph.single_elements import softmax_of_one
from lightning_gradexplode.diagnose.replay.observation.finiteness import has_nan
from lightning_gradexplode.records import AppliedWeight, FieldFacts, LossTerm, Operation


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
        own_functions: Each ``torch.autograd.Function`` that is not of torch itself.
        summed: Number of elements that the loss is the sum of, None if it is none.
        compares_layer: Whether the loss is made of the difference of a layer's result and data alone.
        inactive: An operation whose derivative is zero for all elements, and the nearest parameter before it; None
            without one.
        of_one_element: A softmax over one element, and the nearest parameter before it; None without one.
    """

    fields: tuple[FieldFacts, ...] = ()
    operation_names: tuple[str, ...] = ()
    losses: tuple[LossTerm, ...] = ()
    divisors: tuple[float, ...] | None = None
    applied: tuple[AppliedWeight, ...] = ()
    overflow: Operation | None = None
    own_functions: OwnFunctions = field(default_factory=lambda: OwnFunctions(Graph()))
    summed: int | None = None
    compares_layer: bool = False
    inactive: tuple[str, str] | None = None
    of_one_element: tuple[str, str] | None = None


def facts_of_loss(loss: Loss, module: nn.Module, may_have_hooks: bool = False) -> GraphFacts:
    """Return facts about data and operations from the graph of a loss; none if the graph cannot be read.

    Args:
        loss: The loss, on the host, before its backward pass.
        module: The network.
        may_have_hooks: Whether saved tensors may have hooks that they do not show, so that no value is read.
    """
    graph = graph_of(loss, may_have_hooks)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if graph is None:
        return GraphFacts()
    fields, applied = fields_in_graph(graph, names), applied_weights(graph, names)
    overflow = next((one for one in graph.nodes if _overflows(graph, one)), None)
    return GraphFacts(
        fields=fields,
        applied=applied,
        overflow=None if overflow is None else operation_of(graph, overflow, fields, names),
        divisors=divisors_of(graph),
        summed=summed_elements(graph, loss.grad_fn),
        operation_names=operation_names(graph),
        losses=loss_terms(graph),
        own_functions=OwnFunctions(graph),
        compares_layer=compares_layer(loss.grad_fn),
        inactive=inactive_operation(graph, names),
        of_one_element=softmax_of_one(graph, names),
    )


def _overflows(graph: Graph, node: Any) -> bool:
    """Return whether a node is an exponential function with an infinite result that is known."""
    if name_of_node(node) not in EXPONENTIALS:
        return False
    graph.compute(node)
    value = graph.values.get((node, 0))
    return value is not None and graph.is_finite(value) is False and not has_nan(value)
