"""Matching the units of all sources with each other, by activations, by weights, or by both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.alignment.ascent import ascend
from project.alignment.assignment import within_rows
from project.alignment.objective import AscentObjective, Dual, Products, counted
from project.alignment.partition import Splitting
from project.alignment.similarity import Similarity, activation_similarity, squared_distances
from project.alignment.structured import bundles, match_blocks, rank_blocks, rematched, row_scores
from project.alignment.unit_map import UnitMap
from project.moments import Statistics
from project.symmetry import Group, Spec


@dataclass(frozen=True)
class Alignment:
    """Matched units of all sources, for each permutation group; nothing in it depends on the order of the sources.

    Args:
        members: Integer, shape (size, sources): each row holds units that belong together, best matched rows first.
            The unit map of a full merge.
        scores: Shape (size,): mean similarity over the pairs of units in the row; only comparable within a group.
        distances: Shape (size, sources, sources): squared distances between the units of each row, in a unit that is
            only comparable within a group.
        matched: Whether anything was matched; else units stand by their number.
    """

    members: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    distances: Mapping[str, Tensor]
    matched: bool = True

    @property
    def matches(self) -> dict[str, float]:
        """For each group, the mean similarity of its matched units; empty where nothing was matched."""
        return {name: float(scores.mean()) for name, scores in self.scores.items()} if self.matched else {}

    def splitting(self, group: str) -> Splitting:
        """How the rows of a group come apart as the budget grows."""
        return Splitting.of(self.members[group], self.distances[group])


def unaligned(spec: Spec, sources: int) -> Alignment:
    """Units matched by their number, as a plain average takes them."""
    return Alignment(
        {group.name: UnitMap.identity(group.size, sources).members for group in spec.free},
        {group.name: torch.zeros(group.size) for group in spec.free},
        {group.name: torch.zeros(group.size, sources, sources) for group in spec.free},
        matched=False,
    )


def align_by_activations(spec: Spec, statistics: Statistics, sources: int, kind: Similarity) -> Alignment:
    """Match units that do the same on the calibration pictures.

    Args:
        spec: Groups of the sources.
        statistics: With unit moments of all sources.
        sources: Number of sources N.
        kind: ``correlation`` or ``distance``.
    """
    rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for groups in bundles(spec):
        similarities = {group.name: activation_similarity(statistics, group, kind).cpu() for group in groups}
        members = match_blocks(spec, groups, similarities, sources)
        rows |= _ranked(groups, similarities, members, inner=kind == "correlation")
    return _alignment(rows)


def align_by_weights(
    spec: Spec, states: Sequence[Mapping[str, Tensor]], *, heads: bool = True, sweeps: int = 100, seed: int = 0
) -> Alignment:
    """Match units whose weights agree, by coordinate ascent over the groups.

    Git Re-Basin (arXiv 2209.04836) for any number of sources: what ascends is the sum over all pairs of sources of the
    inner product of their weights.

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
        sweeps: Most passes over all groups; see :func:`~project.alignment.ascent.ascend`. What a sweep is worth is that
            sum, which may fall where a layer reads and writes units of one group.
        seed: Seed of the order in which groups are visited.
    """
    measure = Products(spec, counted(spec, states, heads=heads))
    return _ascended(measure, sweeps, seed, lambda members: measure.total(spec.free, members))


def align_by_both(
    spec: Spec,
    states: Sequence[Mapping[str, Tensor]],
    statistics: Statistics,
    alpha: float = 0.5,
    *,
    heads: bool = True,
    sweeps: int = 100,
    seed: int = 0,
) -> Alignment:
    """Match units that are alike in their weights and in what they do, by coordinate ascent over the groups.

    MuDSC (arXiv 2403.01753) for any number of sources: each group is matched by S = α S_w + (1 − α) S_act, Pearson's
    correlation of the weights of its units, all neighbours matched as they stand, and of their activations.

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        statistics: With unit moments of all sources.
        alpha: α, the share of the weights: 0 to 1.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
        sweeps: Most passes over all groups; see :func:`~project.alignment.ascent.ascend`.
        seed: Seed of the order in which groups are visited.
    """
    return _ascended(Dual.of(spec, counted(spec, states, heads=heads), alpha, statistics), sweeps, seed)


def _ascended(
    measure: AscentObjective, sweeps: int, seed: int, common: Callable[[Mapping[str, Tensor]], float] | None = None
) -> Alignment:
    """Match all groups, one after the other, until none has anything to gain."""
    spec, together = measure.spec, bundles(measure.spec)
    start = {group.name: UnitMap.identity(group.size, len(measure.states)).members for group in spec.free}

    def visit(groups: Sequence[Group], members: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        return rematched(groups, members, measure)

    members = ascend(together, visit, start, common=common, seed=seed, sweeps=sweeps)
    rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for groups in together:
        similarities = {group.name: measure.similarity(group, members) for group in groups}
        rows |= _ranked(groups, similarities, members, inner=True)
    return _alignment(rows)


def _ranked(
    groups: Sequence[Group], similarities: Mapping[str, Tensor], members: Mapping[str, Tensor], *, inner: bool
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Members, scores and distances of tied groups, best matched rows first."""
    result = {}
    for name, order in rank_blocks(groups, similarities, members).items():
        among = within_rows(similarities[name], members[name])[order]
        result[name] = members[name][order], row_scores(among), squared_distances(among, inner=inner)
    return result


def _alignment(rows: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Alignment:
    """From (members, scores, distances) of every group."""
    members, scores, distances = ({name: row[part] for name, row in rows.items()} for part in range(3))
    return Alignment(members, scores, distances)
