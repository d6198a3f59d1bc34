"""A student's graph of values."""

from torch import fx, nn

from project.student.layers import BlockLayer
from project.symmetry import graph_of


def student_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a student; block layers stay whole, so that its graph is that of its sources."""
    return graph_of(network, BlockLayer)
