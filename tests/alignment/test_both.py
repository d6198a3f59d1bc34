"""Matching by weights and activations at once: between its two ends, and on permuted copies."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from helpers import DOMAINS, PICTURE, gathered, permuted_copy, pictures, random_network, traced
from kinds import KINDS, SIDE, kind
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from project.alignment import Alignment, activation_similarity, align_by_activations, align_by_both
from project.alignment.ascent import ascend
from project.moments import UNITS, Statistics
from project.symmetry import Group, Spec, check_blocks, permute_state

SHAPE = (3, SIDE, SIDE)


def scene(sources: Sequence[nn.Module], shape: tuple[int, int, int] = PICTURE) -> tuple[Spec, Statistics]:
    spec = traced(sources[0], shape)
    batches = [("art", pictures(30, 0, shape)), ("birds", pictures(30, 1, shape))]
    return spec, gathered(sources, spec, batches, DOMAINS, [UNITS])


def aligned(sources: Sequence[nn.Module], alpha: float, shape: tuple[int, int, int] = PICTURE) -> Alignment:
    spec, statistics = scene(sources, shape)
    return align_by_both(spec, [source.state_dict() for source in sources], statistics, alpha)


def copies(network: nn.Module, count: int, shape: tuple[int, int, int]) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """The network and permuted copies of it; for each group, which units belong together."""
    spec, sources = traced(network, shape), [network]
    rows = {group.name: [torch.arange(group.size)] for group in spec.free}
    for seed in range(count - 1):
        sources.append(copy.deepcopy(network))
        for name, order in permuted_copy(network, sources[-1], spec, seed).items():
            rows[name].append(order)
    return sources, {name: torch.stack(found, 1) for name, found in rows.items()}


def row_set(members: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in members.tolist()}


@pytest.mark.parametrize(
    ("seed", "count", "alpha"),
    [  # every structure with two of four
        pytest.param(seed, 2 + seed % 2, alpha, marks=() if (seed // 2 + i) % 2 else pytest.mark.slow)
        for seed in range(6)
        for i, alpha in enumerate((0.1, 0.5, 0.9, 1.0))
    ],
)
def test_permutations_are_found(seed: int, count: int, alpha: float) -> None:
    sources, truth = copies(random_network(seed, seed), count, PICTURE)
    alignment = aligned(sources, alpha)
    assert set(alignment.members) == set(truth)
    for name, rows in truth.items():
        assert row_set(alignment.members[name]) == row_set(rows), name
        assert alignment.scores[name].tolist() == sorted(alignment.scores[name].tolist(), reverse=True)
        assert float(alignment.scores[name].max()) < 1.001


@pytest.mark.parametrize(
    ("name", "count"),
    [  # every kind with two sources or with three
        pytest.param(name, count, marks=() if (i + count) % 2 else pytest.mark.slow)
        for i, name in enumerate(name for name in KINDS if name != "shuffled")
        for count in (2, 3)
    ],
)
def test_permutations_of_structured_networks_are_found(name: str, count: int) -> None:
    sources, truth = copies(kind(name, 0), count, SHAPE)
    alignment = aligned(sources, 0.5, SHAPE)
    for group, rows in truth.items():
        assert row_set(alignment.members[group]) == row_set(rows), group


@pytest.mark.parametrize(("name", "count"), [("attention", 3), ("grouped", 2), ("transformer", 2)])
def test_blocks_stay_whole(name: str, count: int) -> None:
    sources = [kind(name, seed) for seed in range(count)]
    alignment = aligned(sources, 0.5, SHAPE)
    for source in range(count):
        orders = {group: members[:, source] for group, members in alignment.members.items()}
        check_blocks(traced(sources[0], SHAPE), orders)


@pytest.mark.parametrize(("seed", "count"), [(1, 2), (3, 2), (1, 3)])
def test_no_weights_are_activations_alone(seed: int, count: int) -> None:
    sources = [random_network(seed, weights) for weights in range(count)]
    spec, statistics = scene(sources)
    found = align_by_both(spec, [source.state_dict() for source in sources], statistics, 0.0)
    expected = align_by_activations(spec, statistics, count, "correlation")
    for group in spec.free:
        assert row_set(found.members[group.name]) == row_set(expected.members[group.name]), group.name
        assert torch.allclose(found.scores[group.name], expected.scores[group.name])
        assert torch.allclose(found.distances[group.name], expected.distances[group.name])


def pearson(spec: Spec, group: Group, states: Sequence[Mapping[str, Tensor]], alignment: Alignment) -> np.ndarray:
    """Correlations of all units' weights, the other axes put in order by permuting whole networks; by numpy."""
    rows: list[list[np.ndarray]] = [[] for _ in states]
    for s, state in enumerate(states):
        orders = {name: members[:, s] for name, members in alignment.members.items()}
        moved = permute_state(state, spec, orders)
        back = orders[group.name].argsort()
        for axis in group.axes:
            if "running" not in axis.tensor:
                tensor = moved[axis.tensor].double().movedim(axis.dim, 0)
                units = tensor.reshape(group.size, axis.taps, *tensor.shape[1:])[back]  # this axis alone as it was
                rows[s].append(units.reshape(group.size, -1).numpy())
    return np.corrcoef(np.concatenate([np.concatenate(one, 1) for one in rows]))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_every_group_is_matched_in_the_best_way_as_the_others_stand(seed: int, alpha: float) -> None:
    """Two sources: against SciPy's assignment on correlations by numpy; with α = 1, Pearson's of weights alone."""
    sources = [random_network(seed, weights) for weights in range(2)]
    spec, statistics = scene(sources)
    states = [source.state_dict() for source in sources]
    alignment = align_by_both(spec, states, statistics, alpha)
    for group in spec.free:
        expected = alpha * pearson(spec, group, states, alignment)
        expected += (1 - alpha) * activation_similarity(statistics, group).numpy()
        between = expected[: group.size, group.size :]
        best = between[linear_sum_assignment(between, maximize=True)].sum()
        mine, theirs = alignment.members[group.name].mT.numpy()
        assert between[mine, theirs].sum() == pytest.approx(best, abs=1e-4)
        assert np.allclose(between[mine, theirs], alignment.scores[group.name].numpy(), atol=1e-4)
        gaps = expected[mine, mine] + expected[theirs + group.size, theirs + group.size] - 2 * between[mine, theirs]
        assert np.allclose(alignment.distances[group.name][:, 0, 1].numpy(), gaps, atol=1e-3)


def test_the_order_of_the_sources_does_not_matter() -> None:
    sources = [random_network(2, weights) for weights in range(3)]
    first = aligned(sources, 0.5)
    for order in ([2, 1, 0], [1, 2, 0]):
        other = aligned([sources[i] for i in order], 0.5)
        for name, members in first.members.items():
            assert row_set(other.members[name]) == row_set(members[:, order]), name


def test_ascent_in_circles_ends_with_the_best() -> None:
    """Three states in turn, worth 1, 5 and 2: five sweeps in a row that are no better are enough."""
    worth, visits = {0: 1.0, 1: 5.0, 2: 2.0}, []

    def visit(name: str, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        state = (int(found[name]) + 1) % 3
        visits.append(state)
        return {name: torch.tensor(state)}, worth[state]

    assert int(ascend(["a"], visit, {"a": torch.tensor(2)})["a"]) == 1
    assert visits == [0, 1, 2, 0, 1, 2, 0]
    still = ascend(["a", "b"], lambda name, found: ({name: torch.tensor(7)}, 0.0), {n: torch.tensor(0) for n in "ab"})
    assert {name: int(one) for name, one in still.items()} == {"a": 7, "b": 7}
