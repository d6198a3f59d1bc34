"""RegMean++ (Nguyen et al., arXiv 2508.03121): RegMean on what the merged network itself reads."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from project.allocation import Budget
from project.fit import Activations, take_statistics
from project.fit.memory_estimate import picture_bytes, walk_bytes, widest
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
        """Count in the values of all pictures at one layer, or, where they wait on disk, those of one batch."""
        spec, total = problem.spec, sum(pictures.local.values())
        batch, values = min(total, pictures.largest), widest(spec, spec.sizes)
        whole = walk_bytes(values, total) + picture_bytes(spec, total)
        return super().prepare(problem, pictures, budgets, planned).adding(whole, walk_bytes(values, batch))

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
        domains = [[list(pictures).index(domain) for domain in mine] for mine in owned]
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            if (layer := layers.get(node.name)) is not None:
                name = f"{layer.name}.weight"
                inputs = self._inputs(layer, node, graph.get_submodule(layer.name), activations, domains)
                weight, measured[layer.name] = self._solved(Gram(layer.name, matrices(space, layer), inputs))
                parameters[name] = weight.view_as(space.mean[name])
                write(student, {name: parameters[name]})
            elif node.op == "call_module" and isinstance(norm := graph.get_submodule(str(node.target)), NORMS):
                take_statistics(norm, node, activations)
            activations.advance_student(node)
        return Combined(parameters, measured)

    def _inputs(
        self, layer: Layer, node: fx.Node, module: nn.Module, activations: Activations, domains: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Aᵢ of every source over its own domains, float64, in the shape of :class:`Gram`'s inputs."""
        moments = [_moment(module, layer) for _ in activations.owners]
        for batch in activations.batches:
            moments[batch.domain].read([flat(batch.student.first_argument(node), module)])
        for moment in moments:
            moment.reduce(activations.world.reduce)
        means = []
        for mine in domains:
            total = torch.stack([moments[domain].sum() for domain in mine]).sum(0)
            means.append(shrunk(total / max(1, sum(moments[domain].count for domain in mine)), self.off_diagonal))
        return means


def _moment(module: nn.Module, layer: Layer) -> InputMoment:
    """An empty second moment of what a layer of the merged network reads."""
    weight = weight_of(module)
    if layer.blocks > 1:
        assert isinstance(module, nn.Conv2d)
        return GroupedMoment(module, constant=False, device=weight.device)
    return layer_moment(module, weight.shape[1], layer.sides, constant=False, device=weight.device)
