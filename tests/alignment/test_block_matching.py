"""Units that stay together in blocks are matched block by block, tied groups together."""

import copy
import itertools

import pytest
import torch
from helpers import DOMAINS, gathered, permuted_copy, pictures, traced
from kinds import KINDS, SIDE, kind
from torch import Tensor, nn

from project.alignment import Alignment, align_by_activations, align_by_weights
from project.alignment.structured import block_rows, bundles, match_blocks
from project.errors import MergeError
from project.moments import UNITS
from project.symmetry import Spec, check_blocks

SHAPE = (3, SIDE, SIDE)


def family(name: str, count: int) -> tuple[list[nn.Module], Spec, list[dict[str, Tensor]]]:
    network = kind(name, 0)
    spec = traced(network, SHAPE)
    copies = [copy.deepcopy(network) for _ in range(count - 1)]
    truths = [permuted_copy(network, twin, spec, seed) for seed, twin in enumerate(copies)]
    return [network, *copies], spec, truths


def aligned(sources: list[nn.Module], spec: Spec, by: str) -> Alignment:
    if by == "weights":
        return align_by_weights(spec, [source.state_dict() for source in sources])
    batches = [("art", pictures(30, 0, SHAPE)), ("birds", pictures(30, 1, SHAPE))]
    statistics = gathered(sources, spec, batches, DOMAINS, [UNITS])
    return align_by_activations(spec, statistics, len(sources), by)  # type: ignore[arg-type]


def rows(members: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in members.tolist()}


@pytest.mark.parametrize("by", ["weights", "correlation", "distance"])
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_permutations_are_found(name: str, count: int, by: str) -> None:
    sources, spec, truths = family(name, count)
    if by != "weights" and not all(group.nodes for group in spec.free):
        with pytest.raises(MergeError, match="no value of the graph carries"):
            aligned(sources, spec, by)
        return
    members = aligned(sources, spec, by).members
    assert set(members) == {group.name for group in spec.free}
    for group in spec.free:
        expected = torch.stack([torch.arange(group.size), *(truth[group.name] for truth in truths)], 1)
        assert rows(members[group.name]) == rows(expected), group.name


@pytest.mark.parametrize("by", ["weights", "distance"])
@pytest.mark.parametrize("name", ["grouped", "group norm", "transformer", "attention"])
def test_blocks_stay_whole_in_one_order_whatever_the_order_of_the_sources(name: str, by: str) -> None:
    sources = [kind(name, seed) for seed in range(3)]
    spec = traced(sources[0], SHAPE)
    first = aligned(sources, spec, by)
    for source in range(3):
        check_blocks(spec, {group: members[:, source] for group, members in first.members.items()})
    for order in ([2, 1, 0], [1, 2, 0]):
        other = aligned([sources[i] for i in order], spec, by)
        for group in spec.free:
            assert rows(other.members[group.name]) == rows(first.members[group.name][:, order]), group.name


@pytest.mark.parametrize("seed", range(5))
def test_against_all_permutations(seed: int) -> None:
    """Two sources, two tied groups of three blocks: no other matching has a larger total similarity."""
    spec = traced(kind("grouped", 0), SHAPE)
    groups = next(found for found in bundles(spec) if len(found) > 1)
    generator = torch.Generator().manual_seed(seed)
    similarities = {}
    for group in groups:
        joint = torch.randn(2 * group.size, 2 * group.size, generator=generator, dtype=torch.float64)
        similarities[group.name] = joint + joint.mT
    found = match_blocks(spec, groups, similarities, 2)
    blocks = groups[0].blocks
    order = block_rows(found[groups[0].name], blocks)
    assert all(torch.equal(block_rows(found[group.name], blocks), order) for group in groups)

    def total(members: dict[str, Tensor]) -> float:
        return sum(
            float(similarities[g.name][members[g.name][:, 0], members[g.name][:, 1] + g.size].sum()) for g in groups
        )

    best = -torch.inf
    for order in itertools.permutations(range(blocks)):
        value = 0.0
        for group in groups:
            size = group.size // blocks
            for mine, theirs in enumerate(order):
                part = similarities[group.name][mine * size :, group.size + theirs * size :][:size, :size]
                value += max(
                    float(sum(part[i, j] for i, j in enumerate(inside)))
                    for inside in itertools.permutations(range(size))
                )
        best = max(best, value)
    assert total(found) == pytest.approx(best)
