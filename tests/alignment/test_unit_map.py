"""The unit map's invariants, by brute force over its entries."""

import itertools

import numpy as np
import pytest
import torch
from helpers import random_map
from torch import Tensor

from project.alignment import UnitMap, overlap
from project.errors import MergeError

CASES = [(sources, seed) for sources in (2, 3, 4) for seed in range(6)]


def pull_matrix(units: UnitMap, blend: Tensor, taps: int, beyond: int) -> np.ndarray:
    """The matrix that ``pull`` applies, entry by entry."""
    starts = np.cumsum([0, *units.sizes]) * taps
    result = np.zeros((units.units * taps + beyond, starts[-1] + beyond))
    for j, s in itertools.product(range(units.units), range(units.sources)):
        if (unit := int(units.members[j, s])) >= 0:
            for tap in range(taps):
                result[j * taps + tap, starts[s] + unit * taps + tap] = float(blend[j, s])
    for extra in range(beyond):
        result[units.units * taps + extra, starts[-1] + extra] = 1
    return result


@pytest.mark.parametrize(("sources", "seed"), CASES)
@pytest.mark.parametrize("beyond", [0, 1])
def test_pull_and_push_are_transposes(sources: int, seed: int, beyond: int) -> None:
    units, taps = random_map(5, sources, seed), 1 + seed % 3
    for blend in (None, units.mean, units.own(seed % sources)):
        factors = torch.ones(units.units, sources) if blend is None else blend
        matrix = pull_matrix(units, factors, taps, beyond)
        generator = torch.Generator().manual_seed(seed)
        joint = torch.randn(matrix.shape[1], 3, dtype=torch.float64, generator=generator)
        student = torch.randn(matrix.shape[0], 3, dtype=torch.float64, generator=generator)
        kept = joint.clone(), student.clone()
        assert np.allclose(units.pull(joint, blend, taps).numpy(), matrix @ joint.numpy(), atol=1e-12)
        assert np.allclose(units.push(student, blend, taps).numpy(), matrix.T @ student.numpy(), atol=1e-12)
        assert torch.equal(joint, kept[0])
        assert torch.equal(student, kept[1])


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_blends(sources: int, seed: int) -> None:
    units = random_map(6, sources, seed)
    present = units.members.numpy() >= 0
    assert np.allclose(units.mean.numpy(), present / present.sum(1, keepdims=True))
    for source in range(sources):
        own = units.own(source).numpy()
        for row, there, mean in zip(own, present, units.mean.numpy(), strict=True):
            assert np.allclose(row, np.eye(sources)[source] if there[source] else mean)


