"""Names of classes that files hold beside their tensors."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet

from project.models import read_description, read_weights
from project.models.reading.classes import class_names_in

NAMES = ("dog", "cat", "tv set")
STATE = "state_dict"


@pytest.mark.parametrize(
    "entries",
    [
        {"meta": {"dataset_meta": {"classes": NAMES, "palette": [1, 2, 3]}, "epoch": 3}},
        {"meta": {"dataset_meta": {"classes": list(NAMES)}, "CLASSES": ("x", "y", "z")}},
        {"meta": {"CLASSES": NAMES, "PALETTE": None}},
        {"class_to_idx": {"cat": 1, "tv set": 2, "dog": 0}},
        {"class_to_idx": OrderedDict([("cat", 1), ("dog", 0), ("tv set", 2)])},
        {"idx_to_class": {0: "dog", 2: "tv set", 1: "cat"}},
        {"config": {"id2label": {"0": "dog", "1": "cat", "2": "tv set"}}},
        {"config": {"label2id": {"dog": "0", "cat": "1", "tv set": "2"}}},
        {"hyper_parameters": {"lr": 0.1, "class_names": list(NAMES)}},
        {"args": argparse.Namespace(lr=0.1, classes=list(NAMES))},
        {"names": {0: "dog", 1: "cat", 2: "tv set"}, "classes": 3},
    ],
)
def test_every_usual_way_is_read(entries: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({STATE: resnet("resnet8", 0, 3).state_dict(), **entries}, path)
    assert read_weights(path).class_names == NAMES
    assert read_description(path).classes == NAMES


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"classes": 3},
        {"classes": []},
        {"classes": ["one"]},
        {"classes": [0, 1, 2]},
        {"classes": ["0", "1", "2"]},
        {"id2label": {0: "LABEL_0", 1: "LABEL_1"}},
        {"class_to_idx": {"dog": 0, "cat": 2}},
        {"class_to_idx": {"dog": 0, "cat": 0}},
        {"class_to_idx": {"dog": 0.0, "cat": True}},
        {"class_to_idx": {"dog": "first", "cat": "second"}},
        {"id2label": {0: "dog", 1: None}},
        {"names": "dog"},
        {"classes": ["dog", "\ud800"]},
        {"meta": [{"classes": list(NAMES)}]},
    ],
)
def test_what_names_no_columns_is_passed_over(entries: dict[str, Any]) -> None:
    assert class_names_in({STATE: {}, **entries}) is None


def test_names_that_stand_twice_are_told_apart() -> None:
    assert class_names_in({"classes": ["crane", "dog", "crane"]}) == ("crane (0)", "dog", "crane (2)")


def test_what_a_file_of_ours_says_goes_first(tmp_path: Path) -> None:
    ours = {"pleas": {"classes": {"d": ["a", "b", "c"]}, "label_mode": "shared"}}
    torch.save({STATE: resnet("resnet8", 0, 3).state_dict(), "classes": list(NAMES), **ours}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").class_names is None
    assert read_weights(tmp_path / "a.pth").classes == ("a", "b", "c")
