"""Running several networks of one graph side by side, value by value."""

from collections.abc import Callable, Sequence

from torch import Tensor, fx, nn

from project.symmetry import graph_of

Tap = Callable[[fx.Node, list[Tensor], list[Tensor]], None]


class Lockstep(nn.Module):
    """Several networks of the same graph that run together.

    A tap is called at every value of the graph with what all networks read and wrote there, before a later in-place
    operation can change it. Nothing outlives its last use, so the peak is that of one value in all networks.

    Args:
        networks: In eval mode; their parameters are shared, not copied.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graph_of(network) for network in networks)
        self.networks = tuple(networks)
        self.taps: list[Tap] = []

    def layers(self, name: str) -> list[nn.Module]:
        """The module of that name in every network."""
        return [graph.get_submodule(name) for graph in self.graphs]

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Run all networks on the same pictures and return the logits of each."""
        runs = [ForwardPass(graph, pictures) for graph in self.graphs]
        for nodes in zip(*(run.nodes.values() for run in runs), strict=True):
            inputs = [run.first_argument(node) for run, node in zip(runs, nodes, strict=True)]
            outputs = [run.step(node) for run, node in zip(runs, nodes, strict=True)]
            if nodes[0].op == "output":
                return outputs
            for tap in self.taps:
                tap(nodes[0], inputs, outputs)
            for run, node in zip(runs, nodes, strict=True):
                run.release(node)
        raise AssertionError("a graph ends with its output")


class ForwardPass(fx.Interpreter):
    """One network's pass over one batch, a value of the graph at a time.

    Args:
        graph: The traced network.
        pictures: The batch.
    """

    def __init__(self, graph: nn.Module, pictures: Tensor) -> None:
        assert isinstance(graph, fx.GraphModule)
        super().__init__(graph)
        self.env = {}
        self.args_iter = iter((pictures,))
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}

    def first_argument(self, node: fx.Node) -> Tensor:
        """What a node reads first."""
        first = node.args[0] if node.args else None
        return self.env.get(first) if isinstance(first, fx.Node) else None  # type: ignore[return-value]

    def step(self, node: fx.Node) -> Tensor:
        """Compute a node."""
        value: Tensor = self.run_node(node)
        self.env[node] = value
        return value

    def release(self, node: fx.Node) -> None:
        """Forget what nothing after this node reads."""
        for dead in self.user_to_last_uses.get(node, ()):
            del self.env[dead]
