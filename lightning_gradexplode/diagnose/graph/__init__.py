"""What made a loss non-finite, read from its autograd graph, for training loops that cannot compute a step again."""

from lightning_gradexplode.diagnose.graph.fault import GraphFacts, GraphFault, facts_of_loss, fault_in_graph
from lightning_gradexplode.diagnose.graph.nodes import Loss, ReleasedLoss

__all__ = ["GraphFacts", "GraphFault", "Loss", "ReleasedLoss", "facts_of_loss", "fault_in_graph"]
