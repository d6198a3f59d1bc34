"""Matching a network with permuted copies of itself finds the permutations."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from helpers import DOMAINS, PICTURE, gathered, permuted_copy, pictures, random_network, resnet, traced
from torch import Tensor, nn

from project.alignment import Alignment, activation_similarity, align_by_activations, align_by_weights, unaligned
from project.moments import UNITS
from project.symmetry import Spec, permute_state


def family(network: nn.Module, count: int) -> tuple[list[nn.Module], Spec, list[dict[str, Tensor]]]:
    """The network and permuted copies of it, with the true matches of each copy."""
    spec = traced(network, PICTURE)
    copies = [copy.deepcopy(network) for _ in range(count - 1)]
    truths = [permuted_copy(network, twin, spec, seed) for seed, twin in enumerate(copies)]
    return [network, *copies], spec, truths


def row_set(members: Tensor, order: Sequence[int] | None = None) -> set[tuple[int, ...]]:
    """The rows, whatever their order, with their columns put into an order."""
    return {tuple(row) for row in (members if order is None else members[:, list(order)]).tolist()}


def assert_found(alignment: Alignment, spec: Spec, truths: list[dict[str, Tensor]]) -> None:
    assert set(alignment.members) == {group.name for group in spec.free}
    for group in spec.free:
        expected = torch.stack([torch.arange(group.size), *(truth[group.name] for truth in truths)], 1)
        assert row_set(alignment.members[group.name]) == row_set(expected), group.name
        assert alignment.scores[group.name].tolist() == sorted(alignment.scores[group.name].tolist(), reverse=True)


@pytest.mark.parametrize(
    ("seed", "count", "kind"),
    [  # every structure by one of them
        pytest.param(seed, 2 + seed % 2, kind, marks=() if (seed // 2 + i) % 2 else pytest.mark.slow)
        for seed in range(10)
        for i, kind in enumerate(("correlation", "distance"))
    ],
)
def test_by_activations(kind: str, seed: int, count: int) -> None:
    sources, spec, truths = family(random_network(seed, seed), count)
    statistics = gathered(sources, spec, [("art", pictures(30, 0)), ("birds", pictures(30, 1))], DOMAINS, [UNITS])
    alignment = align_by_activations(spec, statistics, count, kind)  # type: ignore[arg-type]
    assert_found(alignment, spec, truths)
    for scores in alignment.scores.values():
        if kind == "distance":
            assert float(scores.abs().max()) < 1e-2
        else:  # a unit that is dead at one value of its group counts 0 there
            assert 0.99 < float(scores.max()) < 1.001


@pytest.mark.parametrize(("seed", "count"), [(seed, 2 + seed % 2) for seed in range(10)])
def test_by_weights(seed: int, count: int) -> None:
    sources, spec, truths = family(random_network(seed, seed), count)
    states = [source.state_dict() for source in sources]
    assert_found(align_by_weights(spec, states, seed=seed), spec, truths)


@pytest.mark.parametrize("count", [2, 3])
def test_resnet_by_weights(count: int) -> None:
    sources, spec, truths = family(resnet("resnet20", 0), count)
    alignment = align_by_weights(spec, [source.state_dict() for source in sources])
    assert_found(alignment, spec, truths)


def test_weight_scores_belong_to_the_matched_units() -> None:
    """Score of a row: products of the matched units' weights, all other axes matched too."""
    sources, spec, _truths = family(random_network(4, 4), 2)
    mine, theirs = (source.state_dict() for source in sources)
    alignment = align_by_weights(spec, [mine, theirs])
    for group in spec.free:
        expected, units = torch.zeros(group.size, dtype=torch.float64), alignment.members[group.name][:, 0]
        for axis in group.axes:  # the copy is the network itself, so that a score is the unit's own square
            if not axis.tensor.endswith(("running_mean", "running_var")):
                rows = mine[axis.tensor].double().movedim(axis.dim, 0).reshape(group.size, -1)
                expected += rows.square().sum(1)
        assert torch.allclose(alignment.scores[group.name], expected[units], rtol=1e-5)


def test_buffers_take_no_part_in_matching() -> None:
    sources, spec, _ = family(random_network(1, 1), 2)
    states = [dict(source.state_dict()) for source in sources]
    plain = align_by_weights(spec, states)
    for name, tensor in states[1].items():
        if "running" in name:
            states[1][name] = torch.rand_like(tensor) * 100
    other = align_by_weights(spec, states)
    assert all(torch.equal(plain.members[name], other.members[name]) for name in plain.members)
    assert all(torch.equal(plain.scores[name], other.scores[name]) for name in plain.scores)


def test_unaligned_keeps_the_numbers() -> None:
    spec = traced(random_network(0), PICTURE)
    for group in spec.free:
        assert unaligned(spec, 3).members[group.name].tolist() == [[unit] * 3 for unit in range(group.size)]


