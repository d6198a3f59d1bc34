"""Gains against least squares by numpy on the stacked samples, and where they must vanish."""

import copy

import numpy as np
import pytest
import torch
from helpers import PICTURE, Case, make_problem, merge_case, permuted_copy, random_map, random_network, traced, unfolded
from torch import Tensor, nn

from project.alignment import UnitMap, align_by_activations
from project.allocation import separated
from project.fit import separation_gains
from project.methods import Permutation, PLeaS
from project.moments import INPUTS, UNITS


def gains_of(problem: Case, members: dict[str, Tensor], fitted: bool) -> dict[str, Tensor]:
    maps = {**problem.fixed, **{name: UnitMap.sorted(rows) for name, rows in members.items()}}
    return separation_gains(
        problem.spec, problem.sources, problem.owners, problem.statistics, maps, fitted=fitted
    )  # fmt: skip


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("seed", "count"), [(seed, 2 + seed % 2) for seed in range(3)])
def test_nothing_is_gained_by_keeping_copies_apart(seed: int, count: int, fitted: bool) -> None:
    network = random_network(seed, seed)
    spec = traced(network, PICTURE)
    sources = [network, *(copy.deepcopy(network) for _ in range(count - 1))]
    numbers = [permuted_copy(network, twin, spec, s) for s, twin in enumerate(sources[1:])]
    members = {g.name: torch.stack([torch.arange(g.size), *(n[g.name] for n in numbers)], 1) for g in spec.free}
    problem = make_problem(sources, needs=(UNITS, INPUTS))
    assert max(float(gain.max()) for gain in gains_of(problem, members, fitted).values()) < 1e-6
    shuffled = {name: torch.stack([rows[:, 0], *rows[:, 1:].roll(1, 0).T], 1) for name, rows in members.items()}
    assert max(float(gain.max()) for gain in gains_of(problem, shuffled, fitted).values()) > 1e-3


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3)])
def test_the_first_layer_against_least_squares(seed: int, count: int, fitted: bool) -> None:
    """One layer on the picture, one head: the gain is the unit's share times its relative residual."""
    torch.manual_seed(seed)
    sources = [
        nn.Sequential(
            nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
        ).eval()
        for _ in range(count)
    ]
    problem = make_problem(sources, needs=(UNITS, INPUTS))
    domains = tuple(problem.owners)
    order = {"0": torch.stack([torch.randperm(5) for _ in range(count)], 1)}
    found = gains_of(problem, order, fitted)["0"].numpy()
    columns, targets, read = [], [], np.zeros(5)
    for s, (domain, source) in enumerate(zip(domains, sources, strict=True)):
        (batch,) = problem.pictures[domain]
        x = unfolded(batch, source[0]).numpy()
        weight = source[0].weight.detach().double().flatten(1).numpy()[order["0"][:, s]]
        columns.append(x / x.shape[1] ** 0.5)
        targets.append(weight @ columns[-1])
        with torch.no_grad():
            units = source[:4](batch).double().numpy()
        norms = source[4].weight.detach().double().square().sum(0).numpy()
        read += (units.var(0) * norms)[order["0"][:, s]]
    weights = [s[0].weight.detach().double().flatten(1).numpy()[order["0"][:, i]] for i, s in enumerate(sources)]
    best = (
        np.linalg.lstsq(np.hstack(columns).T, np.hstack(targets).T, rcond=None)[0].T if fitted else np.mean(weights, 0)
    )
    error = sum(((best @ x - t) ** 2).sum(1) for x, t in zip(columns, targets, strict=True))
    expected = read / read.sum() * error / sum((t**2).sum(1) for t in targets)
    assert np.allclose(found, expected, rtol=2e-3)


def test_a_branch_counts_by_its_share_of_the_sum() -> None:
    """Two branches of one sum, one of them tiny: merging its inner units spoils next to nothing."""

    class Branches(nn.Module):
        def __init__(self, small: float) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.c, self.d, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 3)
            with torch.no_grad():
                self.d.weight *= small
                self.d.bias *= small

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.head((self.c(torch.relu(self.a(x))) + self.d(torch.relu(self.b(x)))).mean((2, 3)))

    torch.manual_seed(0)
    problem = make_problem([Branches(1e-3).eval(), Branches(1e-3).eval()], needs=(UNITS, INPUTS))
    gains = gains_of(problem, {g.name: UnitMap.identity(g.size, 2).members for g in problem.spec.free}, True)
    assert 0 < float(gains["b"].sum()) < 1e-4 * float(gains["a"].sum())


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_some_sources(seed: int) -> None:
    sources = [random_network(seed, weights, 4) for weights in range(3)]
    problem = make_problem(sources, needs=(UNITS, INPUTS))
    members = {g.name: random_map(g.size, 3, seed + i).members for i, g in enumerate(problem.spec.free)}
    for name, gain in gains_of(problem, members, True).items():
        single = UnitMap.sorted(members[name]).present.sum(1) == 1
        assert bool((gain >= 0).all())
        assert bool((gain[single] == 0).all())
        assert bool((gain[~single] > 0).any()) or bool(single.all()) or len(gain) < 3


def test_methods_spend_by_gain() -> None:
    sources = [random_network(1, weights) for weights in (0, 1)]
    problem = make_problem(sources, needs=(UNITS, INPUTS))
    for method in (Permutation(separate="gain"), PLeaS(separate="gain")):
        assert method.needs >= {UNITS, INPUTS}
        first, last = merge_case(method, problem, [1.4, 2.0])
        assert 1 < problem.macs(first.student.maps) / problem.unit <= 1.4
        assert all(share == 1 for name, share in separated(last.student.maps).items() if name in first.matches)
    assert Permutation("weights", separate="gain").needs == {UNITS, INPUTS}


def test_alignment_and_gains_agree_on_rows() -> None:
    """Rows of gains are those of the unit maps that the alignment makes."""
    sources = [random_network(2, weights) for weights in (0, 1)]
    problem = make_problem(sources, needs=(UNITS, INPUTS))
    alignment = align_by_activations(problem.spec, problem.statistics, 2, "distance")
    gains = gains_of(problem, dict(alignment.members), True)
    assert {name: len(gain) for name, gain in gains.items()} == {g.name: g.size for g in problem.spec.free}
