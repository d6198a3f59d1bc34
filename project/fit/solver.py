"""Solving a layer's normal equations, row block by row block, each process its share of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.alignment import UnitMap, overlap
from project.errors import MergeError
from project.fit.factor import Factor
from project.fit.row_blocks import Piece, divide
from project.runtime.processes import ALONE, World
from project.symmetry import Layer


@dataclass(frozen=True)
class Equations:
    """What one part of the calibration data asks of a layer of the student.

    Args:
        gram: E[x xᵀ] of the student's inputs x, float64.
        samples: Number of samples behind it; parts weigh by it.
        owner: Source that the part belongs to: rows without that source do not follow it. None: all rows do.
        columns: Which entries of x the gram holds, ascending; None for all of them.
        weight: What each of its samples counts for.
    """

    gram: Tensor
    samples: int
    owner: int | None = None
    columns: Tensor | None = None
    weight: float = 1.0

    def block(self, columns: Tensor) -> Tensor:
        """The gram of some entries of x."""
        if self.columns is not None:
            columns = torch.searchsorted(self.columns, columns)
        if len(columns) == len(self.gram):
            return self.gram
        columns = columns.to(self.gram.device)
        return self.gram[columns][:, columns]


@dataclass(frozen=True)
class LayerFit:
    """A fitted layer and what is known of the fit.

    Args:
        matrix: Shape (outputs, inputs · taps (+ 1 for the constant)), float64.
        before: Residual of the start point, E‖W⁰z − t‖² / E‖t‖².
        after: Residual of the fit.
        condition: Largest over the row blocks of the solved matrix's condition, the ratio of its extreme eigenvalues:
            estimated from below by a few steps of power iteration, or exact after a fallback.
        fallbacks: Number of row blocks that were not positive definite and went through eigenvalues.
        pictures: Share of the calibration pictures that it was fitted to.
        positions: Share of the layer's positions on each of them.
    """

    matrix: Tensor
    before: float
    after: float
    condition: float
    fallbacks: int
    pictures: float = 1.0
    positions: float = 1.0


def damping(ridge: float, unknowns: int, samples: int) -> float:
    """λ over the mean diagonal of E[x xᵀ]: the ridge where there are as many samples as unknowns, less with more.

    Positions of one picture are no independent samples, hence the part that does not vanish.
    """
    return ridge * (0.02 + unknowns / samples)


def refuse_few(layer: Layer, unknowns: int, samples: int, ridge: float) -> None:
    """Refuse to solve for more than the samples determine without a ridge.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns.
    """
    if ridge == 0 and samples < unknowns:
        raise MergeError(
            f"layer {layer.name!r} has {unknowns} unknowns a row but only {samples} samples and ridge is 0; use more "
            f"calibration pictures or a ridge above 0."
        )


@dataclass(frozen=True)
class _Block:
    """A run of rows with the same sources: its columns, the parts it follows with their shares, and its samples."""

    rows: slice
    columns: Tensor
    parts: list[tuple[int, float]]
    samples: int


@dataclass(frozen=True)
class _Solved:
    """A piece of a block that this process solves: its number among all, what the block holds, W⁰, W⁰ E[x xᵀ]."""

    number: int
    piece: Piece
    columns: Tensor
    parts: list[tuple[int, float]]
    start: Tensor
    forward: Tensor
    factor: "Factor"


class LayerSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² for targets t, factorising once for any number of targets.

    All processes hold the same equations; each factorises and solves for its share of the rows and is told the rest.

    Args:
        layer: The layer.
        start: W⁰, shape (outputs, inputs · taps (+ 1)).
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        equations: Parts of the calibration data.
        ridge: Pull towards the start point, see :func:`damping`.
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
        self.start, self.world = start, world
        blocks = _followed(layer, outputs, inputs, equations)
        for block in blocks:
            refuse_few(layer, len(block.columns), block.samples, ridge)
        self.pieces = divide([(block.rows, len(block.columns)) for block in blocks], world.size)
        self.mine: list[_Solved] = []
        for index, block in enumerate(blocks):
            pieces = [(n, one) for n, one in enumerate(self.pieces) if (one.block, one.owner) == (index, world.rank)]
            if not pieces:
                continue
            gram, columns = _gram(equations, block), block.columns.to(start.device)
            level = float(gram.diagonal()[: len(columns) - layer.bias].mean())
            factor = Factor(gram, damping(ridge, len(columns), block.samples) * level)
            for number, piece in pieces:
                own = start[piece.rows][:, columns]
                self.mine.append(_Solved(number, piece, columns, block.parts, own, own @ gram, factor))

    def solve(self, crosses: Sequence[Tensor], powers: Sequence[Tensor]) -> LayerFit:
        """Fit to targets.

        Args:
            crosses: E[t xᵀ] of every part.
            powers: E[t²] of every part, shape (outputs,).
        """
        matrix = self.start.clone()
        numbers = self.start.new_zeros(len(self.pieces), 5)  # of each piece; its owner alone knows them
        for one in self.mine:
            rows = one.piece.rows
            cross = torch.zeros_like(self.start[rows])
            for i, share in one.parts:
                cross.add_(crosses[i][rows], alpha=share)
            cross = cross[:, one.columns]
            gap = cross - one.forward
            delta = one.factor.solve(gap)
            matrix[rows][:, one.columns] = one.start + delta  # rows is a slice, so that this writes through
            wanted = sum(share * float(powers[i][rows].sum()) for i, share in one.parts)
            energy, fall = fitted_energies(wanted, cross, one.forward, one.start, delta, gap, one.factor.shift)
            found = (wanted, energy, energy - fall, one.factor.condition, one.factor.fallbacks)
            numbers[one.number] = numbers.new_tensor([float(number) for number in found])
        for piece in self.pieces:
            self.world.broadcast(matrix[piece.rows], piece.owner)
        self.world.reduce(numbers)
        known = numbers.tolist()
        power, before, after = (sum(one[part] for one in known) for part in range(3))
        power = max(power, 1e-300)
        condition = max((one[3] for one in known), default=1.0)
        fallbacks = {piece.block for piece, one in zip(self.pieces, known, strict=True) if one[4]}
        return LayerFit(matrix, max(before, 0.0) / power, max(after, 0.0) / power, condition, len(fallbacks))


def fitted_energies(
    wanted: float | Tensor, cross: Tensor, forward: Tensor, start: Tensor, delta: Tensor, gap: Tensor, shift: Tensor
) -> tuple[float, float]:
    """E‖W⁰ x − t‖², and by how much the fit lowers it.

    Args:
        wanted: E‖t‖².
        cross: C = E[t xᵀ], shape (…, rows, unknowns).
        forward: W⁰ A with A = E[x xᵀ].
        start: W⁰.
        delta: Δ = R (A + λ I)⁻¹, what the fit adds.
        gap: R = C − W⁰ A.
        shift: λ, shape (…).
    """
    energy = float(wanted) - float(((2 * cross - forward) * start).sum())
    # With Δ(A + λI) = R, the residual falls by ⟨Δ, R⟩ + λ‖Δ‖².
    return energy, float((delta * gap).sum()) + float((shift[..., None, None] * delta.square()).sum())


def _gram(equations: Sequence[Equations], block: _Block) -> Tensor:
    """E[x xᵀ] of what a block's rows see, over the parts that they follow."""
    (first, share), *others = block.parts
    gram = equations[first].block(block.columns) * share
    for index, share in others:
        gram.add_(equations[index].block(block.columns), alpha=share)
    return gram


