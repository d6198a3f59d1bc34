"""Points between sources, by their definition."""

from itertools import combinations

import pytest
import torch
from helpers import (
    DOMAINS,
    close,
    estimate_case,
    make_problem,
    merge_case,
    permuted_family,
    pictures,
    random_network,
    run,
)

from project.allocation import stored_bytes
from project.errors import ConfigurationError
from project.methods import Interpolation, Tuned


@pytest.mark.parametrize("count", [2, 3])
def test_points_are_weighted_means_of_both_ends(count: int) -> None:
    sources = [random_network(0, seed) for seed in range(count)]
    found = list(merge_case(Interpolation(steps=4), make_problem(sources, needs=()), [1.0, 2.0]))
    expected = [(a, b, step / 4) for a, b in combinations(range(count), 2) for step in range(5)]
    assert len({one.name for one in found}) == len(found)
    for merged, (a, b, t) in zip(found, expected, strict=True):
        path = {"method": "interpolation", "from": DOMAINS[a], "to": DOMAINS[b], "t": t}
        assert merged.learned["path"] == path
        assert merged.name == f"interpolation-{a + 1}-{b + 1}-{t:.3g}-1.00"
        mine = dict(merged.student.network.named_parameters())
        for name, start in sources[a].named_parameters():
            end = sources[b].get_parameter(name)
            assert torch.allclose(mine[name], (1 - t) * start + t * end, atol=1e-6)


def test_the_ends_are_the_sources_without_any_picture() -> None:
    """Their batch norms' statistics too."""
    sources, batch = [random_network(0, seed) for seed in range(3)], pictures(6, 3)
    found = list(merge_case(Interpolation(steps=2, align="weights"), make_problem(sources, needs=()), [1.0]))
    for (a, b), (start, _, end) in zip(combinations(range(3), 2), zip(*[iter(found)] * 3, strict=True), strict=True):
        assert close(run(start.student, batch), run(sources[a], batch), 1e-4)
        assert close(run(end.student, batch), run(sources[b], batch), 1e-4)


def test_between_permuted_copies_nothing_changes_once_they_are_aligned() -> None:
    sources, batch = permuted_family(random_network(1, 1), 2), pictures(6, 3)
    found = merge_case(Interpolation(steps=2, align="weights"), make_problem(sources, needs=()), [1.0])
    for merged in found:
        assert close(run(merged.student, batch), run(sources[0], batch), 1e-4)


def test_heads_of_their_own_stay_the_sources() -> None:
    problem = make_problem([random_network(0, seed) for seed in range(2)], "different", needs=())
    start, _, end = merge_case(Interpolation(steps=2), problem, [1.0])
    heads = [one.student.network.state_dict()[f"{problem.spec.head.name}.weight"] for one in (start, end)]
    assert torch.equal(heads[0], heads[1])


def test_points_are_held_until_they_are_scored() -> None:
    problem = make_problem([random_network(0, seed) for seed in range(3)], needs=())
    few, many = (estimate_case(Interpolation(steps), problem, {}, [1.0], 1).least for steps in (1, 3))
    assert many - few == 2 * 3 * stored_bytes(problem.sources[0].state_dict())


def test_a_path_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="method is Interpolation, which makes several students"):
        Tuned(Interpolation(), {"steps": [1, 2]})
    with pytest.raises(ConfigurationError, match="steps is 0; allowed: whole numbers from 1 to 1000"):
        Interpolation(steps=0)
