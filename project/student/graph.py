"""A student's graph of values."""

from torch import fx, nn

from project.student.experts import BlendedLayer, LearntRouter, LowRankLayer, ProjectionRouter, RoutedNorm
from project.student.layers import BlockLayer
from project.symmetry import graph_of

WHOLE = (BlockLayer, BlendedLayer, LearntRouter, LowRankLayer, ProjectionRouter, RoutedNorm)


def student_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a student; its own layers stay one node each, so that its graph is that of its sources, with routers.

    Args:
        network: The student's network; its modules are shared with the graph.
    """
    return graph_of(network, *WHOLE)
