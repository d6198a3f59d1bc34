"""Solving a grouped convolution: every block is a small system of its own, and all are solved as one batch.

With x what a block reads (and a constant), t its targets and W⁰ its start,

    W = W⁰ + (E[t xᵀ] − W⁰ E[x xᵀ]) (E[x xᵀ] + λ I)⁻¹

as for any layer, λ relative to the mean square of what the block reads. A depthwise convolution has one unit a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.student.sharing import ALONE, World
from project.student.solver import Equations, Factor, LayerFit, damping, refuse_few
from project.symmetry import Layer


class BlockSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² in every block, factorising once for any number of targets.

    All processes solve all blocks, which takes next to nothing, and agree on what the first has found.

    Args:
        layer: The layer, in B blocks.
        start: W⁰, shape (outputs, inputs of a block · taps (+ 1)).
        outputs: Unit map of the output axis; the units of a block stand for the same sources.
        inputs: Unit map of the input axis, laid out alike.
        equations: Parts of the calibration data; grams of shape (B, unknowns, unknowns).
        ridge: Pull towards the start point, see :func:`~project.student.solver.damping`.
        world: The processes.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """

    def __init__(
        self,
        layer: Layer,
        start: Tensor,
        outputs: UnitMap,
        inputs: UnitMap,
        equations: Sequence[Equations],
        ridge: float,
        world: World = ALONE,
    ) -> None:
        blocks, unknowns, _ = equations[0].gram.shape
        self.start, self.world = torch.unflatten(start, 0, (blocks, -1)), world
        sources = torch.unflatten(outputs.present, 0, (blocks, -1))[:, 0]
        follows = [torch.ones(blocks) if one.owner is None else sources[:, one.owner] for one in equations]
        seen = torch.stack([there * one.samples for there, one in zip(follows, equations, strict=True)]).to(start)
        shares = seen * torch.tensor([one.weight for one in equations]).to(start)[:, None]
        counted = (seen * (shares > 0)).sum(0)
        self.blocks = counted.nonzero()[:, 0]  # the others stay at their start
        if len(self.blocks):
            refuse_few(layer, unknowns, int(counted[self.blocks].min()), ridge)
        self.shares = (shares / shares.sum(0).clamp_min(1e-300))[:, self.blocks]
        gram = self._blend([one.gram for one in equations])
        level = gram.diagonal(dim1=1, dim2=2)[:, : unknowns - layer.bias].mean(1)
        pull = [damping(ridge, unknowns, count) for count in counted[self.blocks].tolist()]
        self.factor = Factor(gram, level * level.new_tensor(pull))
        self.own = self.start[self.blocks]
        self.forward = self.own @ gram

    def solve(self, crosses: Sequence[Tensor], powers: Sequence[Tensor]) -> LayerFit:
        """Fit to targets.

        Args:
            crosses: E[t xᵀ] of every part, in the shape of the start.
            powers: E[t²] of every part, shape (outputs,).
        """
        cross, power = (
            self._blend([torch.unflatten(one, 0, self.start.shape[:2]) for one in parts]) for parts in (crosses, powers)
        )
        gap = cross - self.forward
        delta = self.factor.solve(gap)
        matrix = self.start.clone()
        matrix[self.blocks] = self.own + delta
        wanted = power.sum().clamp_min(1e-300)
        energy = power.sum() - ((2 * cross - self.forward) * self.own).sum()
        # With Δ(A + λI) = R, the residual falls by ⟨Δ, R⟩ + λ‖Δ‖².
        fall = (delta * gap).sum() + (self.factor.shift[:, None, None] * delta.square()).sum()
        residuals = torch.stack([energy, energy - fall]).clamp_min(0) / wanted
        self.world.agree({"matrix": matrix, "residuals": residuals})
        before, after = residuals.tolist()
        return LayerFit(matrix.flatten(0, 1), before, after, self.factor.condition, self.factor.fallbacks)

    def _blend(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts of the data as far as each followed block weighs them; shape (followed blocks, …)."""
        found = torch.zeros_like(parts[0][self.blocks])
        for part, share in zip(parts, self.shares, strict=True):
            found += part[self.blocks] * share.view(-1, *(1,) * (part.dim() - 1))
        return found
