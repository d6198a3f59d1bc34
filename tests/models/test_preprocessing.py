"""What pictures go through, said and read back."""

import math
from dataclasses import asdict, fields
from typing import Any

import pytest

from project.data import Domains, ImageFolders
from project.errors import ConfigurationError
from project.models import Description
from project.models.preprocessing import Preprocessing, resize_of

EVERYTHING: dict[str, Any] = {
    "resize": 256,
    "interpolation": "bicubic",
    "orientation": "ignored",
    "ground": "#10fF00",
    "channels": "BGR",
}


def test_files_from_before_a_field_are_read_as_they_were_meant() -> None:
    old = {"image_size": 16, "mean": [0.5] * 3, "std": [0.2] * 3, "crop": "squash"}
    known = Description.from_entries({"pleas": {"preprocessing": old}}).preprocessing
    assert known == Preprocessing(16, (0.5,) * 3, (0.2,) * 3, "squash")
    assert known.plain == {**old, "mean": (0.5,) * 3, "std": (0.2,) * 3}  # nor do they read otherwise where they began


@pytest.mark.parametrize("name", [*EVERYTHING, None])
def test_every_field_comes_back_from_a_file(name: str | None) -> None:
    given = Preprocessing(224, **(EVERYTHING if name is None else {name: EVERYTHING[name]}))
    entries = Description(preprocessing=given).to_entries()
    assert entries["pleas"]["preprocessing"].keys() == {field.name for field in fields(given)}  # and says all of it
    assert Description.from_entries(entries).preprocessing == given
    assert Preprocessing(**asdict(given)) == Preprocessing(**given.plain) == given


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("resize", 223, "whole numbers from 224"),
        ("resize", 256.0, "whole numbers"),
        ("interpolation", "cubic", "'bicubic'"),
        ("orientation", True, "'applied', 'ignored'"),
        ("ground", "blue", "'white', 'grey', 'black', '#rrggbb'"),
        ("ground", (0, 0, 0), "'white'"),
        ("ground", ["white"], "'white'"),
        ("channels", "bgr", "'RGB', 'BGR'"),
    ],
)
def test_impossible_values_are_told(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} is .*; allowed: .*{allowed}"):
        Preprocessing(224, **{name: value})


def test_a_resize_that_changes_nothing_is_none() -> None:
    assert Preprocessing(224, resize=224) == Preprocessing(224)


def test_a_crop_share_says_a_resize_and_back() -> None:
    """Both ways for every side: ⌊size / share⌋ is what timm computes, and share what its files hold."""
    for size in (32, 224, 288, 299):
        for resize in range(size, 2 * size):
            share = Preprocessing(size, resize=resize).crop_pct
            assert math.floor(size / share) == resize_of(size, share) == resize
    for size, share, resize in ((224, 0.875, 256), (224, 0.95, 235), (288, 1.0, 288), (224, 0.9, 248)):
        assert resize_of(size, share) == resize
    for share in (0, 1.1, "all", 1e-9):
        with pytest.raises(ConfigurationError, match=r"^crop_pct is "):
            resize_of(224, share)  # type: ignore[arg-type]


def test_data_take_all_of_it() -> None:
    data = Domains(ImageFolders("data"), image_size=224, crop="center", crop_pct=0.875, **{
        name: value for name, value in EVERYTHING.items() if name != "resize"
    })  # fmt: skip
    assert data.preprocessing == Preprocessing(224, **EVERYTHING)
    with pytest.raises(ConfigurationError, match=r"resize is 256 and crop_pct 0\.875; allowed: one of them"):
        Domains(ImageFolders("data"), image_size=224, resize=256, crop_pct=0.875)
