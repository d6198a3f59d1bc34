"""Solving a layer's normal equations, row block by row block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.alignment import UnitMap, overlap
from project.errors import MergeError
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
        condition: Largest over the row blocks of an estimate of the solved matrix's condition: the squared ratio of
            the extreme entries of its Cholesky factor's diagonal, or the ratio of eigenvalues after a fallback.
        fallbacks: Number of row blocks that were not positive definite and went through eigenvalues.
    """

    matrix: Tensor
    before: float
    after: float
    condition: float
    fallbacks: int


def damping(ridge: float, unknowns: int, samples: int) -> float:
    """λ over the mean diagonal of E[x xᵀ]: the ridge where there are as many samples as unknowns, less with more.

    Positions of one picture are no independent samples, hence the part that does not vanish.
    """
    return ridge * (0.02 + unknowns / samples)


@dataclass(frozen=True)
class _Block:
    """A run of rows with the same sources: its columns, the parts it follows, W⁰, W⁰ E[x xᵀ], and the factorisation."""

    rows: slice
    columns: Tensor
    parts: list[tuple[int, float]]
    start: Tensor
    forward: Tensor
    factor: "Factor"


class LayerSolver:
    """Minimises E‖W x − t‖² + λ‖W − W⁰‖² for targets t, factorising once for any number of targets.

    Args:
        layer: The layer.
        start: W⁰, shape (outputs, inputs · taps (+ 1)).
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        equations: Parts of the calibration data.
        ridge: Pull towards the start point, see :func:`damping`.

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
    ) -> None:
        self.start = start
        self.blocks: list[_Block] = []
        for (rows, columns), (_, sources) in zip(_blocks(layer, outputs, inputs), outputs.blocks, strict=True):
            followed = [
                i
                for i, one in enumerate(equations)
                if one.samples * one.weight and (one.owner is None or sources[one.owner])
            ]
            samples = sum(equations[i].samples for i in followed)
            if not samples:
                continue  # rows of a source that owns no picture stay at their start
            if ridge == 0 and samples < len(columns):
                raise MergeError(
                    f"layer {layer.name!r} has {len(columns)} unknowns a row but only {samples} samples "
                    f"and ridge is 0; use more calibration pictures or a ridge above 0."
                )
            weight = sum(equations[i].samples * equations[i].weight for i in followed)
            parts = [(i, equations[i].samples * equations[i].weight / weight) for i in followed]
            gram = equations[followed[0]].block(columns) * parts[0][1]
            for i, share in parts[1:]:
                gram.add_(equations[i].block(columns), alpha=share)
            level = float(gram.diagonal()[: len(columns) - layer.bias].mean())
            shift = damping(ridge, len(columns), samples) * level
            columns = columns.to(start.device)
            mine = start[rows][:, columns]
            self.blocks.append(_Block(rows, columns, parts, mine, mine @ gram, Factor(gram, shift)))

    def solve(self, crosses: Sequence[Tensor], powers: Sequence[Tensor]) -> LayerFit:
        """Fit to targets.

        Args:
            crosses: E[t xᵀ] of every part.
            powers: E[t²] of every part, shape (outputs,).
        """
        matrix, before, after, power = self.start.clone(), 0.0, 0.0, 0.0
        for block in self.blocks:
            rows, columns = block.rows, block.columns
            cross = torch.zeros_like(self.start[rows])
            for i, share in block.parts:
                cross.add_(crosses[i][rows], alpha=share)
            cross = cross[:, columns]
            gap = cross - block.forward
            delta = block.factor.solve(gap)
            matrix[rows][:, columns] = block.start + delta  # rows is a slice, so that this writes through
            wanted = sum(share * float(powers[i][rows].sum()) for i, share in block.parts)
            energy = wanted - float(((2 * cross - block.forward) * block.start).sum())
            # With Δ(A + λI) = R, the residual falls by ⟨Δ, R⟩ + λ‖Δ‖².
            fall = float((delta * gap).sum()) + block.factor.shift * float(delta.square().sum())
            before, after, power = before + energy, after + energy - fall, power + wanted
        power = max(power, 1e-300)
        condition = max((block.factor.condition for block in self.blocks), default=1.0)
        fallbacks = sum(block.factor.fallback for block in self.blocks)
        return LayerFit(matrix, max(before, 0.0) / power, max(after, 0.0) / power, condition, fallbacks)


class Factor:
    """A factorised gram + shift·I: by Cholesky, or by eigenvalues where that fails."""

    def __init__(self, gram: Tensor, shift: float) -> None:
        matrix = gram.clone()
        matrix.diagonal().add_(shift)
        self.shift = shift
        self._cholesky, failed = torch.linalg.cholesky_ex(matrix)
        self.fallback = bool(failed)
        if not self.fallback:
            pivots = self._cholesky.diagonal()
            self.condition = float((pivots.max() / pivots.min()) ** 2)
            return
        values, vectors = torch.linalg.eigh(matrix)
        self._vectors: Tensor = vectors
        floor = values[-1] * torch.finfo(torch.float32).eps  # the moments are sums of float32 products
        self._inverse = torch.where(values > floor, values.reciprocal(), 0.0)  # least norm in what the data determine
        kept = values[values > floor]
        self.condition = float(kept[-1] / kept[0]) if len(kept) else 1.0  # none where all inputs are dead

    def solve(self, right: Tensor) -> Tensor:
        """X with X (gram + shift·I) = right."""
        if not self.fallback:
            return torch.cholesky_solve(right.mT, self._cholesky).mT
        return ((right @ self._vectors) * self._inverse) @ self._vectors.mT


def seen_weights(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """Which weights of a student may differ from zero: boolean, shape (outputs, inputs · taps (+ 1))."""
    seen = overlap(outputs, inputs).repeat_interleave(layer.taps, 1)
    return torch.cat([seen, seen.new_ones(len(seen), 1)], 1) if layer.bias else seen


def _blocks(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> list[tuple[slice, Tensor]]:
    """Runs of rows with the same sources, and the columns that they see."""
    seen = seen_weights(layer, outputs, inputs)
    return [(rows, seen[rows.start].nonzero()[:, 0]) for rows, _ in outputs.blocks]
