"""Matching the units of every source with those of the first, by activations or by weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from project.alignment.similarity import Similarity, activation_similarity
from project.alignment.unit_map import UnitMap
from project.moments import Statistics
from project.symmetry import Group, Spec, permute_axis

BUFFERS = ("running_mean", "running_var")  # statistics of the data, no parameters: they take no part in matching


@dataclass(frozen=True)
class Alignment:
    """Matched units of all sources.

    Args:
        members: For each permutation group, integer, shape (size, sources): row i holds the units matched with unit i
            of the first source. The unit map of a full merge.
        scores: For each permutation group, shape (size,): mean similarity of the row's units with the first source's;
            only comparable within a group.
    """

    members: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


def assign(similarity: Tensor) -> Tensor:
    """The permutation p that maximises Σ similarity[i, p[i]] (SciPy's linear sum assignment)."""
    return torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])


def unaligned(spec: Spec, sources: int) -> Alignment:
    """Units matched by their number, as a plain average takes them."""
    members = {group.name: UnitMap.identity(group.size, sources).members for group in spec.free}
    return Alignment(members, {group.name: torch.zeros(group.size) for group in spec.free})


def align_by_activations(spec: Spec, statistics: Statistics, sources: int, kind: Similarity) -> Alignment:
    """Match units that do the same on the calibration pictures.

    Args:
        spec: Groups of the sources.
        statistics: With unit moments of all sources.
        sources: Number of sources N.
        kind: ``correlation`` or ``distance``.
    """
    members, scores = {}, {}
    for group in spec.free:
        joint = activation_similarity(statistics, group, kind).cpu()
        blocks = [joint[: group.size, s * group.size : (s + 1) * group.size] for s in range(1, sources)]
        members[group.name], scores[group.name] = _match(group.size, blocks)
    return Alignment(members, scores)


def align_by_weights(
    spec: Spec, states: Sequence[Mapping[str, Tensor]], *, heads: bool = True, sweeps: int = 100, seed: int = 0
) -> Alignment:
    """Match units whose weights agree, by coordinate ascent over the groups (Git Re-Basin, arXiv 2209.04836).

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
        sweeps: Most passes over all groups; it stops at the first that changes nothing.
        seed: Seed of the order in which groups are visited.
    """
    ignored = set() if heads else {axis.tensor for axis in spec.output.axes}
    kept = [{name: tensor for name, tensor in state.items() if name not in ignored} for state in states]
    finals = [_ascend(spec, kept[0], other, sweeps, seed) for other in kept[1:]]
    members, scores = {}, {}
    for group in spec.free:
        members[group.name], scores[group.name] = _match(group.size, [final[group.name] for final in finals])
    return Alignment(members, scores)


def _match(size: int, similarities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Assignment and row scores of one group, from its similarity with the first source for every other source."""
    first = torch.arange(size)
    orders = [assign(similarity) for similarity in similarities]
    score = torch.stack([sim[first, order].double() for sim, order in zip(similarities, orders, strict=True)]).mean(0)
    return torch.stack([first, *orders], 1), score


def _ascend(
    spec: Spec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor], sweeps: int, seed: int
) -> dict[str, Tensor]:
    """Similarities of all groups at a local optimum, in the sources' own numbering."""
    generator = torch.Generator().manual_seed(seed)
    orders = {group.name: torch.arange(group.size) for group in spec.free}
    tied: dict[str, list[tuple[str, int, int]]] = {}
    for group in spec.free:
        for axis in group.axes:
            tied.setdefault(axis.tensor, []).append((group.name, axis.dim, axis.taps))
    for _ in range(sweeps):
        changed = False
        for index in torch.randperm(len(spec.free), generator=generator).tolist():
            group = spec.free[index]
            order = assign(_weight_similarity(group, reference, other, orders, tied))
            changed |= not torch.equal(order, orders[group.name])
            orders[group.name] = order
        if not changed:
            break
    return {g.name: _weight_similarity(g, reference, other, orders, tied) for g in spec.free}


def _weight_similarity(
    group: Group,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    orders: Mapping[str, Tensor],
    tied: Mapping[str, list[tuple[str, int, int]]],
) -> Tensor:
    """Σ over the group's tensors of ⟨reference's unit i, other's unit j⟩, the other axes permuted as they stand."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for axis in group.axes:
        if axis.tensor.endswith(BUFFERS) or axis.tensor not in reference:
            continue
        mine, theirs = reference[axis.tensor].cpu(), other[axis.tensor].cpu()
        for name, dim, taps in tied[axis.tensor]:
            if dim != axis.dim:
                theirs = permute_axis(theirs, dim, orders[name], taps)
        total += _unit_rows(mine, axis.dim, group.size) @ _unit_rows(theirs, axis.dim, group.size).mT
    return total


def _unit_rows(tensor: Tensor, dim: int, size: int) -> Tensor:
    """A tensor with one row for each unit on an axis."""
    return tensor.movedim(dim, 0).reshape(size, -1)
