"""Solving a grouped convolution: every block is a small system of its own, and all are solved as one batch.

With x what a block reads (and a constant), t its targets and W⁰ its start,

    W = W⁰ + (E[t xᵀ] − W⁰ E[x xᵀ]) (E[x xᵀ] + λ I)⁻¹

as for any layer, λ relative to the mean square of what the block reads. A depthwise convolution has one unit a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.factor import Factor
from project.fit.solver import Equations, LayerFit, damping, fitted_energies, refuse_few
from project.runtime.processes import ALONE, World
from project.symmetry import Layer


class BlockSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² in every block, factorising once for any number of targets.

    All processes hold the same equations; each solves for its share of the blocks and is told the rest.

    Args:
        layer: The layer, in B blocks.
        start: W⁰, shape (outputs, inputs of a block · taps (+ 1)).
        outputs: Unit map of the output axis; the units of a block stand for the same sources.
        inputs: Unit map of the input axis, laid out alike.
        equations: Parts of the calibration data; grams of shape (B, unknowns, unknowns).
        ridge: Pull towards the start point, see :func:`~project.fit.solver.damping`.
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
        equations: Sequence[Equations],
        ridge: float,
        world: World = ALONE,
    ) -> None:
        blocks, unknowns, _ = equations[0].gram.shape
        self.start, self.world = torch.unflatten(start, 0, (blocks, -1)), world
        samples, weights = (
            start.new_tensor([getattr(one, name) for one in equations]) for name in ("samples", "weight")
        )
        sources = torch.unflatten(outputs.present, 0, (blocks, -1))[:, 0]
        follows = [torch.ones_like(sources[:, 0]) if one.owner is None else sources[:, one.owner] for one in equations]
        seen = torch.stack(follows).to(start) * (samples * (weights > 0))[:, None]
        followed = seen.sum(0).nonzero()[:, 0]  # the others stay at their start
        if len(followed):
            refuse_few(layer, unknowns, int(seen.sum(0)[followed].min()), ridge)
        self.mine = followed[world.rank :: world.size]
        shares = (seen * weights[:, None])[:, self.mine]
        self.shares = shares / shares.sum(0)
        gram = self._blend([one.gram for one in equations])
        level = gram.diagonal(dim1=1, dim2=2)[:, : unknowns - layer.bias].mean(1)
        pull = [damping(ridge, unknowns, int(count)) for count in seen.sum(0)[self.mine].tolist()]
        self.factor = Factor(gram, level * level.new_tensor(pull))
        self.own = self.start[self.mine]
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
        change = torch.zeros_like(self.start)
        change[self.mine] = delta
        energy, fall = fitted_energies(power.sum(), cross, self.forward, self.own, delta, gap, self.factor.shift)
        numbers = self.start.new_zeros(self.world.size, 5)  # of each process; it alone knows them
        found = (power.sum(), energy, energy - fall, self.factor.condition, self.factor.fallbacks)
        numbers[self.world.rank] = numbers.new_tensor([float(one) for one in found])
        self.world.reduce(change)
        self.world.reduce(numbers)
        wanted, before, after, _, fallbacks = numbers.sum(0).tolist()
        wanted = max(wanted, 1e-300)
        return LayerFit(
            (self.start + change).flatten(0, 1),
            max(before, 0.0) / wanted,
            max(after, 0.0) / wanted,
            float(numbers[:, 3].max()),
            int(fallbacks),
        )

    def _blend(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts of the data as far as each of this process's blocks weighs them; shape (its blocks, …)."""
        found = torch.zeros_like(parts[0][self.mine])
        for part, share in zip(parts, self.shares, strict=True):
            found += part[self.mine] * share.view(-1, *(1,) * (part.dim() - 1))
        return found
