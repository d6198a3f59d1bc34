"""Errors before the long run, in one sentence with the value and what is allowed."""

import warnings
from typing import Any, Literal

import pytest
from helpers import (
    DOMAINS,
    budgets_of,
    estimate_case,
    make_problem,
    merge_case,
    message_of,
    pictures,
    prepare_case,
    random_network,
    resnet,
)
from kinds import SIDE, kind
from live import peak_bytes

from project.allocation import Budget, check_budgets
from project.errors import ConfigurationError, MergeError
from project.fit.memory_estimate import drawn_bytes, patch_bytes, picture_bytes, solve_bytes, walk_bytes, widest
from project.methods import MaTS, Permutation, PictureCounts, PLeaS, RegMean
from project.methods.shared import Arithmetic
from project.methods.shared.matching import Matching
from project.moments import LAYERS
from project.moments.patches import CHUNK_BYTES
from project.runtime.memory import MemoryEstimate


def quiet() -> warnings.catch_warnings:
    """Any warning is an error, as everywhere in the tests."""
    return warnings.catch_warnings(action="error")


@pytest.mark.parametrize("budgets", [[1], [1.0, 1.5, 2.0], [2]])
def test_budgets_that_students_can_have(budgets: list[float]) -> None:
    check_budgets(budgets_of(*budgets), 2)


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ([0.9], r"budgets holds 0\.9; with 2 sources it must lie between 1 .* and 2"),
        ([1.0, 2.1], r"budgets holds 2\.1"),
        ([float("nan")], "budgets holds nan"),
        ([], r"budgets is \[\]; at least one"),
        ([1.5, 1.501], "no two the same to two decimals"),
    ],
)
def test_budgets_that_no_student_can_have(budgets: list[float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_budgets(budgets_of(*budgets), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"matching": "hope"}, "matching is 'hope'; allowed: 'activations', 'weights'"),
        ({"similarity": "cosine"}, "similarity is 'cosine'; allowed: 'correlation', 'distance'"),
        ({"separate": "middle"}, "separate is 'middle'; allowed: 'gain', 'front', 'back', 'uniform'"),
        ({"step": 0}, "step is 0; allowed: whole numbers from 1"),
        ({"ridge": -1.0}, "ridge is -1.0; allowed: 0 or more"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"targets": "other"}, "targets is 'other'"),
        ({"restyle_steps": -1}, "restyle_steps is -1; allowed: whole numbers from 0"),
        ({"heads": "none"}, "heads is 'none'"),
        ({"fit": "joint", "rounds": 0}, "rounds is 0; allowed: with fit 'sequential' alone"),
        ({"fit": "joint", "norm": "before"}, "norm is 'before'; allowed: with fit 'sequential' alone"),
        ({"fit": "joint", "compensate": False}, "compensate is False; allowed: with fit 'sequential' alone"),
        ({"fit": "joint", "logits": "squares"}, "logits is 'squares'; allowed: with fit 'sequential' alone"),
        ({"fit": "joint", "restyle_steps": 0}, "restyle_steps is 0; allowed: with fit 'sequential' alone"),
    ],
)
def test_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PLeaS(**arguments)


def test_needs() -> None:
    assert Permutation("weights").needs == frozenset()
    assert Permutation("weights", separate="gain").needs == Permutation().needs == {"units", "inputs"}
    assert Permutation(separate="front").needs == {"units"}
    assert PLeaS("weights", separate="back", fit="joint").needs == {"layers"}
    assert PLeaS("weights", fit="joint").needs == {"layers", "units", "inputs"}
    assert PLeaS().needs == {"units", "inputs", "pictures"}


def test_gains_are_for_students_that_are_larger_than_a_source() -> None:
    spec = make_problem([random_network(0, weights) for weights in range(2)], batches=[]).spec
    for budgets, more in ((["1"], set()), ([1.0, 1.1], {"inputs"}), (["9M params"], {"inputs"})):
        sizes = [Budget.of(budget) for budget in budgets]
        assert PLeaS().needed(spec, sizes) == {"units", "pictures"} | more
        assert PLeaS("weights").needed(spec, sizes) == {"pictures"} | more | ({"units"} if more else set())


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("count", [1, 4, 12, 40])
def test_what_is_refused_without_ridge_is_refused_before_the_pass(mode: str, count: int) -> None:
    """``check`` and the fit agree on whether the pictures suffice for a full merge."""
    sources = [random_network(0, weights) for weights in (0, 1)]
    problem = make_problem(sources, mode, batches=[("art", pictures(count, 0))])
    method = PLeaS(fit="joint", targets="mean", ridge=0.0)
    refusals = []
    for attempt in (
        lambda: list(merge_case(method, problem, [1.0])),
        lambda: prepare_case(method, problem, {"art": count}, [1.0]),
    ):
        try:
            attempt()
            refusals.append(False)
        except (MergeError, ConfigurationError):
            refusals.append(True)
    assert refusals[0] == refusals[1]
    told = pytest.warns(UserWarning, match=rf"and {count} calibration pictures give only") if refusals[0] else quiet()
    with told:
        prepare_case(PLeaS(fit="joint"), problem, {"art": count}, [1.0])


