"""Row blocks: which rows of a layer are solved together, from which columns, and by which process.

Rows with the same sources see the same inputs, so that they share one gram and its factorisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from project.alignment import UnitMap, overlap
from project.fit.normal_equations import Gram
from project.runtime.processes import deal_out
from project.symmetry import Layer


@dataclass(frozen=True)
class RowBlock:
    """A run of rows with the same sources.

    Args:
        rows: Rows of the layer.
        columns: Numbers of the inputs that they see, ascending, shape (unknowns,).
        shares: Parts of the calibration data that they follow: (number of the part, its share); shares sum to 1.
        samples: Number of samples of these parts.
    """

    rows: slice
    columns: Tensor
    shares: Sequence[tuple[int, float]]
    samples: int

    def gram(self, grams: Sequence[Gram]) -> Tensor:
        """Add up E[x xᵀ] of what the rows see, over the parts that they follow.

        Args:
            grams: Of all parts.

        Returns:
            Float64, shape (unknowns, unknowns).
        """
        (first, share), *others = self.shares
        matrix = grams[first].select(self.columns) * share
        for part, share in others:
            matrix.add_(grams[part].select(self.columns), alpha=share)
        return matrix

    def power(self, powers: Sequence[Tensor], rows: slice) -> float:
        """Add up E‖t‖² of some of the rows, over the parts that they follow.

        Args:
            powers: E[t²] of all parts, shape (outputs,).
            rows: Rows of the layer, of this block.
        """
        return sum(share * float(powers[part][rows].sum()) for part, share in self.shares)


def followed_blocks(layer: Layer, outputs: UnitMap, inputs: UnitMap, grams: Sequence[Gram]) -> list[RowBlock]:
    """List the row blocks that follow some part of the data; the others stay at their start.

    Args:
        layer: The layer.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        grams: Of all parts.
    """
    seen, blocks = seen_weights(layer, outputs, inputs), []
    for rows, sources in outputs.blocks:
        followed = [
            (part, gram)
            for part, gram in enumerate(grams)
            if gram.samples * gram.weight and (gram.owner is None or sources[gram.owner])
        ]
        if not followed:
            continue
        weight = sum(gram.samples * gram.weight for _, gram in followed)
        shares = [(part, gram.samples * gram.weight / weight) for part, gram in followed]
        columns = seen[rows.start].nonzero()[:, 0]
        blocks.append(RowBlock(rows, columns, shares, sum(gram.samples for _, gram in followed)))
    return blocks


def seen_weights(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """Tell which weights of a student may differ from zero.

    Args:
        layer: The layer.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.

    Returns:
        Boolean, shape (outputs, inputs · taps (+ 1)).
    """
    seen = overlap(outputs, inputs).repeat_interleave(layer.taps, 1)
    return torch.cat([seen, seen.new_ones(len(seen), 1)], 1) if layer.bias else seen


def followed_inputs(outputs: UnitMap, inputs: UnitMap, owner: int | None) -> Tensor:
    """Tell which input units some output unit sees that follows the domains of an owner.

    Args:
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        owner: The source; None where all output units follow.

    Returns:
        Boolean, shape (inputs,).
    """
    rows = torch.ones(outputs.units, dtype=torch.bool) if owner is None else outputs.present[:, owner]
    return overlap(outputs, inputs)[rows].any(0)


@dataclass(frozen=True)
class Piece:
    """Rows of one row block, and who solves for them.

    Args:
        block: Number of the block.
        rows: Rows of the layer.
        owner: Rank of the process.
    """

    block: int
    rows: slice
    owner: int


def effort(unknowns: int, rows: int) -> float:
    """Estimate the multiply-adds that it takes to factorise a gram, and to bring rows through it and its factor.

    Args:
        unknowns: Of a row.
        rows: How many.
    """
    return unknowns**3 / 3 + 4.0 * rows * unknowns**2


def divide(blocks: Sequence[tuple[slice, int]], size: int) -> list[Piece]:
    """Deal the row blocks of one layer out to processes.

    Every block is cut into as many runs of rows as makes the process with most to do finish first: none for one
    process or many blocks, one for each process where there is a single block, whose gram they then all factorise.

    Args:
        blocks: Rows and number of unknowns of each.
        size: Number of processes.
    """
    divisions: list[tuple[float, list[Piece]]] = []
    for parts in range(1, size + 1):
        runs = [(index, run) for index, (rows, _) in enumerate(blocks) for run in _cut(rows, parts)]
        owners, longest = deal_out([effort(blocks[index][1], run.stop - run.start) for index, run in runs], size)
        pieces = [Piece(index, run, owner) for (index, run), owner in zip(runs, owners, strict=True)]
        divisions.append((longest, pieces))
    return min(divisions, key=lambda division: division[0])[1]


def _cut(rows: slice, parts: int) -> list[slice]:
    """Cut rows into so many runs of nearly one length, as far as there are rows."""
    count = rows.stop - rows.start
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if a < b]
