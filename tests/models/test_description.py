import json
from typing import Any

import pytest

from project.errors import CheckpointError
from project.models import Architecture, Description, LabelSpace, Preprocessing

SHARED = LabelSpace({"photo": ("cat", "dog"), "sketch": ("cat", "dog")})
DIFFERENT = LabelSpace({"photo": ("cat", "dog"), "cars": ("bus",)}, "different")
PREPROCESSING = Preprocessing(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "description",
    [
        Description(),
        Description(Architecture("resnet18", 2), SHARED, PREPROCESSING),
        Description(Architecture("resnet20", 3, width=4), DIFFERENT),
        Description(preprocessing=PREPROCESSING),
    ],
)
def test_entries_survive_json(description: Description) -> None:
    assert Description.from_entries(json.loads(json.dumps(description.to_entries()))) == description


def test_columns_are_named() -> None:
    assert Description(label_space=SHARED).classes == ("cat", "dog")
    assert Description(label_space=DIFFERENT).classes == ("cat", "dog", "bus")
    assert Description(label_space=DIFFERENT).domains == ("photo", "cars")
    assert (Description().classes, Description().domains) == (None, ())


def test_other_entries_are_passed_over() -> None:
    assert Description.from_entries({"epoch": 3, "architecture": "ResNet"}) == Description()


@pytest.mark.parametrize(
    "entries",
    [
        [1, 2],
        {"architecture": {"name": "vgg"}},
        {"architecture": {"name": "vgg", "num_classes": 3}},
        {"preprocessing": {"size": 3}},
        {"classes": ["cat"], "label_mode": "shared"},
    ],
)
def test_entries_of_another_form_are_refused(entries: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Description.from_entries({"pleas": entries})
