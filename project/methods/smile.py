"""SMILE (Tang et al., arXiv 2408.10174): sparse mixtures of low-rank experts, without data and without training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from project.allocation import Budget
from project.errors import ConfigurationError, one_of, whole
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Aligned, write
from project.student import (
    BlendedLayer,
    Block,
    LowRankLayer,
    MixtureStudent,
    Projected,
    ProjectionRouter,
    RoutedNorm,
    batch_norms,
)
from project.symmetry import Layer, sites

Norms = Literal["routed", "merged"]
NONE = 1e-6  # of the base's norm: what is added to a layer, if it is no more, has no directions


class SMILE(Aligned):
    """W₀ x + Σ gᵢ(x) Uᵢ Σᵢ Vᵢᵀ x in every convolution and linear layer: routed by the picture, made without data.

    Uᵢ Σᵢ Vᵢᵀ are the first ``rank`` singular vectors of what source i adds, ΔWᵢ = Wᵢ − W₀, which acts on unfolded
    patches in a convolution; they run as a kernel to ``rank`` units and from there to all. A source's score is
    ‖Vᵀ x‖ with its first ``gate_rank`` vectors, mean over the positions, so that a whole picture goes one way. The
    softmax of the ``top`` largest scores are the gates. Each layer has its own, and its expert adds its own constant.

    The experts of a layer that would be larger so than ΔWᵢ itself, and of grouped convolutions, stay in full: they are
    added to W₀ for each picture, or run beside it where there are few positions. A layer whose base is the mean of the
    sources because it lacks one, such as a head for other classes, follows the gates of the layer before. Heads of
    different label spaces and parameters outside layers are merged as by the average, and so are layers that do not see
    pictures one by one.

    Args:
        rank: Singular vectors of each expert; more than a layer has are all.
        gate_rank: Singular vectors of ΔWᵢ that a score is made of, whatever ``rank``; at most half as many as a layer
            has inputs, as along all of them an input is as long for every source. The paper has 1.
        top: How many sources a picture is sent to, in every layer.
        norms: ``routed``: the sources' own norms, statistics too, weighed by the gates of the layer that ran last, so
            that nothing need be re-estimated; ``merged``: the mean of the sources, re-estimated on calibration
            pictures. The paper's networks have no batch norm.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``smile``.
    """

    def __init__(
        self,
        rank: int = 32,
        gate_rank: int = 16,
        top: int = 1,
        norms: Norms = "routed",
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        whole(1, rank=rank, gate_rank=gate_rank, top=top)
        one_of(Norms, norms=norms)
        self.rank, self.gate_rank, self.top = rank, gate_rank, top
        self.norms: Norms = norms

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse gates that could not tell the sources apart, and networks without a layer to route."""
        preparation = super().prepare(problem, pictures, budgets, planned)
        count = len(problem.sources)
        if self.top > count:
            raise ConfigurationError(f"top of method {self.name} is {self.top}; allowed: 1 to the {count} sources.")
        if problem.base == "mean" and count == 2:
            raise ConfigurationError(
                f"base is 'mean', from which 2 sources differ by the sign alone, which the gates of method {self.name} "
                f"do not see; give the base that they were fine-tuned from, or 3 sources."
            )
        routed = self._routed(problem)
        if not routed:
            raise ConfigurationError(f"method {self.name} finds no layer that sees pictures one by one, to route them.")
        known = [*routed, problem.spec.head.name] if problem.labels.mode == "different" else routed
        left = [layer.name for layer in problem.spec.layers if layer.name not in known]
        message = f"{self.name} does not route {', '.join(left)}: it takes their mean" if left else None
        return replace(preparation, message=message)

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """Need θ₀ whatever was made before."""
        return True

    @torch.no_grad()
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make one student of budget 1, whatever the budgets."""
        space = Space.of(problem, evidence, run.world, self.align)
        plain, blocks = problem.start(space.maps), self._blocks(space)
        base = {**space.mean, **space.base}
        layers = {layer.name: layer for layer in problem.spec.layers}
        routed = [name for block in blocks for name in block.layers]
        write(plain, {name: tensor for name, tensor in base.items() if name.rpartition(".")[0] in routed})
        student = MixtureStudent(plain, blocks)
        for block, router in zip(blocks, student.routers, strict=True):
            for index, name in enumerate(block.layers):
                experts = [Decomposed.of(source[f"{name}.weight"], base[f"{name}.weight"], layers[name])
                           for source in space.sources]  # fmt: skip
                _load(student.network.get_submodule(name), experts, _constants(space, base, name), self.rank)
                if index == 0:
                    cast(ProjectionRouter, router).directions.copy_(
                        torch.cat([expert.directions(cast(Projected, block.router).rank) for expert in experts])
                    )
            for name in block.norms:
                cast(RoutedNorm, student.network.get_submodule(name)).load(_norms(space, name))
        settled = not batch_norms(student.network)
        yield Merged(self.name, Budget(1.0), student, matches=space.matches, settled=settled, norms="sources' own")

    def _routed(self, problem: Problem) -> list[str]:
        """List the layers that see pictures one by one, in execution order, without heads of different label spaces."""
        layers = {layer.name for layer in problem.spec.layers}
        if problem.labels.mode == "different":
            layers -= {problem.spec.head.name}
        return [site.name for site in sites(problem.sources[0], problem.spec) if site.apart and site.name in layers]

    def _blocks(self, space: Space) -> list[Block]:
        """Make a block for every layer that has gates of its own, and what follows them."""
        spec, routed = space.problem.spec, set(self._routed(space.problem))
        layers = {layer.name: layer for layer in spec.layers}
        norms = {norm.name for norm in spec.norms} if self.norms == "routed" else set()
        blocks: list[Block] = []
        for site in sites(space.problem.sources[0], spec):
            if site.name in routed:
                ranks = {site.name: _rank(layers[site.name], spec.sizes, self.rank)}
                if f"{site.name}.weight" in space.base:
                    rank = _gate_rank(layers[site.name], spec.sizes, self.gate_rank)
                    blocks.append(Block(Projected(rank, self.top), ranks))
                elif blocks:
                    blocks[-1] = Block(blocks[-1].router, {**blocks[-1].layers, **ranks}, blocks[-1].norms)
            elif site.name in norms and site.apart and blocks:
                blocks[-1] = Block(blocks[-1].router, blocks[-1].layers, (*blocks[-1].norms, site.name))
        return blocks


@dataclass(frozen=True, eq=False)
class Decomposed:
    """ΔW = U Σ Vᵀ, of what a source adds to a layer, by singular values; block by block where it is grouped.

    Args:
        change: ΔW, in the weight's shape.
        left: U, shape (blocks, outputs / blocks, rank).
        values: Σ, shape (blocks, rank).
        right: Vᵀ, shape (blocks, rank, inputs / blocks · taps).
    """

    change: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, weight: Tensor, base: Tensor, layer: Layer) -> "Decomposed":
        """Decompose what a weight adds to another, of this layer."""
        change = weight - base
        left, values, right = torch.linalg.svd(change.reshape(layer.blocks, -1, change[0].numel()), full_matrices=False)
        return cls(change, left, torch.where(values > NONE * base.norm(), values, 0.0), right)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Take U Σ (outputs, rank) and Vᵀ (rank, inputs · taps), of a layer in one block."""
        return self.left[0, :, :rank] * self.values[0, :rank], self.right[0, :rank]

    def cut(self, rank: int) -> Tensor:
        """Cut ΔW to a rank, or leave it in full where it has no more; grouped layers are not cut."""
        if len(self.left) > 1 or rank >= self.values.shape[1]:
            return self.change
        up, down = self.factors(rank)
        return (up @ down).reshape(self.change.shape)

    def directions(self, count: int) -> Tensor:
        """Take the first right singular vectors over all inputs: shape (count, inputs, …), 0 where ΔW has no more."""
        order = self.values.flatten().argsort(descending=True, stable=True)[:count].tolist()
        blocks, rank = self.values.shape
        size = self.change.shape[1]
        directions = self.change.new_zeros(count, blocks * size, *self.change.shape[2:])
        for place, (block, row) in enumerate(divmod(index, rank) for index in order):
            if self.values[block, row] > 0:
                directions[place, block * size : (block + 1) * size] = self.right[block, row].reshape(
                    self.change[0].shape
                )
        return directions


