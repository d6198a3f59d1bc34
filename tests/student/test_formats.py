"""The two formats of a student's file: every kind of student comes back bit for bit, and files of old still load."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DOMAINS, make_problem, merge_case, pictures, resnet, run, same_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from project.errors import CheckpointError
from project.methods import EMR, SMILE, Merged, Method, Permutation, WEMoE, ZipIt
from project.models import Architecture, Preprocessing, read_weights
from project.models.description import DESCRIPTION, ENTRY
from project.models.reading import files
from project.models.reading.files import bare_names
from project.models.reading.packing import REFERENCE, unpacked, write_packed
from project.student import (
    Student,
    load_source,
    load_student,
    original_owners,
    original_sources,
    save_student,
    student_entries,
)

SHAPE = (3, 16, 16)
KINDS: dict[str, Callable[[], Method]] = {
    "plain": lambda: Permutation("weights"),
    "masked": EMR,
    "smile": lambda: SMILE(rank=2),
    "wemoe": lambda: WEMoE(steps=1, batch=2),
    "zipped": ZipIt,
}


@cache
def merged(kind: str, mode: str, budget: float) -> Student:
    """The same for every test, which is to leave it as it is."""
    count = 2
    sources = [resnet("resnet20", i + 1) for i in range(count)]
    it = make_problem(
        sources, mode, base=resnet("resnet20", 0), shape=SHAPE, architecture=Architecture("resnet20", 5),
        needs=("units", "inputs"), batches=[(DOMAINS[i], pictures(8, i, SHAPE)) for i in range(count)],
        preprocessing=Preprocessing(16),
    )  # fmt: skip
    found: Merged
    (found,) = merge_case(KINDS[kind](), it, [budget])
    student = found.student
    student.lineage = {"budget": budget, "learned": {"none": None, "deep": [{"a": [1, 2.5]}]}, "odd": float("inf")}
    if mode == "different":
        student.fit_gate([student.outputs(pictures(12, i, SHAPE))[1].detach() for i in range(count)])
    return student


def made(kind: str, mode: str = "different", budget: float = 1.0) -> Student:
    """One that may be told other plain values; its weights are shared."""
    return copy.copy(merged(kind, mode, budget))


def same_entries(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_entries(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_entries, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("kind", "mode", "budget"),
    [
        ("plain", "different", 1.5), ("plain", "shared", 1.0), ("masked", "different", 1.0), ("smile", "shared", 1.0),
        ("wemoe", "different", 1.0), ("zipped", "different", 1.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_every_kind_comes_back_bit_for_bit(kind: str, mode: str, budget: float, suffix: str, tmp_path: Path) -> None:
    student, path, batch = made(kind, mode, budget), tmp_path / f"student.{suffix}", pictures(3, 7, SHAPE)
    save_student(student, path)
    loaded = load_student(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert type(loaded) is type(student)
    assert same_state(loaded.state_dict(), student.state_dict())
    assert same_entries(student_entries(loaded), student_entries(student))
    assert (loaded.lineage, loaded.zipped, loaded.macs) == (student.lineage, student.zipped, student.macs)
    assert torch.equal(run(loaded, batch), run(student, batch))
    assert torch.equal(loaded.probabilities(batch), student.probabilities(batch))


def test_a_safetensors_student_is_a_state_dict_and_one_json(tmp_path: Path) -> None:
    student, path = made("masked"), tmp_path / "student.safetensors"
    save_student(student, path)
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert list(metadata) == [ENTRY]
    content = json.loads(metadata[ENTRY])
    assert (content["format"], content["version"], content["picture"]) == ("pleas-student", 2, list(SHAPE))
    assert content[DESCRIPTION]["architecture"]["name"] == "resnet20"
    assert content["masked"]["vector"] == {REFERENCE: "masked/vector"}
    assert {"unit_maps/conv1", "gate/weight", "masked/masks", *student.network.state_dict()} <= set(names)
    weights = read_weights(path)
    assert same_entries(weights.state_dict, dict(student.network.state_dict()))


def test_files_of_the_first_version_still_load(tmp_path: Path) -> None:
    """As the first release wrote them: one torch file, its architecture without arguments."""
    student, path, batch = made("plain", budget=1.5), tmp_path / "student.ckpt", pictures(3, 7, SHAPE)
    assert student.gate is not None
    torch.save(
        {
            "format": "pleas-student",
            "version": 1,
            "pleas": {
                "architecture": {"name": "resnet20", "num_classes": 5, "stem": "small", "width": 1},
                "classes": {domain: list(names) for domain, names in student.labels.classes.items()},
                "label_mode": "different",
                "preprocessing": {"image_size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop": "center"},
            },
            "unit_maps": {name: units.members for name, units in student.group_maps.items()},
            "picture": [3, 16, 16],
            "lineage": {"seed": 3},
            "gate": dict(student.gate.state_dict()),
            "state_dict": dict(student.network.state_dict()),
        },
        path,
    )
    loaded = load_student(path)
    assert torch.equal(loaded.probabilities(batch), student.probabilities(batch))
    assert loaded.preprocessing == Preprocessing(16, (0.5,) * 3, (0.2,) * 3)
    assert loaded.lineage == {"seed": 3}
    assert load_source(path).logits == 10


def test_preprocessing_may_be_unknown(tmp_path: Path) -> None:
    student = made("plain")
    student.preprocessing = None
    for suffix in ("safetensors", "ckpt"):
        save_student(student, tmp_path / f"student.{suffix}")
        assert load_student(tmp_path / f"student.{suffix}").preprocessing is None


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_tensors_of_all_kinds_and_places(tmp_path: Path) -> None:
    table, tied = torch.arange(12).reshape(3, 4), torch.randn(5)
    entries = {
        "bools": torch.tensor([True, False]),
        "bytes": {"deep": [torch.tensor([1, 255], dtype=torch.uint8), {"a/b": torch.tensor(7)}]},
        "half": torch.tensor([0.5, -2], dtype=torch.float16),
        "brain": torch.tensor([0.5, -2], dtype=torch.bfloat16),
        "double": torch.randn(3, dtype=torch.float64),
        "column": table[:, 1],
        "transposed": table.T,
        "none": torch.empty(0, 3),
        "plain": [None, True, 3, 2.5, "text", {"nested": []}],
        "tied": tied,
    }
    state_dict = {"w": tied, "again": tied, "tail": tied[1:], "half": torch.ones(2)}
    write_packed("key", entries, state_dict, tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as file:
        content = json.loads(file.metadata()["key"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    found, rest = unpacked(content, tensors)
    assert same_entries(found, entries)
    assert same_entries(rest, state_dict), "a name that both use is no clash"


@pytest.mark.parametrize(
    ("entries", "message"),
    [({"path": {"inside": Path()}}, "not JSON serializable"), ({"a": {REFERENCE: "b"}}, "which stands for tensors")],
)
def test_what_is_not_plain_is_not_written(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"file cannot be written: .*{message}"):
        write_packed("key", entries, {"w": torch.ones(1)}, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=99), "is a student of version 99; this release reads 1 and 2"),
        (lambda content: content["unit_maps"].update(conv1={REFERENCE: "nowhere"}), "'nowhere' is missing"),
        (lambda content: content["unit_maps"].update(conv1={REFERENCE: [3]}), r"\[3\] is missing"),
        (lambda content: content["unit_maps"].update(conv1=3), "does not fit its architecture"),
        (lambda content: content.update(unit_maps=3), "does not fit its architecture"),
        (lambda content: content.pop(DESCRIPTION), "without architecture or classes"),
        (lambda content: content.update({DESCRIPTION: 3}), "cannot be read"),
        (lambda content: content.update(picture=None), "does not fit its architecture"),
        (lambda content: content.update(format="other"), "holds weights, but no student"),
    ],
    ids=["version", "missing", "list", "number", "no maps", "undescribed", "description", "picture", "format"],
)
def test_spoilt_json_is_told_in_a_sentence(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "student.safetensors"
    save_student(made("plain"), path)
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[ENTRY])
    change(content)
    save_file(load_file(path), path, metadata={ENTRY: json.dumps(content)})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_student(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_truncated_files_are_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_student(made("plain"), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"student\.safetensors"):
        load_student(path)


@pytest.mark.parametrize(
    "sources", [None, 3, {}, [], [3], ["abc"], [{"name": 3, "sha256": "0", "architecture": {}, "domains": []}]]
)
def test_a_lineage_that_tells_of_no_sources(sources: Any) -> None:
    student = made("plain")
    student.lineage = {"sources": sources}
    for read in (lambda: original_sources(student, []), lambda: original_owners(student)):
        with pytest.raises(CheckpointError, match="does not say which sources it was made of"):
            read()


def test_names_without_a_common_prefix() -> None:
    assert bare_names([]) == []
    assert bare_names(["model.module.a", "model.module.b"]) == ["a", "b"]
    assert bare_names(["model.a", "b"]) == ["model.a", "b"]


def test_each_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.pth" for index in range(2)]
    networks: list[nn.Module] = [resnet("resnet20", index) for index in range(2)]
    for network, path in zip(networks, paths, strict=True):
        torch.save(network.state_dict(), path)
    student = made("plain")
    architecture = {"name": "resnet20", "num_classes": 5, "stem": "small", "width": 1}
    student.lineage = {
        "sources": [
            {"name": f"s{i}", "sha256": load_source(path).sha256, "architecture": architecture, "domains": []}
            for i, path in enumerate(paths)
        ]
    }
    read: list[Path] = []
    plain = files.read_content
    monkeypatch.setattr(files, "read_content", lambda path: read.append(path) or plain(path))
    sources = original_sources(student, paths[::-1])
    assert sorted(read) == paths
    assert [source.path for source in sources] == paths
    for source, network in zip(sources, networks, strict=True):
        assert same_state(source.network.state_dict(), network.state_dict())
