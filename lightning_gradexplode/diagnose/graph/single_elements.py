"""A softmax over one element in the graph of a loss, whose result is the same for all inputs."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_gradexplode.diagnose.graph.inactive import parameter_before
from lightning_gradexplode.diagnose.graph.nodes import Graph, name_of_node, shape_of
from lightning_gradexplode.diagnose.graph.recompute import signed

_SOFTMAXES = {"softmax", "log_softmax"}


def softmax_of_one(graph: Graph, names: Mapping[int, str]) -> tuple[str, str] | None:
    """Return the last softmax over a dimension of one element, None without one.

    Args:
        graph: The graph of a loss.
        names: Names of the parameters, by their identity.

    Returns:
        The name of the operation, and that of the nearest parameter before it, empty if none is known.
    """
    for node in reversed(graph.nodes):
        shape, dimension = shape_of(node, 0), getattr(node, "_saved_dim", None)
        if name_of_node(node) in _SOFTMAXES and shape and dimension is not None and shape[signed(dimension)] == 1:
            return name_of_node(node), parameter_before(node, names)
    return None
