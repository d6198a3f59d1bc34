"""Students on disk: rebuilt bit for bit, refused when damaged, sources of further merges."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DOMAINS, PICTURE, Case, close, make_problem, merge_case, pictures, resnet, same_state

from project.allocation import nominal_size
from project.errors import CheckpointError, ConfigurationError, MergeError
from project.methods import Merged, Permutation, PLeaS
from project.models import Architecture, Description, LabelSpace, Preprocessing
from project.moments import Statistics
from project.runtime.saving import atomic_save
from project.student import Student, common_spec, load_source, load_student, save_student

ARCHITECTURE = Architecture("resnet20", 4)
PREPROCESSING = Preprocessing(32)
LINEAGE = {"sources": ["abc", "def"], "budget": 1.4, "nested": {"seed": 3}}


@cache
def problem(mode: str = "different") -> Case:
    classes = (4, 3) if mode == "different" else (4, 4)
    sources = [resnet("resnet20", weights, count) for weights, count in enumerate(classes)]
    batches = [(DOMAINS[0], pictures(8, 0)), (DOMAINS[1], pictures(8, 1))]
    return make_problem(
        sources,
        mode,
        architecture=ARCHITECTURE,
        preprocessing=PREPROCESSING,
        needs=["units", "inputs"],
        batches=batches,
    )


@cache
def student(budget: float = 1.4, mode: str = "different") -> Student:
    """The same for every test, which is to leave it as it is."""
    (merged,) = merge_case(Permutation(), problem(mode), [budget])
    merged.student.lineage.update(LINEAGE)
    return merged.student


def test_the_file_is_as_large_as_its_parameters_and_buffers(tmp_path: Path) -> None:
    """But for unit maps, names and the archive's own entries, which hold no float."""
    made = student()
    save_student(made, tmp_path / "student.ckpt")
    size = nominal_size(made.spec, made.maps, "bytes")
    assert size == sum(tensor.numel() * tensor.element_size() for tensor in made.network.state_dict().values())
    maps = sum(8 * units.members.numel() for units in made.maps.values())
    entries = len(made.network.state_dict()) + len(made.maps) + 10
    assert size + maps <= (tmp_path / "student.ckpt").stat().st_size <= size + maps + 1000 * entries


@pytest.mark.parametrize(
    ("mode", "budget"),
    [
        *(("different", 1.0), ("different", 1.4), ("different", 2.0), ("shared", 1.4)),
        *(pytest.param("shared", budget, marks=pytest.mark.slow) for budget in (1.0, 2.0)),
    ],
)
def test_round_trip(tmp_path: Path, budget: float, mode: str) -> None:
    before = student(budget, mode)
    save_student(before, tmp_path / "student.ckpt")
    after = load_student(tmp_path / "student.ckpt")
    batch = pictures(5, 9)
    with torch.no_grad():
        assert torch.equal(before(batch), after(batch))
    assert same_state(before.state_dict(), after.state_dict())
    assert {name: units.members.tolist() for name, units in before.maps.items()} == {
        name: units.members.tolist() for name, units in after.maps.items()
    }
    assert after.labels == before.labels
    assert after.lineage == LINEAGE
    assert (after.architecture, after.preprocessing) == (ARCHITECTURE, PREPROCESSING)
    assert after.spec.layers == before.spec.layers or mode == "different"
    assert [file.name for file in tmp_path.iterdir()] == ["student.ckpt"]
    torch.load(tmp_path / "student.ckpt", weights_only=True)  # plain values and tensors alone


