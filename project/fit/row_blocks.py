"""Which rows of a layer are solved together, and by which process."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from project.runtime.processes import deal_out


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
    """About how many multiply-adds it takes to factorise a gram, and to bring rows through it and its factor."""
    return unknowns**3 / 3 + 4.0 * rows * unknowns**2


def divide(blocks: Sequence[tuple[slice, int]], size: int) -> list[Piece]:
    """Deal the row blocks of one layer out to processes.

    Every block is cut into as many runs of rows as makes the process with most to do finish first: none for one
    process or many blocks, one for each process where there is a single block, whose gram they then all factorise.

    Args:
        blocks: Rows and number of unknowns of each.
        size: Number of processes.
    """
    found: list[tuple[float, list[Piece]]] = []
    for parts in range(1, size + 1):
        runs = [(index, run) for index, (rows, _) in enumerate(blocks) for run in _cut(rows, parts)]
        owners, longest = deal_out([effort(blocks[index][1], run.stop - run.start) for index, run in runs], size)
        pieces = [Piece(index, run, owner) for (index, run), owner in zip(runs, owners, strict=True)]
        found.append((longest, pieces))
    return min(found, key=lambda one: one[0])[1]


def _cut(rows: slice, parts: int) -> list[slice]:
    """Rows in so many runs of nearly one length, as far as there are rows."""
    count = rows.stop - rows.start
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if a < b]
