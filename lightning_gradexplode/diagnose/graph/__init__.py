"""What made a loss non-finite, read from its autograd graph, for training loops that cannot compute a step again."""

from lightning_gradexplode.diagnose.graph.data_operations import DataOperations, is_the_same_within_a_mode
from lightning_gradexplode.diagnose.graph.facts import GraphFacts, facts_of_loss
from lightning_gradexplode.diagnose.graph.fault import NO_LINE, GraphFault, fault_in_graph
from lightning_gradexplode.diagnose.graph.fields import common_rows
from lightning_gradexplode.diagnose.graph.nodes import Loss, ReleasedLoss, values_are_readable
from lightning_gradexplode.diagnose.graph.saved_tensor_hooks import SavedTensorHooks

__all__ = [
    "NO_LINE",
    "DataOperations",
    "GraphFacts",
    "GraphFault",
    "Loss",
    "ReleasedLoss",
    "SavedTensorHooks",
    "common_rows",
    "facts_of_loss",
    "fault_in_graph",
    "is_the_same_within_a_mode",
    "values_are_readable",
]