def test_the_gate_goes_along(tmp_path: Path, content: dict[str, Any]) -> None:
    path, before, batch = tmp_path / "student.ckpt", copy.deepcopy(student()), pictures(5, 9)
    before.fit_gate([before.outputs(pictures(6, seed))[1].detach() for seed in (0, 1)])
    save_student(before, path)
    after = load_student(path)
    assert torch.equal(before.probabilities(batch), after.probabilities(batch))
    assert not torch.equal(after.probabilities(batch), after.probabilities(batch, joint="logits"))
    assert [name for name, module in after.named_modules() if module.training] == []
    assert load_source(path).logits == 7
    torch.save({**content, "gate": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="a gate that does not fit its 2 heads"):
        load_student(path)


def test_arguments_that_are_not_the_students_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.ckpt"
    save_student(student(), path)
    for load in (load_student, lambda path, **given: load_source(path, None, **given)):
        load(path, arguments={})
        with pytest.raises(ConfigurationError, match=r"arguments is \{'groups': 2\}, but .*student\.ckpt is a student"):
            load(path, arguments={"groups": 2})


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save_student(student(), tmp_path / "student.ckpt")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_student(tmp_path / "student.ckpt")
    assert torch.equal(torch.rand(1), expected)


def test_students_are_in_eval_mode(tmp_path: Path) -> None:
    made = student()
    save_student(made, tmp_path / "student.ckpt")
    for found in (made, load_student(tmp_path / "student.ckpt")):
        assert [name for name, module in found.named_modules() if module.training] == []


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, content: dict[str, Any], kept: float) -> None:
    path = tmp_path / "student.ckpt"
    torch.save(content, path)
    entire = path.read_bytes()
    path.write_bytes(entire[: int(len(entire) * kept)])
    for load in (load_student, load_source):
        with pytest.raises(CheckpointError, match=r"student\.ckpt"):
            load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.pt", tmp_path / "text.pt"
    torch.save(resnet("resnet20").state_dict(), plain)
    text.write_text("no weights here")
    for path in (plain, text, tmp_path / "missing.pt", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            load_student(path)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a student file holds."""
    path = tmp_path_factory.mktemp("student") / "student.ckpt"
    save_student(student(), path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("entry", ["version", "unit_maps", "picture", "lineage", "pleas", "state_dict"])
def test_students_with_an_entry_missing_are_refused(tmp_path: Path, content: dict[str, Any], entry: str) -> None:
    path = tmp_path / "student.ckpt"
    torch.save({name: value for name, value in content.items() if name != entry}, path)
    with pytest.raises(CheckpointError, match=r"student\.ckpt"):
        load_student(path)


def test_students_that_contradict_themselves_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "student.ckpt"
    for change in (
        {"version": 99},
        {"unit_maps": {**content["unit_maps"], "conv1": content["unit_maps"]["conv1"][:-1]}},
        {"unit_maps": {name: members for name, members in content["unit_maps"].items() if name != "conv1"}},
        {"state_dict": {**content["state_dict"], "bn1.weight": torch.zeros(3)}},
    ):
        torch.save({**content, **change}, path)
        with pytest.raises(CheckpointError, match=r"student\.ckpt"):
            load_student(path)


def told(part: str, **changes: Any) -> dict[str, Any]:
    """A change of what a file says of its architecture, its classes or its pictures."""
    return {"pleas": {part: changes}}


def arrangement(**arguments: Any) -> dict[str, Any]:
    return told("architecture", name="mobilenet_v2", arguments=arguments)


IMPOSSIBLE: dict[str, Any] = {
    "a billion classes": told("architecture", num_classes=10**9),
    "a billion classes, built in memory": told("architecture", name="regnet_y_400mf", num_classes=10**9),
    "a million times as wide": told("architecture", width=10**6),
    "a billion layers": arrangement(inverted_residual_setting=[[1, 16, 10**9, 1]]),
    "a layer of a trillion": arrangement(width_mult=1e10),
    "pictures of a million": told("architecture", name="vit_b_16", arguments={"image_size": 10**6}),
    "more than there are numbers": told("architecture", name="vit_b_16", arguments={"image_size": 10**12}),
    "arguments nobody takes": told("architecture", name="vgg11", arguments={"nobody": 1}),
    "no arguments": told("architecture", arguments=3),
    "no classes": told("architecture", num_classes=0),
    "half a class": told("architecture", num_classes=2.5),
    "classes in words": told("architecture", num_classes="3"),
    "classes that are true": told("architecture", num_classes=True),
    "a name that is none": told("architecture", name=5),
    "a name among names": told("architecture", name=["resnet20"]),
    "a stem of numbers": told("architecture", stem=[3]),
    "names that are numbers": told("classes", art=[1, 2, 3], birds=[1, 2, 3]),
    "names in one word": told("classes", art="cat", birds="cat"),
    "names of one class more": told("classes", art=["a", "b", "c", "d"], birds=["a", "b", "c", "d"]),
    "names of none": told("classes", art=[], birds=[]),
    "a mode that is none": {"pleas": {"label_mode": {}}},
    "large pictures": told("preprocessing", image_size=10**9),
    "pictures in words": told("preprocessing", image_size="16"),
    "pictures of nan": told("preprocessing", image_size=torch.nan),
    "means in words": told("preprocessing", mean=["a", "b", "c"]),
    "a mean that is none": told("preprocessing", mean=3),
    "nothing": {"pleas": None},
    "a list": {"pleas": [1]},
    "maps of a million": {"unit_maps": {"conv1": torch.arange(10**6)[:, None].expand(-1, 2)}},
    "maps of halves": {"unit_maps": {"conv1": torch.full((16, 2), 0.5)}},
    "maps of words": {"unit_maps": {"conv1": "units"}},
    "no maps": {"unit_maps": 7},
    "a picture of a billion": {"picture": [3, 10**9, 10**9]},
    "a picture of two": {"picture": [3, 16]},
    "a picture in words": {"picture": "3x16x16"},
    "a picture of halves": {"picture": [3.0, 16.0, 16.0]},
    "a lineage of numbers": {"lineage": 3},
    "zipped, but not": {"zipped": True, "masked": {"names": "x"}},
}


@pytest.mark.parametrize("kind", list(IMPOSSIBLE))
def test_descriptions_that_cannot_be_are_refused_before_memory_is_taken(
    tmp_path: Path, content: dict[str, Any], kind: str
) -> None:
    def changed(old: Any, new: Any) -> Any:
        whole = isinstance(old, dict) and isinstance(new, dict)
        return {**old, **{key: changed(old.get(key), one) for key, one in new.items()}} if whole else new

    path = tmp_path / "student.ckpt"
    torch.save(changed(content, IMPOSSIBLE[kind]), path)
    with pytest.raises(CheckpointError, match=r"student\.ckpt"):
        load_student(path)


def test_a_student_merges_again(tmp_path: Path) -> None:
    """Merged with itself, a student of a partial budget is itself, saved, loaded and all."""
    first = student(1.4)
    save_student(first, tmp_path / "first.ckpt")
    sources = [load_source(tmp_path / "first.ckpt"), load_source(tmp_path / "first.ckpt", "other")]
    assert [source.name for source in sources] == ["first", "other"]
    assert sources[0].logits == 7
    spec = common_spec(sources, PICTURE)
    batch = pictures(4, 9)
    with torch.no_grad():
        expected = first(batch)
        assert close(sources[0].network(batch), expected)
    labels = {domain: tuple(f"{domain}{i}" for i in range(7)) for domain in ("once", "twice")}
    again = Case(tuple(s.network for s in sources), {"once": 0, "twice": 1}, spec, LabelSpace(labels, "different"),
                    sources[0].architecture, PREPROCESSING)  # fmt: skip
    for merged in merge_case(Permutation("weights"), again, [1.0, 1.5, 2.0]):
        save_student(merged.student, tmp_path / "again.ckpt")
        with torch.no_grad():
            assert close(load_student(tmp_path / "again.ckpt")(batch), expected.repeat(1, 2), 1e-4)


def test_plain_files_are_sources(tmp_path: Path) -> None:
    network = resnet("resnet20", 0, 4)
    description = Description(ARCHITECTURE, LabelSpace({"art": tuple("abcd")}, "shared"), PREPROCESSING)
    atomic_save({"state_dict": network.state_dict(), **description.to_entries()}, tmp_path / "art.ckpt")
    source = load_source(tmp_path / "art.ckpt")
    assert (source.name, source.architecture, source.logits) == ("art", ARCHITECTURE, 4)
    assert same_state(source.network.state_dict(), network.state_dict())
    assert not source.network.training


def test_unequal_architectures_are_refused(tmp_path: Path) -> None:
    paths = []
    for name, network in (
        ("narrow", resnet("resnet20", 0, 4)), ("heads", resnet("resnet20", 0, 9)),
        ("wide", resnet("resnet20", 0, 4, width=2)), ("deep", resnet("resnet32", 0, 4)),
    ):  # fmt: skip
        paths.append(tmp_path / f"{name}.pt")
        torch.save(network.state_dict(), paths[-1])
    narrow, heads, wide, deep = map(load_source, paths)
    assert common_spec([narrow, heads], PICTURE).output.size == 4
    for other in (wide, deep):
        with pytest.raises(ConfigurationError) as caught:
            common_spec([narrow, other], PICTURE)
        assert str(narrow.path) in str(caught.value)
        assert str(other.path) in str(caught.value)


def test_merging_without_statistics_says_so() -> None:
    bare = replace(problem("shared"), statistics=Statistics(), pictures={})
    with pytest.raises(MergeError, match="pictures"):
        list(merge_case(PLeaS("weights"), bare, [1.0]))
    for method in (Permutation(), PLeaS("weights", fit="joint")):
        with pytest.raises(MergeError, match="statistics"):
            list[Merged](merge_case(method, bare, [1.0]))
