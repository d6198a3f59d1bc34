"""Zipping all groups of the sources, by activations, by weights, or by both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from project.alignment.ascent import ascend
from project.alignment.objective import Dual, counted
from project.alignment.structured import alike_within, bundles, match_whole, match_within, shared_tensors
from project.alignment.zip_sets import Zip, cohesion, set_power, zip_units
from project.moments import Statistics
from project.symmetry import Group, Spec


@dataclass(frozen=True, eq=False)
class Zipping:
    """How the units of all sources are put together.

    Args:
        zips: The sets of every group.
        scores: group -> mean similarity over the pairs of units that are put together.
    """

    zips: Mapping[str, Zip]
    scores: Mapping[str, float]

    def brought(self, spec: Spec, state: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
        """A source's tensors in the student's units: the student's are the mean of those of all sources.

        Args:
            spec: Groups of the sources.
            state: Some of the source's tensors; left unchanged.
            source: Its number.
        """
        found = dict(state)
        for within in (False, True):  # rows first: blocks of a grouped convolution's weight move with them
            for name, zipped in self.zips.items():
                group = spec.groups[name]
                for axis in (axis for axis in group.axes if axis.within == within and axis.tensor in found):
                    power = set_power(spec, group, axis)
                    found[axis.tensor] = zipped.fold(found[axis.tensor], axis, source, power)
        return found


def zip_sources(
    spec: Spec,
    states: Sequence[Mapping[str, Tensor]],
    statistics: Statistics | None,
    alpha: float,
    *,
    within: float = 1.0,
    repeat: float = 0.5,
    heads: bool = True,
    sweeps: int = 100,
    seed: int = 0,
) -> Zipping:
    """Zip each group by S = α S_w + (1 − α) S_act, the zip of MuDSC (arXiv 2403.01753); ZipIt's (2305.03053) at α = 0.

    S_w compares weights as the neighbours stand: a source's weights are summed over the inputs that stand in one set,
    and averaged over such outputs, as in the student (MuDSC's code has it the other way round). Groups are visited as
    in coordinate ascent, but a greedy zip need not be better than the one before it. Blocks that stay together, such as
    the heads of attention, are matched one to one, as wholes, and units are zipped within matched blocks.

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        statistics: With unit moments of all sources, where α is below 1.
        alpha: α, the share of the weights: 0 to 1.
        within: See :func:`~project.alignment.zip_sets.zip_units`.
        repeat: See :func:`~project.alignment.zip_sets.zip_units`.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
        sweeps: Most passes over all groups; see :func:`~project.alignment.ascent.ascend`.
        seed: Seed of the order in which groups are visited.
    """
    measure, sources = Dual.of(spec, counted(spec, states, heads=heads), alpha, statistics), len(states)

    def similarity(group: Group, found: Mapping[str, Tensor], skip: set[str] | None = None) -> Tensor:
        return replace(measure, zips=zips(found)).similarity(group, {}, skip or ())

    def zips(found: Mapping[str, Tensor]) -> dict[str, Zip]:
        return {name: Zip(sets, spec.groups[name].blocks) for name, sets in found.items()}

    def put(group: Group, alike: Tensor, rows: Tensor, found: Mapping[str, Tensor]) -> Tensor:
        """Sets of all units, shape (size, sources), within the blocks that stand in one row."""
        if spec.normalised(group):
            return match_within(alike, group, rows, Zip(found[group.name]).members).argsort(0)
        sets, size = torch.empty(group.size, sources, dtype=torch.long), group.size // group.blocks
        for block, (row, one) in enumerate(zip(rows, alike_within(alike, rows), strict=True)):
            units = row * size + torch.arange(size)[:, None]
            sets.scatter_(0, units, zip_units(one, sources, within, repeat).sets + block * size)
        return sets

    def zipped(groups: Sequence[Group], rows: Tensor, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Units zipped anew within blocks, group after group, and what they have in common."""
        found, alike = dict(found), []
        for group in groups:
            alike = [similarity(group, found)]
            found[group.name] = put(group, alike[0], rows, found)
        if len(groups) > 1:  # zipping one has changed how alike the units of the others are
            alike = [similarity(group, found) for group in groups]
        worth = sum(g.size * cohesion(one, Zip(found[g.name])) for g, one in zip(groups, alike, strict=True))
        return {group.name: found[group.name] for group in groups}, worth * sources * (sources - 1) / 2

    def visit(groups: Sequence[Group], found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Blocks as they stand, or as they match without the tensors that the groups share, whichever is worth more."""
        stand = Zip(found[groups[0].name], groups[0].blocks).homes.argsort(0)
        kept = zipped(groups, stand, found)
        if groups[0].blocks == 1:
            return kept
        alike = {group.name: similarity(group, found, shared_tensors(groups)) for group in groups}
        rows = match_whole(spec, groups, alike, sources, stand)
        if torch.equal(rows, stand):
            return kept
        start = {group.name: put(group, alike[group.name], rows, found) for group in groups}
        moved = zipped(groups, rows, {**found, **start})
        return moved if moved[1] > kept[1] + 1e-9 * abs(kept[1]) else kept

    start = {group.name: torch.arange(group.size)[:, None].expand(-1, sources).clone() for group in spec.free}
    sweeps = sweeps if alpha else 1  # activations are as alike whatever stands where
    best = ascend(bundles(spec), visit, start, seed=seed, sweeps=sweeps)
    scores = {group.name: cohesion(similarity(group, best), Zip(best[group.name])) for group in spec.free}
    return Zipping(zips(best), scores)
