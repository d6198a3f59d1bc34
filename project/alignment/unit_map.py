"""Which unit of which source each unit of the student stands for."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from project.errors import MergeError


@dataclass(frozen=True, eq=False)
class UnitMap:
    """The unit map of one group: the one idea from which blocks, start point, targets and heads follow.

    Made by :meth:`sorted`, which puts rows with the same sources next to each other, or by :meth:`as_given` where the
    order of the rows has a meaning.

    Args:
        members: Integer, shape (units, sources); entry (j, s) is the unit of source s that student unit j stands
            for, or −1. Every unit of a source stands exactly once in its column.

    Raises:
        MergeError: Where a row is empty, or a source's unit is missing or stands twice.
    """

    members: Tensor

    def __post_init__(self) -> None:
        """Check rows and columns."""
        members = self.members.detach().cpu().long()
        present = members >= 0
        if members.dim() != 2 or not bool(present.any(1).all()):
            raise MergeError(f"unit map of shape {tuple(members.shape)} has an empty row; a unit stands for something.")
        for source, column in enumerate(members.unbind(1)):
            units = column[column >= 0].sort().values
            if not torch.equal(units, torch.arange(len(units))):
                raise MergeError(f"unit map names a unit of source {source} twice or leaves one out; once is allowed.")
        object.__setattr__(self, "members", members)

    @classmethod
    def sorted(cls, members: Tensor) -> "UnitMap":
        """Make the unit map of a group: rows by the set of sources present, largest sets first, else as they stood.

        Args:
            members: Integer, shape (units, sources).

        Raises:
            MergeError: Where a row is empty, or a source's unit is missing or stands twice.
        """
        units = cls(members)
        result = object.__new__(cls)  # the same rows, checked already
        object.__setattr__(result, "members", units.members[row_order(units.members)])
        return result

    @classmethod
    def as_given(cls, members: Tensor) -> "UnitMap":
        """Make a unit map whose rows stay where they are, as on an axis where several groups stand side by side.

        Args:
            members: Integer, shape (units, sources).

        Raises:
            MergeError: Where a row is empty, or a source's unit is missing or stands twice.
        """
        return cls(members)

    def __eq__(self, other: object) -> bool:
        """Whether the units stand for the same, in the same order, however they came into it."""
        return isinstance(other, UnitMap) and torch.equal(self.members, other.members)

    def __hash__(self) -> int:
        """Of the members."""
        return hash((self.members.shape, self.members.numpy().tobytes()))

    @classmethod
    def identity(cls, size: int, sources: int) -> "UnitMap":
        """Make the map in which every unit stands for the unit of the same number in all sources.

        Args:
            size: Number of units.
            sources: Number of sources N.
        """
        return cls.sorted(torch.arange(size)[:, None].expand(size, sources))

    @classmethod
    def apart(cls, sizes: tuple[int, ...]) -> "UnitMap":
        """Make the map in which every unit stands for one unit of one source: sources side by side.

        Args:
            sizes: Number of units of every source.
        """
        members = torch.full((sum(sizes), len(sizes)), -1)
        start = 0
        for source, size in enumerate(sizes):
            members[start : start + size, source] = torch.arange(size)
            start += size
        return cls.sorted(members)

    def split(self, rows: Tensor, parts: Tensor | None = None) -> "UnitMap":
        """Separate some of the rows.

        Args:
            rows: Numbers of the rows, shape (count,).
            parts: Integer, shape (count, sources): which part of its row each source goes to, from 0 to N − 1; a part
                is one row of the result. Default: one part for each source.
        """
        stay = torch.ones(self.units, dtype=torch.bool)
        stay[rows] = False
        whole = self.members[rows]
        parts = torch.arange(self.sources).expand_as(whole) if parts is None else parts
        pieces = [torch.where(parts == part, whole, -1) for part in range(self.sources)]
        return UnitMap.sorted(torch.cat([self.members[stay], *(piece[(piece >= 0).any(1)] for piece in pieces)]))

    @property
    def units(self) -> int:
        """Number of student units."""
        return self.members.shape[0]

    @property
    def sources(self) -> int:
        """Number of sources N."""
        return self.members.shape[1]

    @property
    def present(self) -> Tensor:
        """Boolean, shape (units, sources): which sources a unit stands for."""
        return self.members >= 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units of the group in each source."""
        return tuple(self.present.sum(0).tolist())

    @cached_property
    def blocks(self) -> tuple[tuple[slice, tuple[bool, ...]], ...]:
        """Runs of rows with the same sources: (rows, which sources).

        Of a sorted map every set of sources has one run; of one made as given, a set may have several.
        """
        sets, counts = torch.unique_consecutive(self.present, dim=0, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return tuple(
            (slice(end - count, end), tuple(row.tolist()))
            for end, count, row in zip(ends, counts.tolist(), sets, strict=True)
        )

    @property
    def mean(self) -> Tensor:
        """Shares by which every source in a row counts alike: float64, shape (units, sources), rows sum to 1."""
        return self.present.double() / self.present.sum(1, keepdim=True)

    def own(self, source: int) -> Tensor:
        """Shares by which rows with this source follow it alone, and the other rows all their sources alike.

        Args:
            source: Number of the source.

        Returns:
            Float64, shape (units, sources), rows sum to 1.
        """
        shares = self.mean
        rows = self.present[:, source]
        shares[rows] = 0.0
        shares[rows, source] = 1.0
        return shares

    def shares(self, owner: int | None) -> Tensor:
        """Shares of the sources in what is asked of each unit on the pictures of a domain.

        Args:
            owner: The source whose domain it is, see :meth:`own`; None for the :meth:`mean` of all.

        Returns:
            Float64, shape (units, sources), rows sum to 1.
        """
        return self.mean if owner is None else self.own(owner)

    def blend(self, values: Iterable[tuple[int, Tensor]], shares: Tensor, axis: int = 0) -> Tensor:
        """Put what the sources' units do together to what is asked of the student's units.

        Unit j is asked for Σₛ shares[j, s] · values of source s at unit members[j, s], over the sources given.

        Args:
            values: (source, its values), one source after another, each source once at most and one at least; any
                float dtype, the source's units on one axis, the other axes of the same size in all.
            shares: Shape (units, sources), see :meth:`shares`.
            axis: On which axis the units stand.

        Returns:
            Of the dtype of the values, the student's units on that axis; 0 for units that stand for none of the sources
            given.
        """
        result: Tensor | None = None
        for source, value in values:
            rows = self.present[:, source].nonzero()[:, 0]
            units = self.members[rows, source].to(value.device)
            share = shares[rows, source].to(value).view(-1, *[1] * (value.dim() - axis - 1))
            part = value[(slice(None),) * axis + (units,)] * share
            student_rows = (slice(None),) * axis + (rows.to(value.device),)
            if result is None:
                result = value.new_zeros(*value.shape[:axis], self.units, *value.shape[axis + 1 :])
                result[student_rows] = part
            else:
                result[student_rows] += part
        if result is None:
            raise MergeError("values holds no source; at least one is needed.")
        return result

    def pull(self, joint: Tensor, shares: Tensor | None = None, taps: int = 1) -> Tensor:
        """Sum, for every student unit, the entries of the source units it stands for.

        Args:
            joint: Shape (Σ sizes · taps, …), a joint vector over all sources on its first axis, where gathering moves
                whole rows; entries beyond (a constant) pass through.
            shares: Factor of each (student unit, source), shape (units, sources); default: 1 wherever present.
            taps: Entries a unit owns.

        Returns:
            Shape (units · taps, …), entries beyond appended unchanged.
        """
        rest = joint.shape[1:]
        starts = self._starts(taps)
        result = joint.new_empty(self.units * taps + joint.shape[0] - starts[-1], *rest)
        result[self.units * taps :] = joint[starts[-1] :]
        for rows, sources in self.blocks:
            target = result[rows.start * taps : rows.stop * taps].view(-1, taps, *rest)
            first = True
            for source in (index for index, is_present in enumerate(sources) if is_present):
                if shares is not None and not bool(shares[rows, source].any()):
                    continue  # what counts for nothing need not be gathered
                part = joint[starts[source] : starts[source + 1]].view(-1, taps, *rest)
                part = part.index_select(0, self.members[rows, source].to(joint.device))
                if shares is not None:
                    part *= shares[rows, source].to(joint).view(-1, *[1] * (part.dim() - 1))
                target.copy_(part) if first else target.add_(part)
                first = False
            if first:
                target.zero_()
        return result

    def push(self, student: Tensor, shares: Tensor | None = None, taps: int = 1) -> Tensor:
        """Hand every student unit's entries to each source unit it stands for: the transpose of :meth:`pull`.

        Args:
            student: Shape (units · taps, …), any float dtype; entries beyond (a constant) pass through.
            shares: Factor of each (student unit, source), shape (units, sources); default: 1 wherever present.
            taps: Entries a unit owns.

        Returns:
            Shape (Σ sizes · taps, …), entries beyond appended unchanged.
        """
        rest = student.shape[1:]
        starts = self._starts(taps)
        result = student.new_empty(starts[-1] + student.shape[0] - self.units * taps, *rest)
        result[starts[-1] :] = student[self.units * taps :]
        merged = student[: self.units * taps].view(-1, taps, *rest)
        for source in range(self.sources):
            rows = self.present[:, source].nonzero()[:, 0]
            part = merged.index_select(0, rows.to(student.device))
            if shares is not None:
                part *= shares[rows, source].to(student).view(-1, *[1] * (part.dim() - 1))
            target = result[starts[source] : starts[source + 1]].view(-1, taps, *rest)
            target.index_copy_(0, self.members[rows, source].to(student.device), part)
        return result

    def _starts(self, taps: int) -> list[int]:
        """Where each source's entries start in a joint vector, and where the last one's end."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size * taps)
        return starts


def row_order(members: Tensor) -> list[int]:
    """Order rows by the sources present, largest sets first, else as they stood.

    Args:
        members: Integer, shape (units, sources).
    """
    keys = [(-sum(row), [-present for present in row]) for row in (members >= 0).tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)


def overlap(outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """Tell where a student's weight may differ from zero: boolean, shape (output units, input units)."""
    return (outputs.present.float() @ inputs.present.float().mT) > 0