def with_statistics(seed: int, count: int) -> tuple[list[nn.Module], Spec, Callable[[Sequence[int], str], Alignment]]:
    """Unrelated networks, and their alignment by activations in any order."""
    sources = [random_network(seed, weights) for weights in range(count)]
    spec = traced(sources[0], PICTURE)
    batches = [("art", pictures(20, 0)), ("birds", pictures(20, 1))]

    def align(order: Sequence[int], kind: str) -> Alignment:
        statistics = gathered([sources[i] for i in order], spec, batches, DOMAINS, [UNITS])
        return align_by_activations(spec, statistics, count, kind)  # type: ignore[arg-type]

    return sources, spec, align


@pytest.mark.parametrize("matching", ["distance", "weights"])
@pytest.mark.parametrize(("seed", "count"), [(1, 2), (2, 3), (3, 4)])
def test_the_order_of_the_sources_does_not_matter(matching: str, seed: int, count: int) -> None:
    sources, spec, align = with_statistics(seed, count)

    def found(order: Sequence[int]) -> Alignment:
        if matching == "weights":
            return align_by_weights(spec, [sources[i].state_dict() for i in order])
        return align(order, matching)

    first = found(range(count))
    for order in (range(count)[::-1], [*range(1, count), 0]):
        other = found(order)
        for name, members in first.members.items():
            assert row_set(other.members[name]) == row_set(members, order), name
            assert torch.allclose(other.scores[name], first.scores[name], rtol=1e-4, atol=1e-4)
            moved = first.distances[name][:, list(order)][:, :, list(order)]
            assert torch.allclose(other.distances[name].sum((1, 2)), moved.sum((1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["distance", "correlation"])
def test_scores_and_distances_are_those_of_the_rows(kind: str) -> None:
    """Against the similarity itself, an entry at a time."""
    sources, spec, _ = with_statistics(4, 3)
    statistics = gathered(sources, spec, [("art", pictures(20, 0))], DOMAINS, [UNITS])
    alignment = align_by_activations(spec, statistics, 3, kind)  # type: ignore[arg-type]
    for group in spec.free:
        joint = activation_similarity(statistics, group, kind)  # type: ignore[arg-type]
        for row, score, distances in zip(
            alignment.members[group.name],
            alignment.scores[group.name],
            alignment.distances[group.name],
            strict=True,
        ):
            units = [int(unit) + group.size * s for s, unit in enumerate(row)]
            assert float(score) == pytest.approx(
                sum(float(joint[a, b]) for a, b in itertools.combinations(units, 2)) / 3
            )
            for (s, a), (t, b) in itertools.product(enumerate(units), repeat=2):
                kernel = float(joint[a, a] + joint[b, b] - 2 * joint[a, b])
                expected = float(joint[a, b]) ** 2 if kind == "distance" else kernel
                assert float(distances[s, t]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3), (2, 4)])
def test_weights_of_matched_sources_are_more_alike(seed: int, count: int) -> None:
    """The sum over all pairs of what weights have in common, counted on permuted networks; and distances with it."""
    sources = [random_network(seed, weights) for weights in range(count)]
    spec = traced(sources[0], PICTURE)
    states = [source.state_dict() for source in sources]
    alignment = align_by_weights(spec, states)

    def common(members: Mapping[str, Tensor]) -> float:
        renamed = [
            permute_state(state, spec, {name: rows[:, s] for name, rows in members.items()})
            for s, state in enumerate(states)
        ]
        names = [name for name in states[0] if not name.endswith(("running_mean", "running_var", "batches_tracked"))]
        pairs = itertools.combinations(renamed, 2)
        return sum(float((a[name].double() * b[name].double()).sum()) for a, b in pairs for name in names)

    best = common(alignment.members)
    assert best > common(unaligned(spec, count).members)
    for group in spec.free:  # no swap of two units in one source does better
        for source, unit in itertools.product(range(count), range(1, group.size)):
            swapped = alignment.members[group.name].clone()
            swapped[[0, unit], source] = swapped[[unit, 0], source]
            assert common({**alignment.members, group.name: swapped}) <= best + 1e-4
    group = spec.free[0]
    row = alignment.members[group.name][0]
    mine, theirs = (
        torch.cat([
            permute_all(state, spec, alignment, s, axis.tensor, group.name).movedim(axis.dim, 0)[row[s]].flatten()
            for axis in group.axes
            if axis.tensor in states[0] and "running" not in axis.tensor
        ])
        for s, state in enumerate(states[:2])
    )  # fmt: skip
    expected = float((mine.double() - theirs.double()).square().sum())
    assert float(alignment.distances[group.name][0, 0, 1]) == pytest.approx(expected, rel=1e-4)


def permute_all(
    state: Mapping[str, Tensor], spec: Spec, alignment: Alignment, source: int, tensor: str, but: str
) -> Tensor:
    """A tensor of one source with all groups but one put into the common order."""
    orders = {name: rows[:, source] for name, rows in alignment.members.items() if name != but}
    return permute_state(state, spec, orders)[tensor]
