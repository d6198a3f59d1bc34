"""The greedy zip against its definition, a pair at a time; and tensors folded by matrices."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from project.alignment.zip_sets import Zip, cohesion, zip_units
from project.symmetry import Axis


def random_similarity(units: int, seed: int) -> Tensor:
    """Correlations of random values: symmetric, 1 on the diagonal."""
    return torch.from_numpy(np.corrcoef(np.random.default_rng(seed).normal(size=(units, 6))))


Sets = frozenset[frozenset[int]]


def brute_zips(similarity: Tensor, sources: int, within: float, repeat: float) -> set[Sets]:
    """By definition: every pair of sets, of every state, looked at anew; where several are most alike, each of them."""
    total = len(similarity)
    size = total // sources
    alone = [frozenset([unit]) for unit in range(total)]
    alike = {frozenset(pair): float(similarity[min(pair[0]), min(pair[1])]) for pair in combinations(alone, 2)}
    budget = (int((sources - 1) * size // sources * within + 1e-4),) * sources
    states = {(frozenset(alone), frozenset(alike.items()), budget)}
    for _ in range(total - size):
        states = {after for state in states for after in _merged(*state, sources, size, repeat)}
    return {sets for sets, _, _ in states}


def _merged(
    sets: Sets, values: frozenset[tuple[Sets, float]], left: tuple[int, ...], sources: int, size: int, repeat: float
) -> list[tuple[Sets, frozenset[tuple[Sets, float]], tuple[int, ...]]]:
    """What follows from a state by merging two of its most similar sets, whichever these are."""
    alike, begun = dict(values), sum(len(one) > 1 for one in sets)
    holds = {one: {unit // size for unit in one} for one in sets}

    def allowed(a: frozenset[int], b: frozenset[int]) -> bool:
        return all(left[source] for source in holds[a] & holds[b]) and (begun < size or len(a) > 1 or len(b) > 1)

    pairs = [pair for pair in combinations(sets, 2) if allowed(*pair)]
    most = max(alike[frozenset(pair)] for pair in pairs)
    found = []
    for a, b in (pair for pair in pairs if alike[frozenset(pair)] == most):
        both, others = a | b, sets - {a, b}
        filled = len(holds[a] | holds[b]) == sources or len(holds[a] | holds[b]) < len(both)
        after = {pair: value for pair, value in alike.items() if not pair & {a, b}}
        for c in others:
            least = min(alike[frozenset((a, c))], alike[frozenset((b, c))])
            after[frozenset((both, c))] = least * (repeat if filled else 1.0)
        spent = tuple(number - (source in holds[a] & holds[b]) for source, number in enumerate(left))
        found.append((others | {both}, frozenset(after.items()), spent))
    return found


def as_lists(zipped: Zip) -> list[list[int]]:
    return sorted((zipped.labels == number).nonzero()[:, 0].tolist() for number in range(len(zipped.sets)))


def as_sets(zipped: Zip) -> Sets:
    return frozenset(map(frozenset, as_lists(zipped)))


@pytest.mark.parametrize("repeat", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("within", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("sources", "size"), [(2, 9), (3, 6), (4, 5), (5, 3)])
def test_against_the_definition(sources: int, size: int, within: float, repeat: float) -> None:
    for seed in range(4):
        similarity = random_similarity(sources * size, seed)
        assert {as_sets(zip_units(similarity, sources, within, repeat))} == brute_zips(
            similarity, sources, within, repeat
        )


@pytest.mark.parametrize("within", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize(("sources", "size"), [(2, 5), (2, 6), (3, 3), (3, 4), (4, 3)])
def test_where_what_was_merged_is_alike_at_nothing(sources: int, size: int, within: float) -> None:
    """Factor 0 brings ties: the sets are among those that the definition allows, and it does not allow everything."""
    strange = 0
    for seed in range(6):
        similarity = random_similarity(sources * size, seed)
        for values in (similarity, similarity.abs()):
            expected = brute_zips(values, sources, within, 0.0)
            assert as_sets(zip_units(values, sources, within, 0.0)) in expected
            strange += as_sets(zip_units(values.flip(0, 1), sources, within, 0.0)) in expected
    assert strange < 6, "of 12 zips of other similarities"


@pytest.mark.parametrize("sources", [2, 3, 4, 5])
def test_without_a_budget_every_set_holds_one_unit_of_every_source(sources: int) -> None:
    for seed in range(20):
        for repeat in (0.0, 0.5, 1.0):
            found = zip_units(random_similarity(sources * 7, seed), sources, 0.0, repeat)
            assert all(sorted(unit // 7 for unit in one) == list(range(sources)) for one in as_lists(found))
            rows = found.members
            assert rows is not None
            assert sorted(sorted((rows[j] + 7 * torch.arange(sources)).tolist()) for j in range(7)) == as_lists(found)


@pytest.mark.parametrize("within", [0.0, 0.25, 0.5, 1.0])
def test_budgets_are_kept(within: float) -> None:
    """Units of a source that are not the first of their set: as many merges within it as there were."""
    used = set()
    for seed in range(20):
        found = zip_units(random_similarity(3 * 12, seed), 3, within, 1.0)
        assert sorted(found.sets.unique().tolist()) == list(range(12))
        spent = [12 - len(column.unique()) for column in found.sets.unbind(1)]
        assert max(spent) <= int(8 * within)
        used.add(max(spent))
    assert int(8 * within) in used or within == 1.0, "budgets that bind are used up"


def test_by_hand() -> None:
    """a1 = a2, b1 like b2, a3 like b3: two merges within sources and one between, as far as the budget goes."""
    similarity = torch.eye(6, dtype=torch.float64)
    for a, b, value in ((0, 1, 1.0), (3, 4, 0.9), (2, 5, 0.8), (0, 3, 0.5), (1, 4, 0.4)):
        similarity[a, b] = similarity[b, a] = value
    assert zip_units(similarity, 2).sets.tolist() == [[0, 2], [0, 2], [1, 1]]  # ⌊3 / 2⌋ = 1 merge within each
    assert zip_units(similarity, 2, within=0.0).sets.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert cohesion(similarity, zip_units(similarity, 2)) == pytest.approx((1.0 + 0.9 + 0.8) / 3)


def test_permuted_copies() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    values = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint = torch.corrcoef(torch.cat([values, values[order], values]))
    for within in (0.0, 1.0):
        found = zip_units(joint, 3, within)
        assert found.members is not None
        assert found.members.tolist() == torch.stack([torch.arange(5), order.argsort(), torch.arange(5)], 1).tolist()


def test_units_that_never_vary() -> None:
    similarity = torch.zeros(16, 16)
    assert len(as_lists(zip_units(similarity, 2))) == 8
    similarity[:8, :8] = similarity[8:, 8:] = -1.0
    assert len(as_lists(zip_units(similarity, 2, 0.0))) == 8


@pytest.mark.parametrize("axis", [Axis("w", 0), Axis("w", 1), Axis("w", 1, 2), Axis("w", 0, 1, (6, 1, 4, 2))])
def test_folding_is_a_product_with_the_matrices(axis: Axis) -> None:
    zipped = Zip(torch.tensor([[0, 1], [0, 3], [2, 1], [1, 1]]))
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(*((4 * axis.taps, 3) if axis.dim == 0 else (3, 4 * axis.taps)), 2, generator=generator)
    if axis.entries:
        tensor = torch.randn(8, 3, generator=generator)  # other units on the axis stay where they are
    entries = torch.tensor(axis.entries) if axis.entries else torch.arange(4 * axis.taps)
    counts = torch.tensor([2.0, 4.0, 1.0, 1.0])  # of set 0: units 0, 1 of source 0; of 1: unit 3, and 0, 2, 3; ...
    for source in range(2):
        unmerge = torch.nn.functional.one_hot(zipped.sets[:, source], 4).float()
        for power in (0.0, 0.5, 1.0):
            matrix = unmerge.mT * (2 / counts[:, None]) ** power
            wide = torch.kron(matrix.contiguous(), torch.eye(axis.taps))
            moved = tensor.movedim(axis.dim, 0)
            expected = moved.clone()
            expected[entries] = torch.tensordot(wide, moved[entries], 1)
            found = zipped.fold(tensor, axis, source, power)
            assert torch.allclose(found, expected.movedim(0, axis.dim))


@pytest.mark.parametrize("moved", [True, False])
def test_folding_within_blocks_is_folding_the_matrix_written_out(moved: bool) -> None:
    """A grouped convolution of 3 blocks, 2 inputs each; the sets' blocks in another order than the sources'."""
    zipped = Zip(torch.tensor([[4, 2], [4, 2], [1, 5], [0, 4], [2, 1], [3, 1]]), 3)
    assert zipped.homes.tolist() == [[2, 1], [0, 2], [1, 0]]
    tensor = torch.randn(12, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for source in range(2):
        homes = zipped.homes[:, source]
        found = zipped.fold(tensor, Axis("w", 1, within=True), source, 0.0, moved=moved)
        rows = homes.argsort() if moved else torch.arange(3)  # which of the source's blocks of inputs stands at a place
        for place, block in enumerate(rows.tolist()):
            dense = torch.zeros(4, 6, 3, 3)
            for unit in (2 * block, 2 * block + 1):
                dense[:, zipped.sets[unit, source]] += tensor[4 * place : 4 * place + 4, unit - 2 * block]
            columns = slice(2 * int(homes[block]), 2 * int(homes[block]) + 2)
            assert torch.equal(found[4 * place : 4 * place + 4], dense[:, columns])
            assert float(dense.abs().sum()) == pytest.approx(float(dense[:, columns].abs().sum()))


def test_rows_are_told_from_sets() -> None:
    assert Zip(torch.tensor([[0, 1], [0, 0]])).members is None
    rows = Zip(torch.tensor([[1, 0], [0, 1]])).members
    assert rows is not None
    assert rows.tolist() == [[1, 0], [0, 1]]
