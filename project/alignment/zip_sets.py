"""Zipping: which units of all sources become one, several of the same source allowed (ZipIt, arXiv 2305.03053)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from project.symmetry import Axis, Group, Spec


@dataclass(frozen=True, eq=False)
class Zip:
    """The sets into which a group's units are put, as many as one source has units; each becomes one student unit.

    With n_j the units in set j, source i has the merge matrix Mᵢ, 1 / n_j where its unit is in set j, and the unmerge
    matrix Uᵢ, 1 there. A unit of the student is the mean of its set; what reads it reads it for every unit of the set.

    Args:
        sets: Integer, shape (size, sources): the set that each unit of each source is in.
        blocks: Equal runs of units that stay together: all units of a source's block are in sets of one block.
    """

    sets: Tensor
    blocks: int = 1

    @property
    def labels(self) -> Tensor:
        """The set of every unit, source after source: shape (sources · size,)."""
        return self.sets.mT.flatten()

    @property
    def counts(self) -> Tensor:
        """Units in each set: shape (size,)."""
        return self.labels.bincount(minlength=len(self.sets))

    @property
    def homes(self) -> Tensor:
        """The block of sets in which each block of each source is: shape (blocks, sources)."""
        size = len(self.sets) // self.blocks
        return self.sets[::size] // size

    @property
    def members(self) -> Tensor | None:
        """Rows of matched units, shape (size, sources); None where a set holds several units of one source."""
        order = self.sets.argsort(0)
        whole = torch.equal(self.sets.gather(0, order), torch.arange(len(order))[:, None].expand_as(order))
        return order if whole else None

    def fold(self, tensor: Tensor, axis: Axis, source: int, power: float, *, moved: bool = True) -> Tensor:
        """A source's tensor in the student's units: the student's is the mean of those of all sources.

        Args:
            tensor: The tensor.
            axis: One of the group's axes.
            source: Number of the source.
            power: See :func:`set_power`; 0 on an axis that holds one block only, over which layers sum.
            moved: On an axis that holds one block only, whether the blocks on axis 0 already stand as the student's.
        """
        size, sources = self.sets.shape
        mine = self.sets[:, source].to(tensor.device)
        if axis.within:
            inside = (mine % (size // self.blocks)).view(self.blocks, -1)
            inside = inside[self.homes[:, source].argsort()] if moved else inside
            inside = inside.repeat_interleave(len(tensor) // self.blocks, 0)
            inside = inside.view(inside.shape + (1,) * (tensor.dim() - 2)).expand_as(tensor)
            return torch.zeros_like(tensor).scatter_add(1, inside, tensor)
        entries = torch.arange(size * axis.taps) if axis.entries is None else torch.tensor(axis.entries)
        entries = entries.to(tensor.device)
        part = tensor.index_select(axis.dim, entries)
        if power:
            shares = (sources / self.counts.to(tensor)).pow(power)[mine].repeat_interleave(axis.taps)
            part = part * shares.view(-1, *[1] * (tensor.dim() - axis.dim - 1))
        places = entries.view(size, axis.taps)[mine].flatten()
        return tensor.index_fill(axis.dim, entries, 0.0).index_add(axis.dim, places, part)


def set_power(spec: Spec, group: Group, axis: Axis) -> float:
    """How the size of a set of n units, of N sources, counts on an axis: every unit by (N / n) to this power.

    Args:
        spec: Groups of the sources.
        group: The group.
        axis: One of its axes.

    Returns:
        0 where a layer sums over the units, which reads the set for each of them (Uᵢ); 1 where the tensor belongs to
        the units, for the mean of the set (N Mᵢ). Units that nothing reads meet in products with each other, as queries
        and keys do: ½, so that the product of two means counts for n / N units of each source.
    """
    if spec.reads(axis):
        return 0.0
    return 1.0 if any(spec.reads(one) for one in group.axes) else 0.5


def zip_units(similarity: Tensor, sources: int, within: float = 1.0, repeat: float = 0.5) -> Zip:
    """Merge the two most similar sets of units, again and again, until as many are left as one source has units.

    A set is as similar to another as the least similar of the two it was made of, times ``repeat`` for every merge
    that leaves no room for a unit of another source: the set holds all sources, or one of them twice. Two sets that
    hold units of one source may be merged as often as that source's budget allows: ``within`` times its equal share of
    all merges. As many sets as the student has units are begun, no more, so that every unit left finds one that lacks
    its source: without a budget, each set holds one unit of every source, whatever their number.

    With two sources every merge counts for ``repeat`` and no set can be one too many; where ``within`` is 1 and
    ``repeat`` above 0, the sets are nearly always those of ZipIt's code, which takes a set for one of its first unit's
    source alone. Below 1 they differ more: the code holds a source to its budget only once it has merged within it, so
    that a budget of 0 allows one merge. Where its factor is 0, the code forbids what is only the last choice here.

    (N − 1) n merges, each a few passes over N n numbers, and over the rows of those that have lost their best partner:
    mostly some (N n)² numbers in all, which is also what is held in float64.

    Args:
        similarity: Symmetric, shape (N · n, N · n): units of all sources, source after source.
        sources: Number of sources N.
        within: Budget of merges within a source, 0 to 1.
        repeat: Factor of the similarities of such a set, 0 to 1.
    """
    total, size = len(similarity), len(similarity) // sources
    alike = similarity.detach().cpu().double().clone().fill_diagonal_(-torch.inf)
    held = torch.eye(sources, dtype=torch.bool).repeat_interleave(size, 0)  # the sources in each set
    left = [int((sources - 1) * size // sources * within + 1e-4)] * sources
    units, labels, begun = torch.ones(total, dtype=torch.long), torch.arange(total), 0

    def forbid(source: int) -> None:
        mine = held[:, source]
        alike[mine[:, None] & mine] = -torch.inf

    def partners(rows: Tensor) -> tuple[Tensor, Tensor]:
        among = alike[rows]
        if begun == size:
            among[(units[rows] == 1)[:, None] & (units == 1)] = -torch.inf
        best = among.max(1)
        return best.values, best.indices

    for source in range(sources):
        if not left[source]:
            forbid(source)
    values, others = partners(torch.arange(total))
    for _ in range(total - size):
        a = int(values.argmax())
        a, b = sorted((a, int(others[a])))
        shared = (held[a] & held[b]).nonzero()[:, 0].tolist()
        full, begun = begun == size, begun - 1 + int(units[a] == 1) + int(units[b] == 1)
        held[a] |= held[b]
        held[b] = False
        units[a], units[b] = units[a] + units[b], 0
        labels[labels == b] = a
        row = torch.minimum(alike[a], alike[b])
        if bool(held[a].all()) or units[a] > held[a].sum():
            row = torch.where(row.isneginf(), row, row * repeat)
        alike[b] = alike[:, b] = values[b] = -torch.inf
        alike[a] = alike[:, a] = row
        for source in shared:
            left[source] -= 1
        spent = [source for source in shared if not left[source]]
        for source in spent:
            forbid(source)
        stale = (others == a) | (others == b)
        better = (alike[a] > values) | (stale & (alike[a] == values))
        values, others = torch.where(better, alike[a], values), torch.where(better, a, others)
        stale &= ~better
        stale[a] = True
        if spent or full != (begun == size):
            stale[:] = True
        rows = (stale & held.any(1)).nonzero()[:, 0]
        values[rows], others[rows] = partners(rows)
    sets = torch.unique(labels, return_inverse=True)[1]  # numbered by their first units, in the order of the sources
    return Zip(sets.view(sources, size).mT.contiguous())


def cohesion(similarity: Tensor, zipped: Zip) -> float:
    """Mean similarity over all pairs of units that are in one set; 0 where there are none.

    Args:
        similarity: Shape (N · size, N · size): units of all sources, source after source.
        zipped: The sets.
    """
    labels = zipped.labels.to(similarity.device)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    return float(similarity[same].mean()) if bool(same.any()) else 0.0
