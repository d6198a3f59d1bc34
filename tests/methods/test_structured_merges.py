"""Networks of every kind of layer: what must hold of every student holds of theirs."""

from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import Case, close, make_problem, merge_case, permuted_family, pictures, prepare_case, same_state
from kinds import KINDS, SIDE, kind
from torch import nn

from project.allocation import executed_macs, growing, nominal_macs, nominal_size
from project.errors import ConfigurationError
from project.methods import Average, Method, Permutation, PLeaS
from project.models import Architecture, LabelSpace, Preprocessing
from project.student import Student, load_source, load_student, save_student
from project.symmetry import permute_state

SHAPE = (3, SIDE, SIDE)
METHODS = {
    "permutation by weights": lambda: Permutation("weights"),
    "permutation by activations": lambda: Permutation(similarity="correlation"),
    "pleas by weights": lambda: PLeaS("weights"),
    "pleas joint by weights, mean": lambda: PLeaS("weights", fit="joint", targets="mean"),
}
NAMES = [name for name in KINDS if name != "depthwise"]


@cache
def strangers(name: str) -> tuple[Case, Student]:
    """Two networks of a kind, and what permuting makes of them, for tests that leave both as they are."""
    problem = make_problem(
        [kind(name, seed) for seed in range(2)], shape=SHAPE, needs=(), architecture=Architecture("resnet18", 5),
        preprocessing=Preprocessing(image_size=SIDE),
    )  # fmt: skip
    (merged,) = merge_case(Permutation("weights"), problem, [1.0])
    return problem, merged.student


def family(name: str, count: int) -> list[nn.Module]:
    return permuted_family(kind(name, 0), count, SHAPE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "count"),
    [
        *((method, 2) for method in METHODS if method != "permutation by weights"),  # where "pleas by weights" starts
        pytest.param("permutation by weights", 2, marks=pytest.mark.slow),
        *(pytest.param(method, 3, marks=pytest.mark.slow) for method in METHODS),
    ],
)
def test_permuted_copies_merge_to_themselves(name: str, method: str, count: int) -> None:
    if name == "shuffled" and "activations" in method:
        pytest.skip("refused, see test_matching_by_activations_is_refused_beforehand")
    sources = family(name, count)
    made: Method = METHODS[method]()
    (merged,) = merge_case(made, make_problem(sources, shape=SHAPE), [1.0])
    batch = pictures(4, 7, SHAPE)
    with torch.no_grad():
        assert close(merged.student(batch), sources[0](batch), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_mean_of_the_permuted_sources(name: str) -> None:
    sources = [kind(name, seed) for seed in range(3)]
    problem = make_problem(sources, shape=SHAPE, batches=[])
    method = Permutation("weights")
    members = method.align(problem, problem.evidence, problem.run).members
    (merged,) = merge_case(method, problem, [1.0])
    states = [
        permute_state(source.state_dict(), problem.spec, {group: rows[:, s] for group, rows in members.items()})
        for s, source in enumerate(sources)
    ]
    found = merged.student.network.state_dict()
    for key, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([state[key].double() for state in states]).mean(0)
            assert torch.allclose(value.double(), mean, atol=1e-5), key


@pytest.mark.parametrize("name", NAMES)
def test_an_average_keeps_the_numbers(name: str) -> None:
    sources = [kind(name, seed) for seed in range(2)]
    (merged,) = merge_case(Average(), make_problem(sources, shape=SHAPE, batches=[]), [1.0])
    states = [source.state_dict() for source in sources]
    for key, value in merged.student.network.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, torch.stack([state[key] for state in states]).mean(0), atol=1e-6), key


@pytest.mark.parametrize("name", NAMES)
def test_nominal_is_counted(name: str) -> None:
    problem, student = strangers(name)
    assert executed_macs(student.network, SHAPE) == nominal_macs(problem.spec, student.group_maps)
    count = sum(parameter.numel() for parameter in student.network.parameters())
    assert nominal_size(problem.spec, student.group_maps, "parameters") == count


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_comes_nearer_to_the_sources(name: str) -> None:
    """On pictures that it was fitted to, towards the mean of the sources' logits."""
    problem, start = strangers(name)
    (merged,) = merge_case(PLeaS("weights", targets="mean", logits="squares"), problem, [1.0])
    batch = torch.cat([b for batches in problem.pictures.values() for b in batches])
    with torch.no_grad():
        wanted = torch.stack([source(batch) for source in problem.sources]).mean(0)
        before, after = (float((one(batch) - wanted).square().mean()) for one in (start, merged.student))
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_students_are_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Architecture, "build", lambda self: KINDS[name]())
    _, student = strangers(name)
    save_student(student, tmp_path / "student.ckpt")
    batch = pictures(4, 7, SHAPE)
    again = load_student(tmp_path / "student.ckpt")
    assert same_state(again.network.state_dict(), student.network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch), student(batch))
        assert close(load_source(tmp_path / "student.ckpt").network(batch), student(batch))
    assert isinstance(again.labels, LabelSpace)


@pytest.mark.parametrize(("name", "budget"), [("transformer", 1.1), ("convnext", 1.2)])
def test_plain_groups_grow_and_the_others_stay(name: str, budget: float) -> None:
    sources = [kind(name, seed) for seed in range(2)]
    problem = make_problem(sources, shape=SHAPE)
    (merged,) = merge_case(PLeaS("weights"), problem, [budget])
    maps = merged.student.group_maps
    size = executed_macs(merged.student.network, SHAPE)
    assert size == nominal_macs(problem.spec, maps) <= budget * problem.unit
    grown = {group.name for group in growing(problem.spec)}
    assert {group.name for group in problem.spec.free if maps[group.name].units > group.size} <= grown
    assert size > problem.unit


@pytest.mark.parametrize("name", ["grouped", "convnext", "transformer", "shuffled", "group norm"])
def test_sources_apart_are_refused_beforehand(name: str) -> None:
    problem = make_problem([kind(name, seed) for seed in range(2)], shape=SHAPE, batches=[])
    for attempt in (
        lambda: prepare_case(Permutation("weights"), problem, {}, [1.0, 2.0]),
        lambda: list(merge_case(Permutation("weights"), problem, [2.0])),
    ):
        with pytest.raises(
            ConfigurationError, match=r"budgets holds 2, but students .* at most, since group '.*merged"
        ):
            attempt()
    prepare_case(Permutation("weights"), problem, {}, [1.0])


def test_matching_by_activations_is_refused_beforehand() -> None:
    problem = make_problem([kind("shuffled", seed) for seed in range(2)], shape=SHAPE, batches=[])
    with pytest.raises(ConfigurationError, match=r"matching is 'activations', but no value .* alone; use 'weights'"):
        prepare_case(Permutation(), problem, {}, [1.0])


def test_separating_by_gain_is_refused_beforehand() -> None:
    problem = make_problem([kind("grouped", seed) for seed in range(2)], shape=SHAPE, batches=[])
    with pytest.raises(ConfigurationError, match=r"separate is 'gain', which .* 4 blocks"):
        prepare_case(Permutation(separate="gain"), problem, {}, [1.0])
