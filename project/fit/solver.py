"""Solving a layer's normal equations, row block by row block, each process its share of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.factor import Factor
from project.fit.layer_fit import LayerFit, Residual, fit_of
from project.fit.normal_equations import Gram, damping, refuse_few
from project.fit.row_blocks import RowBlock, divide, followed_blocks
from project.runtime.processes import ALONE, World
from project.symmetry import Layer


@dataclass(frozen=True)
class _FactorisedPiece:
    """Rows of a row block that this process solves for: their number among all pieces, W⁰ and W⁰ E[x xᵀ]."""

    number: int
    rows: slice
    block: RowBlock
    columns: Tensor
    start: Tensor
    forward: Tensor
    factor: Factor


class LayerSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² for targets t, factorising once for any number of targets.

    All processes hold the same equations; each factorises and solves for its share of the rows and is told the rest.

    Args:
        layer: The layer.
        start: W⁰, float64, shape (outputs, inputs · taps (+ 1)).
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        grams: E[x xᵀ] of every part of the calibration data.
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
        self.start, self.world = start, world
        blocks = followed_blocks(layer, outputs, inputs, grams)
        for block in blocks:
            refuse_few(layer, len(block.columns), block.samples, ridge)
        self.pieces = divide([(block.rows, len(block.columns)) for block in blocks], world.size)
        self.local: list[_FactorisedPiece] = []
        for index, block in enumerate(blocks):
            pieces = [
                (n, piece) for n, piece in enumerate(self.pieces) if (piece.block, piece.owner) == (index, world.rank)
            ]
            if not pieces:
                continue
            matrix, columns = block.gram(grams), block.columns.to(start.device)
            level = float(matrix.diagonal()[: len(columns) - layer.bias].mean())
            factor = Factor(matrix, damping(ridge, len(columns), block.samples) * level)
            for number, piece in pieces:
                weights = start[piece.rows][:, columns]
                self.local.append(
                    _FactorisedPiece(number, piece.rows, block, columns, weights, weights @ matrix, factor)
                )

    def solve(self, crosses: Sequence[Tensor], powers: Sequence[Tensor]) -> LayerFit:
        """Fit to targets.

        Args:
            crosses: E[t xᵀ] of every part, float64, in the shape of the start.
            powers: E[t²] of every part, float64, shape (outputs,).
        """
        matrix = self.start.clone()
        table = self.start.new_zeros(len(self.pieces), len(fields(Residual)))  # each piece is known to its owner alone
        for local in self.local:
            cross = torch.zeros_like(self.start[local.rows])
            for part, share in local.block.shares:
                cross.add_(crosses[part][local.rows], alpha=share)
            cross = cross[:, local.columns]
            gap = cross - local.forward
            delta = local.factor.solve(gap)
            matrix[local.rows, local.columns] = local.start + delta
            power = local.block.power(powers, local.rows)
            residual = Residual.measure(power, cross, local.forward, local.start, delta, gap, local.factor)
            table[local.number] = table.new_tensor(residual.to_row())
        for piece in self.pieces:
            self.world.broadcast(matrix[piece.rows], piece.owner)
        self.world.reduce(table)
        residuals = [Residual.from_row(row) for row in table.tolist()]
        pairs = zip(self.pieces, residuals, strict=True)
        return fit_of(matrix, residuals, len({piece.block for piece, residual in pairs if residual.fallbacks}))
