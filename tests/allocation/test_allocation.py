"""Allocations keep to any budget, and spending by gain is close to the best there is."""

import itertools

import numpy as np
import pytest
import torch
from helpers import PICTURE, Case, make_problem, random_map, random_network, resnet
from kinds import Sum
from torch import nn

from project.alignment import Alignment, UnitMap
from project.allocation import (
    Budget,
    by_gain,
    executed_macs,
    nominal_size,
    separated,
    source_size,
    stagewise,
    uniform,
    unspent,
)
from project.allocation.candidates import Choices

UNITS_OF_SIZE = ("MACs", "parameters", "bytes")


def bare(seed: int, count: int, mode: str = "different") -> Case:
    return make_problem([random_network(seed, s, 3 + 2 * s) for s in range(count)], mode, batches=[])


def partial_alignment(problem: Case, seed: int) -> Alignment:
    """Random matches of all or only some of the sources, for those allocations that separate whole rows."""
    count = len(problem.sources)
    members = {g.name: random_map(g.size, count, seed + i).members for i, g in enumerate(problem.spec.free)}
    generator = torch.Generator().manual_seed(seed)
    mixed = {name: rows[torch.randperm(len(rows), generator=generator)] for name, rows in members.items()}
    scores = {name: torch.randn(len(rows), generator=generator) for name, rows in mixed.items()}
    return Alignment(mixed, scores, {name: torch.zeros(len(rows), count, count) for name, rows in mixed.items()})


def full_alignment(problem: Case, seed: int) -> Alignment:
    """Random matches of all sources, at random distances."""
    count, generator = len(problem.sources), torch.Generator().manual_seed(seed)
    members, distances = {}, {}
    for group in problem.spec.free:
        orders = [torch.randperm(group.size, generator=generator) for _ in range(count)]
        members[group.name] = torch.stack(orders, 1)
        points = torch.randn(group.size, count, 3, generator=generator)
        distances[group.name] = torch.cdist(points, points).square()
    return Alignment(members, {name: torch.zeros(len(rows)) for name, rows in members.items()}, distances)


def random_gains(alignment: Alignment, seed: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(random.random(len(rows)) ** random.choice([0.2, 1, 4]) * random.choice([0.1, 1, 5]))
        for name, rows in alignment.members.items()
    }


def allocations(problem: Case, budget: Budget, seed: int) -> list[tuple[dict[str, UnitMap], dict[str, UnitMap]]]:
    """What every allocation makes of the budget, and of none."""
    whole, part = full_alignment(problem, seed), partial_alignment(problem, seed)
    gains = random_gains(part, seed)
    found = []
    for one in (budget, Budget(0.0, "x", budget.unit)):
        given = (problem.spec, whole, problem.fixed, one)
        rows = by_gain(problem.spec, part, problem.fixed, one, gains)
        found.append([stagewise(*given, front=True), stagewise(*given), uniform(*given), rows])
    return list(zip(*found, strict=True))


@pytest.mark.parametrize(
    ("seed", "count", "unit"),
    [
        *((0, 2, unit) for unit in UNITS_OF_SIZE),
        (1, 3, "MACs"),
        *(pytest.param(1, 3, unit, marks=pytest.mark.slow) for unit in UNITS_OF_SIZE[1:]),
        *(pytest.param(2, 3, unit, marks=pytest.mark.slow) for unit in UNITS_OF_SIZE),
    ],
)
def test_every_allocation_keeps_to_every_budget(seed: int, count: int, unit: str) -> None:
    """Whatever the rows stand for; and the network that is built costs what the unit maps say."""
    problem = bare(seed, count)
    spec = problem.spec
    one = source_size(spec, problem.fixed[spec.output.name], unit)
    shares = (0.0, 0.3, 0.7, 1.0) if unit == "MACs" else (0.3, 1.0)
    for budget in (Budget(1 + (count - 1) * share, "x", unit) for share in shares):
        for maps, merged in allocations(problem, budget, seed):
            size, full = nominal_size(spec, maps, unit), nominal_size(spec, merged, unit)
            assert size == full or size <= budget.number * one * (1 + 1e-9)
            assert full <= size
            network = problem.start(maps).network
            state = network.state_dict()
            counted = {
                "MACs": executed_macs(network, PICTURE),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
            }
            assert size == counted[unit]
            if budget.number == count:
                assert all(separated(maps)[group.name] == 1 for group in spec.free)


@pytest.mark.parametrize("seed", range(3))
def test_uniform_separates_the_same_share(seed: int) -> None:
    problem = bare(seed, 2)
    alignment = full_alignment(problem, seed)
    maps = uniform(problem.spec, alignment, problem.fixed, Budget(1.5))
    sizes = {name: len(rows) for name, rows in alignment.members.items()}
    apart = {name: maps[name].units - size for name, size in sizes.items()}
    assert max((count - 1) / sizes[name] for name, count in apart.items()) <= min(  # but for one more in some
        (count + 1) / sizes[name] for name, count in apart.items()
    )
    for name, count in apart.items():  # the ones that are farthest from each other
        kept = {tuple(row) for row in maps[name].members.tolist()}
        worst = set(alignment.distances[name][:, 0, 1].argsort(descending=True)[:count].tolist())
        rows = alignment.members[name].tolist()
        assert all((tuple(row) in kept) == (number not in worst) for number, row in enumerate(rows))


