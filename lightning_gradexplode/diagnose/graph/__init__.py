"""What made a loss non-finite, read from its autograd graph, for training loops that cannot compute a step again."""

from lightning_gradexplode.diagnose.graph.fault import GraphFault, fault_in_graph, fields_of_loss

__all__ = ["GraphFault", "fault_in_graph", "fields_of_loss"]
