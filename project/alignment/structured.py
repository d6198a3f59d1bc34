"""Matching groups whose units stay together in blocks: first whole blocks, then the units within matched blocks.

Groups that are tied, such as what a grouped convolution reads and what it writes, share one order of their blocks, so
that they are matched together. Two blocks are as alike as their units are when matched in the best way, summed over
the tied groups; blocks are matched by that, and units only within blocks that stand in one row.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from project.alignment.assignment import assign, match_units, total_similarity, within_rows
from project.alignment.objective import AscentObjective
from project.alignment.similarity import block_rows
from project.symmetry import Group, Spec


def bundles(spec: Spec) -> list[tuple[Group, ...]]:
    """The permutation groups, those together whose blocks are tied; in execution order of their first."""
    found = {group.tied or group.name: tuple(o for o in spec.tied(group) if o.fixed is None) for group in spec.free}
    return list(found.values())


def match_blocks(
    spec: Spec,
    groups: Sequence[Group],
    similarities: Mapping[str, Tensor],
    sources: int,
    starts: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Put the units of all sources into rows, whole blocks and the units within them.

    Args:
        spec: Groups of the sources.
        groups: Tied groups, or one alone.
        similarities: group -> float64, shape (N · size, N · size): units of all sources, source after source.
        sources: Number of sources N.
        starts: group -> rows to begin from where nothing does better: integer, shape (size, sources).

    Returns:
        group -> integer, shape (size, sources): rows of one block are neighbours, blocks of tied groups in one order.
    """
    starts = starts or {}
    if groups[0].blocks == 1:
        return {g.name: match_units(similarities[g.name], sources, starts.get(g.name)) for g in groups}
    first = starts.get(groups[0].name)
    start = None if first is None else block_rows(first, groups[0].blocks)
    rows = match_whole(spec, groups, similarities, sources, start)
    return {g.name: match_within(similarities[g.name], g, rows, starts.get(g.name)) for g in groups}


def match_whole(
    spec: Spec,
    groups: Sequence[Group],
    similarities: Mapping[str, Tensor],
    sources: int,
    start: Tensor | None = None,
) -> Tensor:
    """Put whole blocks into rows, by the similarities of their units matched in the best way.

    Args:
        spec: Groups of the sources.
        groups: Tied groups, or one alone.
        similarities: group -> float64, shape (N · size, N · size): units of all sources, source after source.
        sources: Number of sources N.
        start: Rows to begin from where nothing does better: integer, shape (blocks, sources).

    Returns:
        Integer, shape (blocks, sources); blocks that have a meaning outside the network stay where they are.
    """
    blocks = groups[0].blocks
    if blocks == 1 or any(group.fixed for group in spec.tied(groups[0])):
        return torch.arange(blocks)[:, None].expand(blocks, sources)
    alike = [_block_similarity(similarities[group.name], group, sources) for group in groups]
    return match_units(torch.stack(alike).sum(0), sources, start)


def shared_tensors(groups: Sequence[Group]) -> set[str]:
    """Tensors that hold units of several of the groups, which tell which blocks belong together only afterwards."""
    tensors = [{axis.tensor for axis in group.axes} for group in groups]
    return {name for part, other in combinations(tensors, 2) for name in part & other}


def rematched(
    groups: Sequence[Group], members: Mapping[str, Tensor], measure: AscentObjective
) -> tuple[dict[str, Tensor], float]:
    """One step of coordinate ascent: tied groups, or one alone, matched anew, all others as they stand.

    A tensor that tied groups share says which blocks belong together only once the units within them are matched.
    Blocks are therefore matched without it, units within blocks with it, and new blocks are taken where the units
    matched so have more in common.

    Args:
        groups: The groups.
        members: Matched units of all groups: integer, shape (size, sources) each.
        measure: What they shall have in common.

    Returns:
        group -> its rows, and what the matched units have in common.
    """
    spec, sources = measure.spec, len(measure.states)
    if groups[0].blocks == 1:
        similarities = {group.name: measure.similarity(group, members) for group in groups}
        found = match_blocks(spec, groups, similarities, sources, members)
        return found, sum(total_similarity(similarities[name], rows) for name, rows in found.items())
    similarities = {group.name: measure.similarity(group, members, shared_tensors(groups)) for group in groups}
    starts: tuple[Mapping[str, Tensor], ...] = ({}, match_blocks(spec, groups, similarities, sources, members))
    kept, moved = (_refined(groups, {**members, **start}, measure) for start in starts)
    totals = [measure.total(groups, one) for one in (kept, moved)]
    better = totals[1] > totals[0] + 1e-9 * abs(totals[0])
    best = moved if better else kept
    return {group.name: best[group.name] for group in groups}, totals[better]