@pytest.mark.parametrize("budget", [1.0, 1.5])
@pytest.mark.parametrize("structure", range(4))
def test_the_number_of_pictures_that_would_be_enough_is_enough(structure: int, budget: float) -> None:
    problem = make_problem([random_network(structure, weights) for weights in (0, 1)])
    method = PLeaS(rounds=0)
    with pytest.warns(UserWarning, match="stays near the permuted average; .* would be enough") as caught:
        prepare_case(method, problem, {"art": 1, "birds": 1}, [budget])
    words = str(caught[0].message).split()
    enough = int(words[words.index("would") - 1])
    share = enough if budget > 1 else -(-enough // 2)
    with quiet():
        prepare_case(method, problem, {"art": share, "birds": share}, [budget])
    with pytest.warns(UserWarning, match=words[1]):
        prepare_case(method, problem, {"art": share - 1, "birds": share - 1}, [budget])


def test_domains_of_weight_0_bring_no_samples() -> None:
    problem = make_problem([random_network(0, weights) for weights in (0, 1)])
    many, few = {"art": 1, "birds": 10**6}, {"art": 10**4, "birds": 1}
    options: dict[str, Any] = {"fit": "joint", "targets": "mean", "weights": {"birds": 0.0}}
    with pytest.raises(ConfigurationError, match="and 1 calibration pictures give only"):
        prepare_case(PLeaS(ridge=0.0, **options), problem, many, [1.0])
    with quiet():
        prepare_case(PLeaS(**options), problem, few, [1.5])
        prepare_case(PLeaS(weights={"birds": 0.0}), problem, few, [1.5])


def test_systems_of_layers_demand_room_block_by_block() -> None:
    """Counted by hand: of a convolution of 27 inputs and 8 outputs, and one of 4 blocks of 18 inputs and 3 outputs."""
    it = make_problem([kind("grouped", seed) for seed in range(2)], shape=(3, SIDE, SIDE), batches=[])
    plain = Arithmetic.prepare(RegMean(), it, PictureCounts({}), budgets_of(1.0), {}).memory
    gram = 4 * 18**2
    assert gram > 27**2
    assert estimate_case(RegMean(), it, {}, [1.0], 1).whole - plain.whole == solve_bytes(18, 1, 4) == 8 * 5 * gram
    both = gram + 4 * 3**2
    assert estimate_case(MaTS("gram"), it, {}, [1.0], 1).least - plain.least == 8 * 4 * both
    assert estimate_case(MaTS("kfac"), it, {}, [1.0], 1).least - plain.least == 8 * 4 * both
    sides = [(27, 8), (8, 8), (12, 8), (8, 5)]
    every = both + sum(inputs**2 + outputs**2 for inputs, outputs in sides)
    assert estimate_case(MaTS("kfac", watch=1), it, {}, [1.0], 1).least - plain.least == 8 * (2 * every + 2 * both)


def test_the_sequential_fit_demands_room_for_all_pictures_or_for_a_batch() -> None:
    problem = make_problem([random_network(0, weights) for weights in (0, 1)])
    spec, many = problem.spec, {"art": 10**6, "birds": 10**6}
    estimate = estimate_case(PLeaS(), problem, many, [1.0], 16)
    solving = solve_bytes(max(layer.taps * spec.sizes[layer.inputs] + 1 for layer in spec.layers), 2)
    solving += patch_bytes(spec, spec.sizes, 16)
    assert patch_bytes(spec, spec.sizes, 10**6) <= CHUNK_BYTES
    kept = picture_bytes(spec, 2 * 10**6)
    assert estimate.whole == walk_bytes(widest(spec, spec.sizes), 2 * 10**6) + solving + kept
    assert estimate.least == walk_bytes(widest(spec, spec.sizes), 16) + solving
    drawn = estimate_case(PLeaS(excess=0.01), problem, many, [1.0], 16)
    assert drawn.least - estimate.least == drawn_bytes(spec, spec.sizes, 16, 4) > 0
    assert drawn.whole - estimate.whole == drawn_bytes(spec, spec.sizes, 2 * 10**6, 4)
    assert estimate_case(Permutation(), problem, many, [2.0], 16) == Matching("activations").memory_estimate(problem)


@pytest.mark.parametrize(
    ("count", "budgets", "image_size", "targets"),
    [
        pytest.param(2, [1.0, 1.5], 8, "own", marks=pytest.mark.slow),
        pytest.param(2, [1.0], 16, "mean", marks=pytest.mark.slow),
        pytest.param(2, [1.0], 32, "mean", marks=pytest.mark.slow),
        pytest.param(3, [1.0], 8, "mean", marks=pytest.mark.slow),
        pytest.param(4, [1.0], 8, "own", marks=pytest.mark.slow),
    ],
)
def test_the_joint_fit_holds_no_more_than_it_demands(
    count: int, budgets: list[float], image_size: int, targets: Literal["own", "mean"]
) -> None:
    """With wide layers, whose moments are most of it; correlated on large maps, written out on small ones."""
    shape = (3, image_size, image_size)
    sources = [resnet("resnet20", weights, width=2) for weights in range(count)]
    batches = [(domain, pictures(8, number, shape)) for number, domain in enumerate(DOMAINS[:count])]
    it = make_problem(sources, shape=shape, batches=batches, needs=[LAYERS])
    method = PLeaS(matching="weights", fit="joint", targets=targets)
    estimate = estimate_case(method, it, dict.fromkeys(it.owners, 8), budgets, 8)
    assert estimate.whole == estimate.least
    weights = sum(tensor.nbytes for tensor in sources[0].state_dict().values())
    found = (
        peak_bytes(lambda: list(merge_case(method, it, budgets))) - 2 * len(budgets) * weights
    )  # the students themselves
    assert estimate.whole / 3 < found < 1.1 * estimate.whole, (estimate.whole, found)


def test_sources_side_by_side_solve_nothing_but_the_head_they_share() -> None:
    sources = [random_network(0, weights) for weights in (0, 1, 2)]
    shared, different = make_problem(sources), make_problem(sources, "different")
    pictures = dict.fromkeys(shared.owners, 10)
    head = shared.spec.head
    solving = solve_bytes(3 * head.taps * shared.spec.sizes[head.inputs] + 1, 3)
    three = {name: 3 * size for name, size in shared.spec.sizes.items()}
    three |= {shared.spec.input.name: 3, shared.spec.output.name: shared.spec.output.size}
    solving += patch_bytes(shared.spec, three, 10)  # no domain has more for a batch
    walk, least = (walk_bytes(widest(shared.spec, three), count) for count in (30, 10))
    walk += picture_bytes(shared.spec, 30)
    assert estimate_case(PLeaS(), shared, pictures, [3.0], 30) == MemoryEstimate(walk + solving, least + solving)
    assert estimate_case(PLeaS(), different, pictures, [3.0], 30) == MemoryEstimate(walk, least)


@pytest.mark.parametrize(
    ("separate", "structure", "count"),
    [
        *(("front", 0, 2), ("back", 0, 2), ("uniform", 0, 2), ("gain", 0, 2), ("back", 1, 3), ("gain", 1, 3)),
        *(pytest.param(separate, 1, 3, marks=pytest.mark.slow) for separate in ("front", "uniform")),
        *(pytest.param(one, 2, 2, marks=pytest.mark.slow) for one in ("front", "back", "uniform", "gain")),
    ],
)
def test_students_are_no_wider_than_was_told_before_units_were_matched(
    separate: Any, structure: int, count: int
) -> None:
    problem = make_problem([random_network(structure, weights) for weights in range(count)])
    method, budgets = Permutation(separate=separate), [1.0, 1.2, 1.6, count - 0.1]
    told = method.shapes(problem, budgets_of(*budgets))
    for shapes, merged in zip(told, merge_case(method, problem, budgets), strict=True):
        for name, units in merged.student.group_maps.items():
            assert units.units <= shapes[name].units, name
            if count == 2 and separate != "gain":
                assert units.units == shapes[name].units, name
    assert told[0].keys() >= {group.name for group in problem.spec.free}
    sizes = [sum(units.units for units in shapes.values()) for shapes in told]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"boats": 1.0}, "'boats'"), ({"art": 0.0, "birds": 0.0}, "0 for every domain")],
)
def test_weights_of_no_use_are_refused(weights: dict[str, float], said: str) -> None:
    it = make_problem([random_network(0, weights) for weights in (0, 1)])
    with pytest.raises(ConfigurationError, match=said):
        prepare_case(PLeaS(weights=weights), it, {"art": 40, "birds": 40}, [1.0])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="weights gives 'art'"):
        PLeaS(weights={"art": weight})


def test_the_plan_names_every_stage() -> None:
    problem = make_problem([random_network(2, weights) for weights in range(2)], batches=[])
    told = message_of(PLeaS(), problem) or ""
    assert told.startswith(f"pleas fits {len(problem.spec.layers)} layers in ")
    assert all(layer.name in told for layer in problem.spec.layers)
    assert message_of(PLeaS(fit="joint"), problem) is None