@pytest.mark.parametrize(("sources", "seed"), CASES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("owner", [None, 1])
def test_what_sources_do_is_blended_a_unit_at_a_time(sources: int, seed: int, axis: int, owner: int | None) -> None:
    """Of all sources, and of some of them, whose shares then count alone."""
    units, generator = random_map(5, sources, seed), torch.Generator().manual_seed(seed)
    shares = units.shares(owner)
    assert torch.equal(shares, units.mean if owner is None else units.own(owner))
    shape = [2, 3, 4]
    shape[axis] = 5
    values = [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(sources)]
    for given in (range(sources), (seed % sources,)):
        kept = [value.clone() for value in values]
        found = units.blend(((source, values[source]) for source in given), shares, axis)
        for unit, row in enumerate(units.members.tolist()):
            expected = torch.zeros(shape[:axis] + shape[axis + 1 :], dtype=torch.float64)
            for source in given:
                if row[source] >= 0:
                    expected += float(shares[unit, source]) * values[source].select(axis, row[source])
            assert torch.allclose(found.select(axis, unit), expected, rtol=0, atol=1e-12)
        assert found.shape[axis] == units.units
        assert all(map(torch.equal, values, kept))
    assert units.blend([(0, values[0].float())], shares, axis).dtype == torch.float32


def test_nothing_to_blend_is_refused() -> None:
    units = UnitMap.identity(3, 2)
    with pytest.raises(MergeError, match="values holds no source"):
        units.blend([], units.mean)


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_rows_as_given_stay_where_they_are(sources: int, seed: int) -> None:
    """Their runs cover all rows, one after the other, neighbouring runs of unlike sources."""
    members = random_map(6, sources, seed).members
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    units = UnitMap.as_given(members[order])
    assert torch.equal(units.members, members[order])
    present = units.present.tolist()
    assert [there for rows, there in units.blocks for _ in present[rows]] == list(map(tuple, present))
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(units.blocks))
    assert torch.equal(UnitMap.sorted(units.members).present, UnitMap.sorted(members).present)


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_rows_are_sorted_into_blocks(sources: int, seed: int) -> None:
    units = random_map(6, sources, seed)
    rows = [tuple(row) for row in (units.members >= 0).tolist()]
    counts = [sum(row) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert [row for row, _ in itertools.groupby(rows)] == list(dict.fromkeys(sorted(rows, key=rows.index)))
    assert len(set(rows)) == len(units.blocks)  # rows of equal sets are neighbours
    position = 0
    for block, there in units.blocks:
        assert block.start == position
        assert all(row == there for row in rows[block])
        position = block.stop
    assert position == units.units
    assert units.sizes == (6,) * sources


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_rows_keep_their_members(sources: int, seed: int) -> None:
    units = random_map(6, sources, seed)
    shuffled = units.members[torch.randperm(units.units, generator=torch.Generator().manual_seed(seed))]
    assert sorted(map(tuple, UnitMap.sorted(shuffled).members.tolist())) == sorted(map(tuple, units.members.tolist()))


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_overlap(sources: int, seed: int) -> None:
    outputs, inputs = random_map(4, sources, seed), random_map(5, sources, seed + 100)
    found = overlap(outputs, inputs)
    for o, i in itertools.product(range(outputs.units), range(inputs.units)):
        shared = any(a >= 0 and b >= 0 for a, b in zip(outputs.members[o], inputs.members[i], strict=True))
        assert bool(found[o, i]) == shared


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_splitting_separates_rows(sources: int, seed: int) -> None:
    units = random_map(5, sources, seed)
    rows = torch.arange(units.units)[:: 1 + seed % 3]
    found = units.split(rows)
    expected = []
    for j, row in enumerate(units.members.tolist()):
        if j not in rows.tolist():
            expected.append(tuple(row))
            continue
        for s, unit in enumerate(row):
            if unit >= 0:
                expected.append(tuple(unit if other == s else -1 for other in range(sources)))
    assert sorted(map(tuple, found.members.tolist())) == sorted(expected)
    assert torch.equal(units.split(torch.arange(0)).members, units.members)


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_splitting_into_parts(sources: int, seed: int) -> None:
    """Units of one part stay together; what a row lacks, its parts lack."""
    units, random = random_map(5, sources, seed), np.random.default_rng(seed)
    rows = torch.arange(units.units)[seed % 2 :: 2]
    parts = torch.from_numpy(random.integers(0, sources, (len(rows), sources)))
    expected = [tuple(row) for j, row in enumerate(units.members.tolist()) if j not in rows.tolist()]
    for j, labels in zip(rows.tolist(), parts.tolist(), strict=True):
        pieces = [
            tuple(unit if other == label else -1 for unit, other in zip(units.members[j].tolist(), labels, strict=True))
            for label in set(labels)
        ]
        expected += [piece for piece in pieces if max(piece) >= 0]
    assert sorted(map(tuple, units.split(rows, parts).members.tolist())) == sorted(expected)


def test_identity_and_apart() -> None:
    assert UnitMap.identity(3, 2).members.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert UnitMap.apart((2, 1)).members.tolist() == [[0, -1], [1, -1], [-1, 0]]
    assert UnitMap.apart((2, 1)).sizes == (2, 1)
    everything = torch.arange(3)
    assert torch.equal(UnitMap.identity(3, 2).split(everything).members, UnitMap.apart((3, 3)).members)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([[0, 0], [0, 1]], "source 0 twice or leaves"),
        ([[0, 0], [1, 2]], "source 1 twice or leaves"),
        ([[1, 0], [2, 1]], "source 0 twice or leaves"),
        ([[0, 0], [-1, -1]], "empty row"),
        ([0, 1], "empty row|shape"),
    ],
)
def test_what_is_no_unit_map(members: list[list[int]], words: str) -> None:
    for make in (UnitMap.sorted, UnitMap.as_given):
        with pytest.raises(MergeError, match=words):
            make(torch.tensor(members))