def _refined(groups: Sequence[Group], members: Mapping[str, Tensor], measure: AscentObjective) -> dict[str, Tensor]:
    """Units matched anew within blocks, group after group."""
    members = dict(members)
    for group in groups:
        rows = block_rows(members[group.name], group.blocks)
        members[group.name] = match_within(measure.similarity(group, members), group, rows, members[group.name])
    return members


def rank_blocks(
    groups: Sequence[Group], similarities: Mapping[str, Tensor], members: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The order of the rows in which the best matched ones come first: blocks, then the rows within each.

    Args:
        groups: Tied groups, or one alone.
        similarities: group -> shape (N · size, N · size).
        members: group -> shape (size, N).

    Returns:
        group -> shape (size,); blocks of tied groups in one order.
    """
    blocks = groups[0].blocks
    scores = {g.name: row_scores(within_rows(similarities[g.name], members[g.name])) for g in groups}
    if blocks == 1:
        return {name: found.argsort(descending=True, stable=True) for name, found in scores.items()}
    total = torch.stack([found.view(blocks, -1).sum(1) for found in scores.values()]).sum(0)
    order, orders = total.argsort(descending=True, stable=True), {}
    for name, found in scores.items():
        size = len(found) // blocks
        inside = found.view(blocks, size).argsort(dim=1, descending=True, stable=True)
        orders[name] = (inside + torch.arange(blocks)[:, None] * size)[order].flatten()
    return orders


def row_scores(among: Tensor) -> Tensor:
    """Mean similarity over the pairs of units in each row, from their similarities: shape (rows, N, N) to (rows,)."""
    pairs = torch.ones(among.shape[1:], dtype=torch.bool).triu(1)
    return among[:, pairs].mean(1)


def _block_similarity(similarity: Tensor, group: Group, sources: int) -> Tensor:
    """Shape (N · blocks, N · blocks): similarity of the blocks' units, matched in the best way."""
    size, blocks = group.size // group.blocks, group.blocks
    parts = similarity.cpu().view(sources * blocks, size, sources * blocks, size).transpose(1, 2)
    result = similarity.new_zeros(sources * blocks, sources * blocks, device="cpu")
    units = torch.arange(size)
    for a in range(sources * blocks):
        for b in range((a // blocks + 1) * blocks, sources * blocks):  # blocks of one source are never in one row
            part = parts[a, b]
            result[a, b] = result[b, a] = part.sum() if size == 1 else part[units, assign(part)].sum()
    return result


def match_within(similarity: Tensor, group: Group, rows: Tensor, start: Tensor | None) -> Tensor:
    """Match the units within blocks that stand in one row.

    Args:
        similarity: Shape (N · size, N · size): units of all sources, source after source.
        group: The group.
        rows: Which blocks stand in one row: integer, shape (blocks, sources).
        start: Rows to begin from, where they keep those blocks together: integer, shape (size, sources).
    """
    size, sources = group.size // group.blocks, rows.shape[1]
    found = []
    for row, alike in zip(rows, alike_within(similarity, rows), strict=True):
        kept = None
        if start is not None:
            there = (start.view(group.blocks, size, sources)[:, 0] // size == row).all(1).nonzero()[:, 0]
            kept = start.view(group.blocks, size, sources)[there[0]] % size if len(there) else None
        found.append(match_units(alike, sources, kept) + row * size)
    return torch.cat(found)


def alike_within(similarity: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """For each row of blocks, how alike its units are: shape (N · size of a block,)², source after source.

    Args:
        similarity: Shape (N · size, N · size): units of all sources, source after source.
        rows: Which blocks stand in one row: integer, shape (blocks, sources).
    """
    blocks, sources = rows.shape
    similarity = similarity.cpu()
    if blocks == 1:
        yield similarity
        return
    size = len(similarity) // (sources * blocks)
    offsets = torch.arange(sources) * blocks * size
    for row in rows:
        units = ((row * size + offsets)[:, None] + torch.arange(size)).flatten()
        yield similarity[units][:, units]
