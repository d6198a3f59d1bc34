"""Matching a network with permuted copies of itself finds the permutations (DESIGN §11.2)."""

import copy

import pytest
import torch
from helpers import DOMAINS, PICTURE, gathered, permuted_copy, pictures, random_network, resnet
from torch import Tensor, nn

from project.alignment import Alignment, align_by_activations, align_by_weights, unaligned
from project.moments import UNITS
from project.symmetry import Spec, trace


def family(network: nn.Module, count: int) -> tuple[list[nn.Module], Spec, list[dict[str, Tensor]]]:
    """The network and permuted copies of it, with the true matches of each copy."""
    spec = trace(network, PICTURE)
    copies = [copy.deepcopy(network) for _ in range(count - 1)]
    truths = [permuted_copy(network, twin, spec, seed) for seed, twin in enumerate(copies)]
    return [network, *copies], spec, truths


def assert_found(alignment: Alignment, spec: Spec, truths: list[dict[str, Tensor]]) -> None:
    assert set(alignment.members) == {group.name for group in spec.free}
    for group in spec.free:
        expected = torch.stack([torch.arange(group.size), *(truth[group.name] for truth in truths)], 1)
        assert torch.equal(alignment.members[group.name], expected), group.name


@pytest.mark.parametrize("kind", ["correlation", "distance"])
@pytest.mark.parametrize(("seed", "count"), [(seed, 2 + seed % 2) for seed in range(10)])
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
        expected = torch.zeros(group.size, dtype=torch.float64)
        for axis in group.axes:  # the copy is the network itself, so that a score is the unit's own square
            if not axis.tensor.endswith(("running_mean", "running_var")):
                rows = mine[axis.tensor].double().movedim(axis.dim, 0).reshape(group.size, -1)
                expected += rows.square().sum(1)
        assert torch.allclose(alignment.scores[group.name], expected, rtol=1e-5)


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
    spec = trace(random_network(0), PICTURE)
    for group in spec.free:
        assert unaligned(spec, 3).members[group.name].tolist() == [[unit] * 3 for unit in range(group.size)]
