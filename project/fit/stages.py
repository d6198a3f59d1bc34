"""Which layers are fitted, and in which order: stages of layers that do not feed each other, from the graph."""

from collections.abc import Collection
from itertools import pairwise

from torch import fx

from project.symmetry import Spec


def stages(graph: fx.GraphModule, layers: Collection[str]) -> list[list[str]]:
    """Sort layers into stages: those of one stage read only what earlier stages have written.

    Args:
        graph: A traced network.
        layers: Names of the layers' calls in it.
    """
    depths = _depths(graph, layers)
    ordered: list[list[str]] = [[] for _ in range(max(depths.values(), default=0))]
    for node, depth in depths.items():
        if node.name in layers:
            ordered[depth - 1].append(node.name)
    return ordered


def in_stages(graph: fx.GraphModule, layers: Collection[str]) -> fx.GraphModule:
    """Put the calls of a graph into the order of its stages; what it computes stays the same.

    In this order a layer comes as late as the values that its output is added to, where they do not depend on it: of
    two branches that meet in a sum, the one with more layers is finished last, and can make up for the other.

    Args:
        graph: A traced network; changed in place.
        layers: Names of the layers' calls in it.
    """
    depths = _depths(graph, layers)
    ordered = sorted(depths, key=lambda node: (node.op == "output", depths[node]))  # stable: else as it was
    for before, after in pairwise(ordered):
        before.append(after)
    graph.graph.lint()
    graph.recompile()
    return graph


def unfitted(spec: Spec, *, joint: bool = False) -> list[str]:
    """Tell what least squares leaves at the mean of the sources, in words.

    Args:
        spec: Groups of the sources.
        joint: Whether layers are fitted jointly; the sequential fit solves for grouped convolutions, too.
    """
    grouped = sum(layer.blocks > 1 for layer in spec.layers) if joint else 0
    tracked = {axis.tensor for group in spec.groups.values() for axis in group.axes}
    norms = sum(f"{norm.name}.running_mean" not in tracked for norm in spec.norms)
    tables = len(spec.parameters) + len(spec.loose)
    counts = ((grouped, "grouped or depthwise convolutions"), (norms, "group or layer norms"), (tables, "parameters"))
    return [f"{count} {words}" for count, words in counts if count]


def _depths(graph: fx.GraphModule, layers: Collection[str]) -> dict[fx.Node, int]:
    """Count, for every value, the most layers on a way from the picture to it, itself included."""
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        before = max((depths[value] for value in node.all_input_nodes), default=0)
        depths[node] = before + (node.name in layers)
    return depths
