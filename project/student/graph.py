"""A student's graph of values."""

from torch import fx, nn

from project.student.layers import BlockLayer
from project.symmetry import graph_of


def student_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a student; a :class:`BlockLayer` stays one node, so that its graph is that of its sources.

    Args:
        network: The student's network; its modules are shared with the graph.
    """
    return graph_of(network, BlockLayer)