@pytest.mark.parametrize("way", ["front", "back", "uniform", "gain"])
def test_budgets_are_met(way: str) -> None:
    """Where single units are small against the whole, whatever the steps; 16 units in the widest group do."""
    torch.manual_seed(0)
    problem = make_problem([resnet("resnet8", s, 10).eval() for s in range(2)], "shared", batches=[])
    alignment = full_alignment(problem, 0)
    for number in (1.05, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 1.97):
        given = (problem.spec, alignment, problem.fixed, Budget(number))
        if way == "gain":
            maps = by_gain(*given, random_gains(alignment, 0), step=None)
        else:
            maps = (
                uniform(*given, step=None) if way == "uniform" else stagewise(*given, front=way == "front", step=None)
            )
        assert 0.97 * number <= nominal_size(problem.spec, maps, "MACs") / problem.unit <= number * (1 + 1e-9)


@pytest.mark.parametrize("step", [2, 3])
def test_rows_are_separated_in_steps(step: int) -> None:
    """Or all of them, where a group has no whole number of steps."""
    problem = bare(1, 2)
    alignment = partial_alignment(problem, 3)
    given = (problem.spec, alignment, problem.fixed, Budget(1.5))
    gains = random_gains(alignment, 0)
    counted = {
        "back": stagewise(*given, step=step),
        "uniform": uniform(*given, step=step),
        "gain": by_gain(*given, gains, step=step),
    }
    for maps in counted.values():
        for name, rows in alignment.members.items():
            full = int(((rows >= 0).sum(1) == 2).sum())
            split = full - int((maps[name].present.sum(1) == 2).sum())
            assert split % step == 0 or split == full
        assert nominal_size(problem.spec, maps, "MACs") <= 1.5 * problem.unit


def small_network(seed: int, weights: int) -> nn.Module:
    """Three or four groups of few units, in every third network one of them a residual stream."""
    random = np.random.default_rng(seed)
    a, b, c = (int(width) for width in random.integers(2, 5, 3))
    torch.manual_seed(weights)
    layers = [nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, int(random.choice([1, 3]))), nn.ReLU()]
    if seed % 3 == 0:
        layers[2:] = [Sum(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, a, 1)), nn.ReLU()]
        b = a
    layers += [nn.Conv2d(b, c, int(random.choice([1, 3])), stride=int(random.integers(1, 3))), nn.AdaptiveAvgPool2d(1)]
    layers += (
        [nn.Flatten(), nn.Linear(c, 4)] if random.random() < 0.5 else [nn.Flatten(), nn.Linear(c, 3), nn.Linear(3, 4)]
    )
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("seed", [0, 2, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, *range(3, 12)))])
def test_gain_is_close_to_the_best_of_all_widths(seed: int) -> None:
    """Within 2 % of exhaustive search, over many budgets, units of size and gains."""
    random = np.random.default_rng(seed)
    count = 2 + seed % 2
    problem = make_problem([small_network(seed, weights) for weights in range(count)], batches=[])
    generator = torch.Generator().manual_seed(seed)
    members = {
        g.name: torch.stack([torch.randperm(g.size, generator=generator) for _ in range(count)], 1)
        for g in problem.spec.free
    }
    nothing = {name: torch.zeros(len(rows)) for name, rows in members.items()}
    alignment = Alignment(members, nothing, {n: torch.zeros(len(rows), count, count) for n, rows in members.items()})
    for trial in range(4):
        gains = random_gains(alignment, 10 * seed + trial)
        unit = UNITS_OF_SIZE[trial % 3]
        budget = Budget(1 + (count - 1) * random.random(), "x", unit)
        limit = budget.number * source_size(problem.spec, problem.fixed[problem.spec.output.name], unit)
        ranked = {name: gain.argsort(descending=True) for name, gain in gains.items()}
        best = 0.0
        for widths in itertools.product(*(range(len(rows) + 1) for rows in members.values())):
            chosen = dict(zip(members, widths, strict=True))
            maps = {n: UnitMap.sorted(rows).split(ranked[n][: chosen[n]]) for n, rows in members.items()}
            if nominal_size(problem.spec, {**problem.fixed, **maps}, unit) <= limit:
                best = max(best, sum(float(gains[n][ranked[n][: chosen[n]]].sum()) for n in members))
        maps = by_gain(problem.spec, alignment, problem.fixed, budget, gains)
        assert nominal_size(problem.spec, maps, unit) <= limit * (1 + 1e-9)
        merged = {n: {tuple(row) for row in maps[n].members.tolist()} for n in members}
        reached = sum(
            float(gain)
            for n, rows in members.items()
            for row, gain in zip(rows.tolist(), gains[n], strict=True)
            if tuple(row) not in merged[n]
        )
        assert reached >= 0.98 * best


@pytest.mark.parametrize("unit", UNITS_OF_SIZE)
def test_the_quadratic_form_is_the_size(unit: str) -> None:
    for seed in range(4):
        problem = bare(seed, 3)
        alignment = partial_alignment(problem, seed)
        choices = Choices(problem.spec, alignment, problem.fixed, Budget(2.0, "x", unit))
        random = np.random.default_rng(seed)
        ranked = choices.ranked(random_gains(alignment, seed))
        for _ in range(5):
            counts = random.integers(0, choices.counts + 1)
            assert choices.size(counts) == nominal_size(problem.spec, choices.maps(counts, ranked), unit)


def test_a_budget_that_is_not_met_is_told() -> None:
    """Two units of all that there are: the next one is half of the network."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)]
    problem = make_problem([nn.Sequential(*layers).eval()] * 2, "shared", batches=[])
    given = (problem.spec, full_alignment(problem, 0), problem.fixed, Budget(1.4))
    maps = uniform(*given, step=None)
    assert nominal_size(problem.spec, maps, "MACs") == problem.unit
    assert unspent(problem.spec, problem.fixed, maps, Budget(1.4)) == (
        "a student of 1.4 has 71.4% of that size: what else could stay apart does not fit"
    )
    assert unspent(problem.spec, problem.fixed, maps, Budget(1.0)) is None
