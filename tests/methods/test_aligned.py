"""How methods are told to match units: by name or with settings, for each of them alike."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import (
    DOMAINS,
    PICTURE,
    Case,
    check_case,
    close,
    estimate_case,
    make_problem,
    merge_case,
    permuted_family,
    pictures,
    random_network,
    same_state,
    space_of,
)
from kinds import SIDE, kind
from torch import nn

from project.alignment import align_by_activations, align_by_both
from project.errors import ConfigurationError, MergeError
from project.methods import EMR, TIES, Average, MaTS, Method, Permutation, PLeaS, RegMean, TaskArithmetic
from project.methods.shared.aligned import Space
from project.methods.shared.matching import Matching
from project.moments import INPUTS, LAYERS, UNITS, Statistics

SHAPE = (3, SIDE, SIDE)
METHODS: dict[str, Callable[[], Method]] = {
    "permutation": lambda: Permutation("both"),
    "pleas": lambda: PLeaS("both", alpha=0.7, fit="joint"),
    "average": lambda: Average(align="both"),
    "task arithmetic": lambda: TaskArithmetic(1 / 3, align=Matching(alpha=0.2)),
    "ties": lambda: TIES(align="both"),
    "emr": lambda: EMR(align="both"),
    "regmean": lambda: RegMean(align="both"),
    "mats": lambda: MaTS("gram", align=Matching(alpha=0.9)),
}


def family(network: nn.Module, count: int, shape: tuple[int, int, int]) -> Case:
    batches = [(domain, pictures(20, i, shape)) for i, domain in enumerate(DOMAINS[:count])]
    sources, needs = permuted_family(network, count, shape), (UNITS, INPUTS, LAYERS)
    return make_problem(sources, shape=shape, needs=needs, batches=batches, base="mean")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_permuted_copies_merge_to_themselves(name: str, count: int) -> None:
    it, method, batch = family(random_network(1, 1), count, PICTURE), METHODS[name](), pictures(4, 7)
    assert UNITS in method.needs
    check_case(method, it, dict.fromkeys(DOMAINS[:count], 10**6), [1.0])
    (merged,) = merge_case(method, it, [1.0])
    assert merged.matches
    with torch.no_grad():
        assert close(merged.student.answer(batch, DOMAINS[1]), it.sources[0](batch), 1e-3)


@pytest.mark.parametrize("name", ["attention", "transformer", "grouped"])
def test_permuted_copies_of_structured_networks(name: str) -> None:
    it, batch = family(kind(name, 0), 2, SHAPE), pictures(4, 7, SHAPE)
    for method in (Average(align="both"), TIES(align="both"), RegMean(align="both")):
        (merged,) = merge_case(method, it, [1.0])
        with torch.no_grad():
            assert close(merged.student(batch), it.sources[0](batch), 1e-3)


@pytest.fixture(scope="module")
def strangers() -> Case:
    return make_problem([random_network(2, weights) for weights in range(2)], needs=(UNITS,), base="mean")


def test_methods_share_one_alignment(strangers: Case) -> None:
    for align, method in (("both", Permutation("both")), (Matching(alpha=0.1), Permutation("both", alpha=0.1))):
        (mine,), (theirs,) = merge_case(Average(align=align), strangers, [1.0]), merge_case(method, strangers, [1.0])
        assert same_state(mine.student.state_dict(), theirs.student.state_dict())


def test_matches_are_told_where_something_was_matched(strangers: Case) -> None:
    assert space_of(strangers, "none").matches == {}
    for align in ("both", Matching("weights")):
        space = space_of(strangers, align)  # type: ignore[arg-type]
        assert space.matches == {name: float(one.mean()) for name, one in space.alignment.scores.items()}
        assert set(space.matches) == {group.name for group in strangers.spec.free}
    for method, told in ((TIES(), False), (TIES(align="both"), True), (EMR(), False), (EMR(align="weights"), True)):
        (merged,) = merge_case(method, strangers, [1.0])
        assert bool(merged.matches) == told


def test_settings_reach_the_alignment(strangers: Case) -> None:
    spec, statistics = strangers.spec, strangers.statistics
    states = [source.state_dict() for source in strangers.sources]
    for align, expected in (
        (Matching(alpha=0.25), align_by_both(spec, states, statistics, 0.25)),
        (Matching("activations", "correlation"), align_by_activations(spec, statistics, 2, "correlation")),
        ("activations", align_by_activations(spec, statistics, 2, "distance")),
    ):
        found = space_of(strangers, align).alignment
        assert same_state(found.members, expected.members)
        assert same_state(found.distances, expected.distances)


def test_heads_of_different_classes_do_not_count() -> None:
    sources = [random_network(2, 0, 3), random_network(2, 1, 4)]
    it = make_problem(sources, "different", needs=(UNITS,))
    (merged,) = merge_case(Average(align="both"), it, [1.0])
    assert merged.student(pictures(2, 0)).shape == (2, 7)


def test_what_is_told_of_the_settings() -> None:
    assert Average(align=Matching(alpha=0.3)).options["align"] == {
        "by": "both", "similarity": "distance", "alpha": 0.3, "seed": 0,
    }  # fmt: skip
    assert Average(align="both").options["align"] == "both"
    assert Permutation("both", alpha=0.3).options["alpha"] == 0.3


def test_what_matching_takes_is_counted() -> None:
    wide = [nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 70, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(70, 5)).eval() for _ in range(4)]  # fmt: skip
    it = make_problem(wide, batches=[], base="mean")
    first, second = (8 * (4 * units) ** 2 for units in (40, 70))
    for by, needed in (("activations", 2 * second), ("weights", 2 * second), ("both", first + 3 * second)):
        for method in (Permutation(by), Average(align=by), TIES(align=by), PLeaS(by, fit="joint")):  # type: ignore[arg-type]
            found = estimate_case(method, it, dict.fromkeys(DOMAINS, 10), [1.0], 5)
            assert found.whole >= needed
            assert found.whole == needed or not isinstance(method, Permutation | Average) or isinstance(method, PLeaS)
    assert Matching(alpha=1.0).memory_estimate(it) == Matching("weights").memory_estimate(it)
    for method in (TIES(), Average()):
        assert estimate_case(method, it, {}, [1.0], 5).whole < 2 * second
    grouped = make_problem([kind("grouped", seed) for seed in range(2)], shape=SHAPE, batches=[])
    tied = max(sum((2 * one.size) ** 2 for one in grouped.spec.tied(group)) for group in grouped.spec.free)
    assert Matching("weights").memory_estimate(grouped).whole == 16 * tied


def test_starts_must_stand_in_the_same_order(strangers: Case) -> None:
    for other, align, same in (
        (TIES(align="both"), "both", True),
        (TIES(align="both"), Matching(alpha=0.5), True),
        (TIES(align=Matching(alpha=0.4)), "both", False),
        (TIES(align="both"), "none", False),
        (TIES(), "none", True),
        (PLeaS("both", alpha=0.4), Matching(alpha=0.4), True),
        (PLeaS("both", seed=1), "both", False),
        (PLeaS("weights", alpha=0.4), "weights", True),
        (Permutation(similarity="correlation"), Matching("activations", "correlation"), True),
        (Permutation(), "none", False),
    ):
        assert Space.shared(other, align) == same  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="whose units are matched in another way"):
        check_case(MaTS(start="ties", align="both"), replace(strangers, planned={"ties": TIES()}), {}, [1.0])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Permutation("both", alpha=1.5), "alpha is 1.5; allowed: 0 to 1"),
        (lambda: TIES(align=Matching(alpha=float("nan"))), "alpha is nan; allowed: 0 to 1"),
        (lambda: Matching("hope"), "by is 'hope'; allowed: 'activations', 'weights', 'both'"),
        (lambda: Permutation("hope"), "matching is 'hope'; allowed: 'activations', 'weights', 'both'"),
        (lambda: PLeaS("both", separate="hope"), "separate is 'hope'; allowed: 'gain', 'front', 'back', 'uniform'"),
        (lambda: TIES(align="hope"), "align is 'hope'; allowed: 'none', 'activations', 'weights', 'both', or"),
    ],
)
def test_arguments(made: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        made()


def test_what_cannot_work_is_refused_beforehand(strangers: Case) -> None:
    hidden = make_problem([kind("shuffled", seed) for seed in range(2)], shape=SHAPE, batches=[], base="mean")
    for argument, method in (("matching", Permutation("both")), ("align", TIES(align="both"))):
        with pytest.raises(ConfigurationError, match=argument + r" is 'both', but no value .* alone; use 'weights'"):
            check_case(method, hidden, {}, [1.0])
    with pytest.raises(ConfigurationError, match=r"align of method ties is 'both', .* use align 'none'"):
        check_case(TIES(align="both"), replace(strangers, base=nn.Identity()), {}, [1.0])
    with pytest.raises(MergeError, match="matching by both needs statistics"):
        list(merge_case(Average(align="both"), replace(strangers, statistics=Statistics()), [1.0]))
