"""Zipping all groups of the sources, by activations, by weights, or by both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from project.alignment.ascent import ascend
from project.alignment.measure import Dual, counted
from project.alignment.structured import bundles, rematched
from project.alignment.unit_map import UnitMap
from project.alignment.zip import Zip, cohesion, zip_units
from project.moments import Statistics
from project.symmetry import Group, Spec, permute_tensors


@dataclass(frozen=True, eq=False)
class Zipping:
    """How the units of all sources are put together.

    Args:
        zips: Groups that were zipped.
        members: Matched units of the groups that can only be matched one to one: integer, shape (size, sources) each.
        scores: group -> mean similarity over the pairs of units that are put together.
    """

    zips: Mapping[str, Zip]
    members: Mapping[str, Tensor]
    scores: Mapping[str, float]

    def brought(self, spec: Spec, state: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
        """A source's tensors in the student's units: the student's are the mean of those of all sources.

        Args:
            spec: Groups of the sources.
            state: Some of the source's tensors; left unchanged.
            source: Its number.
        """
        found = permute_tensors(state, spec, {name: rows[:, source] for name, rows in self.members.items()})
        for name, zipped in self.zips.items():
            for axis in (axis for axis in spec.groups[name].axes if axis.tensor in state):
                found[axis.tensor] = zipped.fold(found[axis.tensor], axis, source, reads=spec.reads(axis))
        return found


def zippable(group: Group) -> bool:
    """Whether units of a group can be merged within a source; else its blocks, or its mean, would be other ones."""
    return group.blocks == 1 and group.tied is None and not group.whole


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
    in coordinate ascent, but a greedy zip need not be better than the one before it. Groups that are not
    :func:`zippable` are matched one to one.

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        statistics: With unit moments of all sources, where α is below 1.
        alpha: α, the share of the weights: 0 to 1.
        within: See :func:`~project.alignment.zip.zip_units`.
        repeat: See :func:`~project.alignment.zip.zip_units`.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
        sweeps: Most passes over all groups; see :func:`~project.alignment.ascent.ascend`.
        seed: Seed of the order in which groups are visited.
    """
    measure, sources = Dual.of(spec, counted(spec, states, heads=heads), alpha, statistics), len(states)
    zipped = {group.name for group in spec.free if zippable(group)}

    def split(found: Mapping[str, Tensor]) -> tuple[dict[str, Zip], dict[str, Tensor]]:
        zips = {name: Zip(sets) for name, sets in found.items() if name in zipped}
        return zips, {name: rows for name, rows in found.items() if name not in zipped}

    def visit(groups: Sequence[Group], found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        zips, members = split(found)
        now, group = replace(measure, zips=zips), groups[0]
        if group.name not in zipped:
            return rematched(groups, members, now)
        similarity = now.similarity(group, members)
        zip_ = zip_units(similarity, sources, within, repeat)
        pairs = sources * (sources - 1) / 2
        return {group.name: zip_.sets}, group.size * pairs * cohesion(similarity, zip_)

    start = {group.name: UnitMap.identity(group.size, sources).members for group in spec.free}
    zips, members = split(ascend(bundles(spec), visit, start, seed=seed, sweeps=sweeps))
    now, scores = replace(measure, zips=zips), {}
    for group in spec.free:
        sets = zips[group.name] if group.name in zips else Zip(members[group.name].argsort(0))
        scores[group.name] = cohesion(now.similarity(group, members), sets)
    return Zipping(zips, members, scores)
