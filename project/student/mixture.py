"""One network that weighs its layers for every picture: the sources share what it holds in common, and pay storage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import fx, nn

from project.errors import CheckpointError
from project.student.build import Student
from project.student.experts import BlendedLayer, LearntRouter, LowRankLayer, ProjectionRouter, RoutedNorm
from project.student.graph import student_graph

ROUTERS = "routers"


@dataclass(frozen=True)
class Learnt:
    """A router that is trained; see :class:`~project.student.experts.LearntRouter`.

    Args:
        hidden: Units between its two layers.
    """

    hidden: int


@dataclass(frozen=True)
class Projected:
    """A router that follows from the sources; see :class:`~project.student.experts.ProjectionRouter`.

    Args:
        rank: Vectors of each source.
        top: Sources that have a gate on a picture.
    """

    rank: int
    top: int


@dataclass(frozen=True)
class Block:
    """Routed block: layers and norms that one router serves; it reads what the first of the layers reads.

    Args:
        router: Which.
        layers: layer -> rank of what the sources add to it, 0 for in full; in execution order.
        norms: Norms that are weighed too; all of them run after the first layer.
    """

    router: Learnt | Projected
    layers: Mapping[str, int]
    norms: Sequence[str] = ()

    @property
    def plain(self) -> dict[str, Any]:
        """The block as plain values, for a file."""
        return {"router": asdict(self.router), "layers": dict(self.layers), "norms": list(self.norms)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Block":
        """Rebuild a block from what :attr:`plain` gave.

        Raises:
            CheckpointError: If it holds no layers, or numbers that are none of units, ranks or sources.
        """
        entries = plain["router"]
        router = Learnt(**entries) if "hidden" in entries else Projected(**entries)
        layers = dict(plain["layers"])
        if not layers:
            raise CheckpointError("a block has no layers.")
        for least, numbers in ((1, asdict(router)), (0, layers)):
            for name, number in numbers.items():
                if not isinstance(number, int) or number < least:
                    raise CheckpointError(f"{name!r} of a block is {number!r}; allowed: integers from {least}.")
        return cls(router, layers, tuple(plain["norms"]))


class MixtureStudent(Student):
    """A student some of whose layers are W₀ + Σ gᵢ(x) · what source i adds, with gates g of the picture (WEMoE, SMILE).

    Nobody names a domain: routers inside the network find the gates. It costs one source's multiply-accumulates, those
    of the gates, and what weighing takes; it holds what every source adds.

    Args:
        student: Of one source's size; its layers become W₀, and it must not be used any more.
        blocks: What is weighed, in execution order. Values of routers and of what is weighed are not set.
    """

    plain = False

    def __init__(self, student: Student, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        super().__init__(
            _mixed(student, blocks),
            student.spec,
            student.group_maps,
            student.labels,
            student.architecture,
            student.preprocessing,
            student.lineage,
        )
        self.eval()

    @classmethod
    def of(cls, student: Student, entries: Iterable[Mapping[str, Any]]) -> "MixtureStudent":
        """Rebuild a student from what :attr:`entries` gave; the network's tensors must be loaded afterwards.

        Args:
            student: Of the same unit maps.
            entries: The blocks as plain values.

        Raises:
            CheckpointError: If they are no blocks of as many sources.
        """
        blocks, sources = [Block.of(entry) for entry in entries], student.maps[student.spec.input.name].sources
        for block in blocks:
            if isinstance(block.router, Projected) and block.router.top > sources:
                raise CheckpointError(f"'top' of a block is {block.router.top}, but there are {sources} sources.")
        return cls(student, blocks)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What a file must hold beside a student's entries."""
        return [block.plain for block in self.blocks]

    @property
    def routers(self) -> list[nn.Module]:
        """The router of every block."""
        return [self.network.get_submodule(f"{ROUTERS}.{index}") for index in range(len(self.blocks))]

    @property
    def macs(self) -> int:
        """Multiply-accumulates on one picture: of the layers, the gates, and of what they weigh."""
        positions = {layer.name: layer.positions for layer in self.spec.layers}
        total = super().macs
        for block, router in zip(self.blocks, self.routers, strict=True):
            router = cast(LearntRouter | ProjectionRouter, router)
            total += router.added(positions[next(iter(block.layers))])
            for name in (*block.layers, *block.norms):
                module = cast(BlendedLayer | LowRankLayer | RoutedNorm, self.network.get_submodule(name))
                total += module.added(positions.get(name, 1), router.active)
        return total

    def dense(self) -> nn.Module:
        """Refuse: it is another network for every picture.

        Raises:
            CheckpointError: Always: it cannot be merged again.
        """
        raise CheckpointError(
            "a mixture's layers are others for every picture, and not one network; use the sources instead."
        )


def _mixed(student: Student, blocks: Sequence[Block]) -> fx.GraphModule:
    """Change the student's network: routers run before their blocks, and layers and norms read their gates too."""
    graph = student_graph(student.network)
    calls = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    sources, units = student.maps[student.spec.input.name].sources, {n.name: n.group for n in student.spec.norms}
    positions = {layer.name: layer.positions for layer in student.spec.layers}
    for index, block in enumerate(blocks):
        first = next(iter(block.layers))
        router, name = _router(block.router, graph.get_submodule(first), sources), f"{ROUTERS}.{index}"
        graph.add_submodule(name, router)
        with graph.graph.inserting_before(calls[first]):
            gates = graph.graph.call_module(name, (calls[first].args[0],))
        changed: dict[str, nn.Module] = {}
        for layer, rank in block.layers.items():
            plain = graph.get_submodule(layer)
            changed[layer] = (
                LowRankLayer(plain, sources, rank) if rank else BlendedLayer(plain, sources, positions[layer])
            )
        for norm in block.norms:
            changed[norm] = RoutedNorm(graph.get_submodule(norm), student.maps[units[norm]].units, sources)
        for target, module in changed.items():
            graph.set_submodule(target, module)
            calls[target].args = (calls[target].args[0], gates)
    graph.graph.lint()
    graph.recompile()
    return graph


def _router(router: Learnt | Projected, layer: nn.Module, sources: int) -> nn.Module:
    if isinstance(router, Learnt):
        return LearntRouter(layer, sources, router.hidden)
    return ProjectionRouter(layer, sources, router.rank, router.top)
