"""Model cards: what the Hub reads of them, and that they say only what is known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from helpers import DOMAINS, make_problem, merge_case, pictures, resnet

import project
from project.cli import main
from project.errors import ConfigurationError, MergeError
from project.exports.export import card_place
from project.methods import Permutation
from project.models import Architecture
from project.models.reading.hub import hub_name
from project.student import Student, save_student

SHAPE = (3, 16, 16)


def student_of(**lineage: Any) -> Student:
    networks = [resnet("resnet8", seed, 5) for seed in (0, 1)]
    it = make_problem(
        networks, shape=SHAPE, architecture=Architecture("resnet8", 5), needs=("units",),
        batches=[(domain, pictures(4, place, SHAPE)) for place, domain in enumerate(DOMAINS[:2])],
    )  # fmt: skip
    (merged,) = merge_case(Permutation("weights"), it, [1.0])
    sources = [
        {"name": name, "sha256": f"{place}" * 64, "architecture": {"name": "resnet8"}, "domains": [DOMAINS[place]]}
        for place, name in enumerate(("one", "two"))
    ]
    options = {"matching": "weights", "seed": 0}
    merged.student.lineage = {
        "method": "permutation", "class": "Permutation", "budget": 1.0, "base": None, "options": options,
        "sources": sources, "versions": {"torch": str(torch.__version__)}, **lineage,
    }  # fmt: skip
    return merged.student.eval()


def read(path: Path) -> tuple[dict[str, Any], str]:
    head, body = path.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def run_of(student: Student, folder: Path, **changed: Any) -> Path:
    """A finished merge of which the student is said to be."""
    file = folder / "students" / "permutation-1.00.safetensors"
    save_student(student, file)
    first, second = DOMAINS[:2]
    results = {
        "table": [{"network": "one"}, {"network": "permutation-1.00", first: 62.5, second: 40.0}],
        "domains": [first, second],
        "tests": {"pictures": {first: [10, 14], second: [5]}},
        "lineage": {"permutation-1.00": student.lineage},
        **changed,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return file


def test_the_hub_reads_what_was_measured_and_what_it_was_merged_from(tmp_path: Path) -> None:
    student = student_of()
    student.lineage["sources"][0]["hub"] = "owner/one"  # type: ignore[index]
    file = run_of(student, tmp_path)
    main(["export", str(file), "--to", "safetensors", "--licence", "apache-2.0"])
    path = file.with_name("permutation-1.00-weights.safetensors")
    place = card_place(path, folder=False)
    assert place.name == "permutation-1.00-weights.safetensors.README.md"
    said, body = read(place)
    assert (said["license"], said["base_model"], said["base_model_relation"]) == ("apache-2.0", ["owner/one"], "merge")
    assert said["pipeline_tag"] == "image-classification"
    assert {"merge", "permutation"} <= set(said["tags"])
    (model,) = said["model-index"]
    values = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in model["results"]}
    assert values == {DOMAINS[0]: 0.625, DOMAINS[1]: 0.4}
    assert f"| {DOMAINS[0]} | 62.5 | 24 |" in body
    assert "[one](https://huggingface.co/owner/one)" in body
    assert "1" * 64 in body
    assert "matching: weights" in body
    assert "No licence" not in body
    library = pytest.importorskip("huggingface_hub")
    told = library.ModelCard.load(place).data
    assert told.eval_results is not None
    assert [one.metric_value for one in told.eval_results] == [0.625, 0.4]


@pytest.mark.parametrize(
    "changed",
    [{"lineage": {}}, {"lineage": {"permutation-1.00": {"method": "other"}}}, {"table": []}, {"domains": None}],
    ids=str,
)
def test_figures_of_another_student_are_not_its_own(changed: dict[str, Any], tmp_path: Path) -> None:
    file = run_of(student_of(), tmp_path, **changed)
    told = project.export(file, tmp_path / "w.safetensors", "safetensors")
    assert told.card is not None
    said, body = read(told.card)
    assert not {"model-index", "license", "base_model"} & set(said)
    assert "Accuracy" not in body
    assert "No licence is stated" in body


def test_names_are_no_markup(tmp_path: Path) -> None:
    student = student_of(base="hf-hub:owner/base@main")
    student.lineage["sources"][1]["name"] = "a|b <img> [x](y)\n# no"  # type: ignore[index]
    told = project.export(student, tmp_path / "w: x.safetensors", "safetensors")
    assert told.card is not None
    said, body = read(told.card)
    assert said["base_model"] == ["owner/base"]
    assert r"a\|b \<img\> \[x\](y)" in body
    assert "\n# no" not in body


@pytest.mark.parametrize("licence", ["two words", "a: b", ""])
def test_a_licence_is_one_word(licence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"licence is .*; allowed: a licence as the Hub names it"):
        project.export(student_of(), tmp_path / "w.safetensors", "safetensors", licence)


def test_a_card_that_is_there_is_not_written_over_and_none_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, path = student_of(), tmp_path / "w.safetensors"
    place = card_place(path, folder=False)
    place.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"w\.safetensors\.README\.md is there already"):
        project.export(student, path, "safetensors")
    assert [one.name for one in tmp_path.iterdir()] == [place.name]
    place.unlink()

    def fail(*_: object) -> None:
        raise MergeError("no room.")

    monkeypatch.setattr("project.exports.card.atomic_text", fail)
    with pytest.raises(MergeError, match="no room"):
        project.export(student, path, "safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/hub/models--timm--resnet18.a1_in1k/snapshots/abc/model.safetensors", "timm/resnet18.a1_in1k"),
        ("/x/models--timm--resnet18/model.safetensors", None),
        ("/x/snapshots/model.safetensors", None),
        ("model.safetensors", None),
    ],
)
def test_a_file_in_the_cache_says_which_folder_on_the_hub_it_is_of(path: str, name: str | None) -> None:
    assert hub_name(path) == name
