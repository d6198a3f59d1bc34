"""Solving a grouped convolution: every block is a small system of its own, and all are solved as one batch.

With x what a block reads (and a constant), t its targets and W⁰ its start,

    W = W⁰ + (E[t xᵀ] − W⁰ E[x xᵀ]) (E[x xᵀ] + λ I)⁻¹

as for any layer, λ relative to the mean square of what the block reads. A depthwise convolution has one unit a block.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.factor import Factor
from project.fit.layer_fit import LayerFit, Residual, fit_of
from project.fit.normal_equations import Gram, damping, refuse_few
from project.runtime.processes import ALONE, World
from project.symmetry import Layer


class BlockSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² in every block, factorising once for any number of targets.

    All processes hold the same equations; each solves for its share of the blocks and is told the rest.

    Args:
        layer: The layer, in B blocks.
        start: W⁰, float64, shape (outputs, inputs of a block · taps (+ 1)).
        outputs: Unit map of the output axis; the units of a block stand for the same sources.
        inputs: Unit map of the input axis, laid out alike.
        grams: E[x xᵀ] of every part of the calibration data, shape (B, unknowns, unknowns).
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
        world: The processes that share the work.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """

    def __init__(
        self,
        layer: Layer,
        start: Tensor,
        outputs: UnitMap,
        inputs: UnitMap,
        grams: Sequence[Gram],
        ridge: float,
        world: World = ALONE,
    ) -> None:
        blocks, unknowns, _ = grams[0].matrix.shape
        self.start, self.world = torch.unflatten(start, 0, (blocks, -1)), world
        samples, weights = (start.new_tensor([getattr(gram, name) for gram in grams]) for name in ("samples", "weight"))
        sources = torch.unflatten(outputs.present, 0, (blocks, -1))[:, 0]
        follows = [torch.ones_like(sources[:, 0]) if gram.owner is None else sources[:, gram.owner] for gram in grams]
        seen = torch.stack(follows).to(start) * (samples * (weights > 0))[:, None]
        followed = seen.sum(0).nonzero()[:, 0]  # the others stay at their start
        if len(followed):
            refuse_few(layer, unknowns, int(seen.sum(0)[followed].min()), ridge)
        self.local = followed[world.rank :: world.size]
        shares = (seen * weights[:, None])[:, self.local]
        self.shares = shares / shares.sum(0)
        matrices = self._weigh([gram.matrix for gram in grams])
        level = matrices.diagonal(dim1=1, dim2=2)[:, : unknowns - layer.bias].mean(1)
        pull = [damping(ridge, unknowns, int(count)) for count in seen.sum(0)[self.local].tolist()]
        self.factor = Factor(matrices, level * level.new_tensor(pull))
        self.local_start = self.start[self.local]
        self.forward = self.local_start @ matrices

    def solve(self, crosses: Sequence[Tensor], powers: Sequence[Tensor]) -> LayerFit:
        """Fit to targets.

        Args:
            crosses: E[t xᵀ] of every part, float64, in the shape of the start.
            powers: E[t²] of every part, float64, shape (outputs,).
        """
        cross, power = (
            self._weigh([torch.unflatten(part, 0, self.start.shape[:2]) for part in parts])
            for parts in (crosses, powers)
        )
        gap = cross - self.forward
        delta = self.factor.solve(gap)
        change = torch.zeros_like(self.start)
        change[self.local] = delta
        residual = Residual.measure(float(power.sum()), cross, self.forward, self.local_start, delta, gap, self.factor)
        table = self.start.new_zeros(self.world.size, len(fields(Residual)))  # each row is known to its process alone
        table[self.world.rank] = table.new_tensor(residual.to_row())
        self.world.reduce(change)
        self.world.reduce(table)
        residuals = [Residual.from_row(row) for row in table.tolist()]
        return fit_of((self.start + change).flatten(0, 1), residuals, int(sum(part.fallbacks for part in residuals)))

    def _weigh(self, parts: Sequence[Tensor]) -> Tensor:
        """Add up the parts of the data as far as each of this process's blocks follows them; shape (its blocks, …)."""
        total = torch.zeros_like(parts[0][self.local])
        for part, share in zip(parts, self.shares, strict=True):
            total += part[self.local] * share.view(-1, *(1,) * (part.dim() - 1))
        return total
