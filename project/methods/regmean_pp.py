"""RegMean++ (Nguyen et al., arXiv 2508.03121): RegMean on what the merged network itself reads."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from project.allocation import Budget
from project.fit import Activations, take_statistics
from project.fit.memory_estimate import patch_bytes, picture_bytes, walk_bytes, widest
from project.methods.base import Method, Preparation
from project.methods.problem import PictureCounts, Problem, Run
from project.methods.regmean import RegMean
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Combined, write
from project.methods.shared.systems import Gram, matrices, merged_layers, shrunk
from project.moments import INPUTS, PICTURES, GroupedMoment, InputMoment, flat, layer_moment, own_domains
from project.student import Student
from project.student.graph import student_graph
from project.student.layers import weight_of
from project.symmetry import NORMS, Layer

WAITING = 4  # copies of one moment: samples that wait to be added, the sum written out, and what is reduced


class RegMeanPP(RegMean):
    """W = (Σ Wᵢ Aᵢ) (Σ Aᵢ)⁻¹ for every layer, where Aᵢ = E[x xᵀ] is over what the merged network reads there.

    Layers are merged in the order in which they run: the merged network, its earlier layers in place, is shown the
    pictures of source i, and does on what it reads there what that source's layer would do. RegMean reads the same in
    the sources, which the merged network's own inputs are not, the deeper the less. What earlier layers got wrong
    stays: the target is the source's layer on these inputs, where PLeaS takes what the source itself puts out.

    Batch norms keep the mean of the sources' scales and shifts and take the statistics of what they read on the way,
    where the authors' code, written for transformers, has none. Biases become the mean of the sources.

    Args:
        off_diagonal: Factor of what is off the diagonal of each Aᵢ; the authors have 0.95.
        ridge: Added to the diagonal, relative to its mean: inputs that no picture excites stay at the mean.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``regmeanpp``.
    """

    def __init__(
        self, off_diagonal: float = 0.95, ridge: float = 1e-6, align: Align = "none", label: str | None = None
    ) -> None:
        super().__init__(off_diagonal, ridge, align, label)
        self.needs = self.needs - {INPUTS} | {PICTURES}

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Count in the moments of all sources at one layer, and the values of all pictures there, or of one batch."""
        spec, total = problem.spec, sum(pictures.local.values())
        batch, values = min(total, pictures.largest), widest(spec, spec.sizes)
        moments = max(self._moment_bytes(layer, problem) for layer in spec.layers)
        moments += patch_bytes(spec, spec.sizes, batch)
        whole, least = walk_bytes(values, total) + picture_bytes(spec, total), walk_bytes(values, batch)
        return super().prepare(problem, pictures, budgets, planned).adding(moments + whole, moments + least)

    @staticmethod
    def _moment_bytes(layer: Layer, problem: Problem) -> int:
        """Bytes of the second moments of all sources, and of what waits to be added to one."""
        unknowns = layer.taps * problem.spec.sizes[layer.inputs] // layer.blocks
        return 8 * (len(problem.sources) + WAITING) * layer.blocks * unknowns**2

    @torch.no_grad()
    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """Merge layer after layer, each on what those before it make of the pictures."""
        problem, pictures = space.problem, space.evidence.pictures
        parameters, measured = dict(space.mean), {}
        write(student, parameters)
        graph, layers = student_graph(student.network), {layer.node: layer for layer in merged_layers(space)}
        nobody = [None] * len(pictures)
        activations = Activations(graph, [], pictures, nobody, nobody, [1.0] * len(pictures), run.world, run.scratch)
        owned = own_domains(len(problem.sources), list(pictures), problem.owners)
        readers = [[source for source, mine in enumerate(owned) if domain in mine] for domain in pictures]
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            if (layer := layers.get(node.name)) is not None:
                name = f"{layer.name}.weight"
                inputs = self._inputs(layer, node, graph.get_submodule(layer.name), activations, readers)
                weight, measured[layer.name] = self._solved(Gram(layer.name, matrices(space, layer), inputs))
                parameters[name] = weight.view_as(space.mean[name])
                write(student, {name: parameters[name]})
            elif node.op == "call_module" and isinstance(norm := graph.get_submodule(str(node.target)), NORMS):
                take_statistics(norm, node, activations)
            activations.advance_student(node)
        return Combined(parameters, measured)

    def _inputs(
        self, layer: Layer, node: fx.Node, module: nn.Module, activations: Activations, readers: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """Aᵢ of every source over its own domains, float64, in the shape of :class:`Gram`'s inputs.

        Args:
            layer: The layer.
            node: Its call in the merged network.
            module: It itself, there.
            activations: The batches.
            readers: For each domain, the sources that are looked at on it.
        """
        moments: dict[tuple[int, ...], InputMoment] = {}  # of domains that the same sources are looked at on
        for batch in activations.batches:
            if not (sources := tuple(readers[batch.domain])):
                continue
            moments.setdefault(sources, _moment(module, layer)).read([flat(batch.student.first_argument(node), module)])
        for sources in sorted({tuple(sources) for sources in readers if sources}):
            moments.setdefault(sources, _moment(module, layer)).reduce(activations.world.reduce)
        for source in sorted({source for sources in moments for source in sources}):
            first, *others = (moment for sources, moment in moments.items() if source in sources)
            total, count = first.sum(), first.count
            for moment in others:
                total.add_(moment.sum())
                count += moment.count
            yield shrunk(total.div_(max(1, count)), self.off_diagonal)


def _moment(module: nn.Module, layer: Layer) -> InputMoment:
    """An empty second moment of what a layer of the merged network reads."""
    weight = weight_of(module)
    if layer.blocks > 1:
        assert isinstance(module, nn.Conv2d)
        return GroupedMoment(module, constant=False, device=weight.device)
    return layer_moment(module, weight.shape[1], layer.sides, constant=False, device=weight.device)
