"""Candidates of an allocation: how many rows of each kind are separated, and what that costs."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from project.alignment import Alignment, UnitMap
from project.allocation.budget import Budget
from project.allocation.limits import growing
from project.allocation.size import price, source_size
from project.symmetry import Spec

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Kind:
    """Merged rows of one group that stand for the same sources, two at least: all cost the same to separate.

    Args:
        group: The group.
        sources: Boolean, shape (sources,): which sources.
        rows: Their numbers in the group's unit map.
    """

    group: str
    sources: Tensor
    rows: Tensor


def step_of(step: int | None, size: int) -> int:
    """Choose how many of a group's units are separated at once: by default an eighth of them, but no more than 16.

    Processors work on channels by 8 or 16; uneven widths cost time that no multiply-accumulate shows.

    Args:
        step: As the user has set it; None for the default.
        size: Units of the group.
    """
    return min(16, max(1, size // 8)) if step is None else step


class Choices:
    """All unit maps that come of an alignment by separating some of its rows, and their sizes.

    Rows of groups that cannot grow stay merged.

    With x and y saying whether two rows are separated that share q sources and stand on either side of a layer, there
    are 1 + (q − 1)(x + y − x y) pairs of units between them that see each other. Summed over rows, the size of a
    student is a quadratic form in the number of separated rows of each kind: separating both sides of a layer costs
    less than separating each alone.

    Args:
        spec: Groups of the sources.
        alignment: Matched units; rows may stand for some of the sources only.
        fixed: Unit maps of the picture and of the logits.
        budget: What a student may cost.
        step: Rows of a group are separated this many at once, but for its last ones; see :func:`step_of`.
    """

    def __init__(
        self, spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap], budget: Budget, step: int | None = 1
    ) -> None:
        self.spec, self.step = spec, step
        self.merged = {**fixed, **{group.name: UnitMap.sorted(alignment.members[group.name]) for group in spec.free}}
        self.limit = budget.limit(lambda unit: source_size(spec, fixed[spec.output.name], unit)) * (1 + 1e-9)
        able = {group.name for group in growing(spec)}
        self.kinds: list[Kind] = []
        runs: dict[str, list[tuple[Tensor, int, int]]] = {name: [] for name in self.merged}  # sources, rows, kind
        for name, units in self.merged.items():
            for rows, present in units.blocks:
                sources, kind = torch.tensor(present), -1
                if int(sources.sum()) > 1 and name in able:
                    kind = len(self.kinds)
                    self.kinds.append(Kind(name, sources, torch.arange(rows.start, rows.stop)))
                runs[name].append((sources, rows.stop - rows.start, kind))
        self.counts: Counts = np.array([len(kind.rows) for kind in self.kinds], dtype=np.int64)
        cost = price(spec, budget.unit)
        self.base = cost.total(spec, self.merged)
        self.linear = np.array([cost.units.get(kind.group, 0) * (int(kind.sources.sum()) - 1.0) for kind in self.kinds])
        self.pairs = np.zeros((len(self.kinds), len(self.kinds)))
        for layer in (layer for layer in spec.layers if layer.name in cost.pairs):
            for out_sources, out_rows, out in runs[layer.outputs]:
                for in_sources, in_rows, into in runs[layer.inputs]:
                    more = cost.pairs[layer.name] * max(0, int((out_sources & in_sources).sum()) - 1)
                    if out >= 0:
                        self.linear[out] += more * in_rows
                    if into >= 0:
                        self.linear[into] += more * out_rows
                    if out >= 0 and into >= 0:
                        self.pairs[out, into] += more / 2
                        self.pairs[into, out] += more / 2

    def size(self, counts: Vector | Counts) -> float:
        """Compute the size of the student with so many rows of each kind separated.

        Args:
            counts: Shape (kinds,).
        """
        return float(self.base + self.linear @ counts - counts @ self.pairs @ counts)

    def fits(self, counts: Vector | Counts) -> bool:
        """Tell whether that is within the budget."""
        return self.size(counts) <= self.limit

    @property
    def most(self) -> Counts:
        """Rows of every kind that can be separated at most, shape (kinds,): all that fit while no other is separated.

        Nothing becomes cheaper by separating other rows too.
        """
        most = np.zeros(len(self.kinds), dtype=np.int64)
        for kind, count in enumerate(self.counts):
            alone = np.zeros_like(most)
            alone[kind] = 1
            most[kind] = bisect_left(range(1, int(count) + 1), True, key=partial(self._exceeds, alone))
        return most

    def _exceeds(self, counts: Counts, times: int) -> bool:
        return not self.fits(times * counts)

    def ranked(self, worth: Mapping[str, Tensor]) -> list[Tensor]:
        """Sort the rows of every kind by falling worth.

        Args:
            worth: group -> what separating each row of its unit map is worth, shape (rows,).

        Returns:
            For every kind, the numbers of its rows in the group's unit map.
        """
        return [kind.rows[worth[kind.group][kind.rows].argsort(descending=True, stable=True)] for kind in self.kinds]

    def maps(self, counts: Counts, ranked: Sequence[Tensor]) -> dict[str, UnitMap]:
        """Make unit maps in which the first so many ranked rows of each kind are separated.

        Args:
            counts: Shape (kinds,).
            ranked: From :meth:`ranked`.
        """
        maps = dict(self.merged)
        for name in {kind.group: None for kind in self.kinds}:
            chosen = [r[:n] for kind, r, n in zip(self.kinds, ranked, counts, strict=True) if kind.group == name]
            maps[name] = maps[name].split(torch.cat(chosen))
        return maps