def _gate_rank(layer: Layer, sizes: Mapping[str, int], rank: int) -> int:
    """Count the directions of each source that tell it from the others."""
    half = layer.taps * sizes[layer.inputs] // 2
    return max(1, min(rank, _full_rank(layer, sizes), half))


def _full_rank(layer: Layer, sizes: Mapping[str, int]) -> int:
    """Find the largest rank that a change of a layer can have, in each of its blocks."""
    return min(sizes[layer.outputs] // layer.blocks, sizes[layer.inputs] // layer.blocks * layer.taps)


def _rank(layer: Layer, sizes: Mapping[str, int], rank: int) -> int:
    """Choose the rank of the factors that an expert is executed in; 0 where ΔW itself is no larger than they are."""
    outputs, inputs = sizes[layer.outputs], sizes[layer.inputs] * layer.taps
    return rank if layer.blocks == 1 and rank * (outputs + inputs) < outputs * inputs else 0


def _load(layer: nn.Module, experts: Sequence[Decomposed], constants: Sequence[Tensor], rank: int) -> None:
    if isinstance(layer, LowRankLayer):
        layer.load([expert.factors(rank) for expert in experts], constants)
    else:
        cast(BlendedLayer, layer).load([expert.cut(rank) for expert in experts], constants)


def _constants(space: Space, base: Mapping[str, Tensor], layer: str) -> list[Tensor]:
    """Compute what every source adds to a layer's constant; empty where it has none."""
    name = f"{layer}.bias"
    return [source[name] - base[name] for source in space.sources] if name in base else []


def _norms(space: Space, norm: str) -> list[dict[str, Tensor]]:
    """Collect the tensors of every source's norm."""
    state = space.problem.sources[0].state_dict()
    names = [tensor for tensor in ("weight", "bias", "running_mean", "running_var") if f"{norm}.{tensor}" in state]
    tensors = {tensor: space.buffers(f"{norm}.{tensor}") for tensor in names}
    return [{tensor: tensors[tensor][index] for tensor in names} for index in range(len(space.sources))]
