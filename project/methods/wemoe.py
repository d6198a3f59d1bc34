"""WEMoE (Tang et al., arXiv 2402.00433): layers whose weights are merged anew for every picture."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from project.allocation import Budget
from project.errors import ConfigurationError, above, at_least, seeds, share, whole
from project.fit.memory_estimate import gradient_bytes, picture_bytes
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Aligned, write
from project.methods.shared.entropy import check_heads
from project.methods.shared.routing import train_routers
from project.moments import PICTURES
from project.student import BlendedLayer, Block, Learnt, LearntRouter, MixtureStudent
from project.student.experts import runs_side_by_side
from project.symmetry import sites

DEVIATION = 0.01  # of the routers' random weights, the paper's


class WEMoE(Aligned):
    """W(x) = W₀ + Σ gᵢ(x) τᵢ in the layers of some blocks, with gates of the picture; all else by task arithmetic.

    A block is what lies between two values through which everything passes, such as a residual block. Its router reads
    the mean over the positions of what the block's first layer reads, and has two linear layers with a rectifier
    between them. Its last constants start at λ and its weights near 0, so that training starts from task arithmetic.
    Routers alone are trained, without labels, to make predictions on the calibration pictures certain:
    min − Σ p log p, the mean of the domains' means, by Adam. Each picture has its own gates, in training too; the
    paper's code trains with the mean of a batch, of one domain each. Norms are merged by task arithmetic, and
    re-estimated.

    Args:
        scale: λ; 1 over the number of sources starts from the average.
        blocks: Which blocks: a share of them, the last ones without the head (0.5: for a ResNet about its last two
            stages), or a regular expression; the layers in whose names it is found are weighed, and those of one
            block share a router.
        hidden: Units of a router between its two layers. The paper's are as many as it reads, which would be more
            weights than many a convolution has.
        steps: Of Adam; the paper takes 1000.
        rate: Its learning rate.
        batch: Pictures of every domain in each step, over all processes, but one at least in each.
        seed: Of the routers' weights and of the choice of pictures.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``wemoe``.
    """

    def __init__(
        self,
        scale: float = 0.3,
        blocks: float | str = 0.5,
        hidden: int = 64,
        steps: int = 300,
        rate: float = 1e-4,
        batch: int = 16,
        seed: int = 0,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        if isinstance(blocks, str):
            try:
                re.compile(blocks)
            except re.error as error:
                raise ConfigurationError(f"blocks is {blocks!r}, which is no regular expression: {error}.") from error
        else:
            share(blocks=blocks)
        at_least(0, scale=scale)
        whole(0, steps=steps)
        whole(1, hidden=hidden, batch=batch)
        seeds(seed=seed)
        above(0, rate=rate)
        self.scale, self.blocks, self.hidden = scale, blocks, hidden
        self.steps, self.rate, self.batch, self.seed = steps, rate, batch, seed
        if steps:
            self.needs = self.needs | {PICTURES}

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse to go where no layer would be weighed, or no head answers for the pictures."""
        preparation = super().prepare(problem, pictures, budgets, planned)
        if self.steps:
            check_heads(self.name, problem, pictures.domains)
        blocks = self._chosen(problem)
        if not blocks:
            names = ", ".join(name for block in _weighable(problem) for name in block) or "none"
            raise ConfigurationError(
                f"blocks of method {self.name} is {self.blocks!r}, which chooses no layer; there are: {names}."
            )
        listed = "; ".join(", ".join(block) for block in blocks)
        preparation = replace(preparation, message=f"{self.name} weighs, by blocks: {listed}")
        if not self.steps:
            return preparation
        step = self._step_bytes(problem, blocks, self.batch * len(pictures.domains))
        return preparation.adding(step + picture_bytes(problem.spec, sum(pictures.local.values())), step)

    def _step_bytes(self, problem: Problem, blocks: Sequence[Sequence[str]], batch: int) -> int:
        """Count the bytes of a step on a batch: activations, and kernels with their gradients."""
        chosen, sources, spec = {name for block in blocks for name in block}, len(problem.sources), problem.spec
        layers = [layer for layer in spec.layers if layer.name in chosen]
        weights = {
            layer: spec.sizes[layer.outputs] * spec.sizes[layer.inputs] // layer.blocks * layer.taps for layer in layers
        }
        made = {layer: sources * spec.sizes[layer.outputs] * layer.positions for layer in layers}
        weighed = sum(
            made[layer] if runs_side_by_side(layer.positions, sources) else 2 * weights[layer] for layer in layers
        )
        return gradient_bytes(spec, batch, 1, 0) + 4 * (weighed * batch + sources * sum(weights.values()))

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """Need θ₀ whatever was made before."""
        return True

    @torch.no_grad()
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make one student of budget 1, whatever the budgets."""
        space = Space.of(problem, evidence, run.world, self.align)
        plain, base = problem.start(space.maps), space.base
        blocks = [Block(Learnt(self.hidden), dict.fromkeys(block, 0)) for block in self._chosen(problem)]
        chosen = {name for block in blocks for name in block.layers}
        write(plain, {name: tensor if name.rpartition(".")[0] in chosen
                      else tensor + self.scale * torch.stack(_vectors(space, name)).sum(0)
                      for name, tensor in base.items()})  # fmt: skip
        student, generator = MixtureStudent(plain, blocks), torch.Generator().manual_seed(self.seed)
        for router in student.routers:
            cast(LearntRouter, router).reset(self.scale, DEVIATION, generator)
        for name in chosen:
            constants = _vectors(space, f"{name}.bias") if f"{name}.bias" in base else []
            cast(BlendedLayer, student.network.get_submodule(name)).load(_vectors(space, f"{name}.weight"), constants)
        curves = {}
        if self.steps:
            curves = train_routers(
                student, problem, evidence.pictures, run.world,
                steps=self.steps, rate=self.rate, batch=self.batch, seed=self.seed,
            )  # fmt: skip
        yield Merged(self.name, Budget(1.0), student, matches=space.matches, curves=curves)

    def _chosen(self, problem: Problem) -> list[list[str]]:
        """Choose the layers that are weighed, block by block."""
        blocks = _weighable(problem)
        if not isinstance(self.blocks, str):
            return blocks[-max(1, int(self.blocks * len(blocks))) :]
        expression = re.compile(self.blocks)
        chosen = [[name for name in block if expression.search(name)] for block in blocks]
        return [block for block in chosen if block]


def _weighable(problem: Problem) -> list[list[str]]:
    """List the layers that see pictures one by one, block by block in execution order, without the head."""
    layers = {layer.name for layer in problem.spec.layers} - {problem.spec.head.name}
    blocks: dict[int, list[str]] = {}
    for site in sites(problem.sources[0], problem.spec):
        if site.apart and site.name in layers:
            blocks.setdefault(site.block, []).append(site.name)
    return list(blocks.values())


def _vectors(space: Space, name: str) -> list[Tensor]:
    """Compute τᵢ of one parameter."""
    return [source[name] - space.base[name] for source in space.sources]