def misfit(
    layer: Layer,
    outputs: UnitMap,
    inputs: UnitMap,
    matrix: Tensor,
    equations: Sequence[Equations],
    crosses: Sequence[Tensor],
    powers: Sequence[Tensor],
) -> float:
    """E‖W x − t‖² / E‖t‖² of any weights W, over the rows that follow some part of the data.

    Args:
        layer: The layer.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        matrix: W, shape (outputs, inputs · taps (+ 1)).
        equations: Parts of the data.
        crosses: E[t xᵀ] of every part.
        powers: E[t²] of every part, shape (outputs,).
    """
    energy = power = 0.0
    for block in _followed(layer, outputs, inputs, equations):
        gram, columns = _gram(equations, block), block.columns.to(matrix.device)
        weights = matrix[block.rows][:, columns]
        cross = sum(crosses[i][block.rows][:, columns] * share for i, share in block.parts)
        wanted = sum(share * float(powers[i][block.rows].sum()) for i, share in block.parts)
        energy += wanted + float(((weights @ gram - 2 * cross) * weights).sum())
        power += wanted
    return max(energy, 0.0) / max(power, 1e-300)


def _followed(layer: Layer, outputs: UnitMap, inputs: UnitMap, equations: Sequence[Equations]) -> list[_Block]:
    """The row blocks that follow some part of the data; the others stay at their start."""
    found = []
    for (rows, columns), (_, sources) in zip(_blocks(layer, outputs, inputs), outputs.blocks, strict=True):
        followed = [
            (i, one)
            for i, one in enumerate(equations)
            if one.samples * one.weight and (one.owner is None or sources[one.owner])
        ]
        if not followed:
            continue
        weight = sum(one.samples * one.weight for _, one in followed)
        parts = [(i, one.samples * one.weight / weight) for i, one in followed]
        found.append(_Block(rows, columns, parts, sum(one.samples for _, one in followed)))
    return found


def seen_weights(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """Which weights of a student may differ from zero: boolean, shape (outputs, inputs · taps (+ 1))."""
    seen = overlap(outputs, inputs).repeat_interleave(layer.taps, 1)
    return torch.cat([seen, seen.new_ones(len(seen), 1)], 1) if layer.bias else seen


def _blocks(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> list[tuple[slice, Tensor]]:
    """Runs of rows with the same sources, and the columns that they see."""
    seen = seen_weights(layer, outputs, inputs)
    return [(rows, seen[rows.start].nonzero()[:, 0]) for rows, _ in outputs.blocks]
