"""What made a loss non-finite, read from its autograd graph, for training loops that cannot compute a step again."""

from lightning_gradexplode.diagnose.graph.fault import GraphFacts, GraphFault, facts_of_loss, fault_in_graph

__all__ = ["GraphFacts", "GraphFault", "facts_of_loss", "fault_in_graph"]
