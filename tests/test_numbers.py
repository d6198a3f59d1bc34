"""Every number that a class of the command takes: what it cannot be is refused by its name."""

import inspect
import typing
from math import inf, nan
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

import project
from project import callbacks, data, methods, modules
from project.data.given import GivenPictures
from project.errors import MANY, SEEDS, ConfigurationError
from project.methods import TIES, AdaMerging, Average, Interpolation
from project.methods.shared.matching import Matching
from project.models import Architecture, Preprocessing

HUGE = 10**30
NEVER = (nan, inf, -inf, -1, -HUGE, "3", [1], True, torch.ones(2))
"""What no count, size, seed, rate, share or strength can be."""
NEVER_COUNTED = (0.5, 2.0, HUGE)
KINDS = (methods.Method, LightningModule, LightningDataModule, data.DomainSet, modules.WeightScope)
NEEDED: dict[str, Any] = {
    "sources": ["a.pth", "b.pth"], "networks": ["a.pth"], "student": "a.pth", "base": "mean", "root": ".",
    "grid": {"keep": [0.1]}, "name": "resnet20", "num_classes": 3, "image_size": 3, "scored_networks": (),
}  # fmt: skip
"""Arguments without a default."""


def named_classes() -> list[type]:
    """What a YAML file can name, and what such a class hands its arguments on to."""
    places = (methods, modules, data, callbacks)
    exported = [getattr(place, name) for place in places for name in place.__all__]
    found = [one for one in exported if inspect.isclass(one) and not inspect.isabstract(one) and issubclass(one, KINDS)]
    return [*found, callbacks.PredictionTable, Architecture, Preprocessing, Matching]


def numbers(owner: type) -> dict[str, tuple[Any, ...]]:
    """Argument -> the types that it may have, where a number is one of them."""
    hints = typing.get_type_hints(owner.__init__)
    kinds = {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}
    return {
        name: kinds[name]
        for name in inspect.signature(owner).parameters
        if any(kind in (int, float) for kind in kinds.get(name, ())) and typing.get_origin(hints[name]) is not tuple
    }


def needed(owner: type) -> dict[str, Any]:
    """Sound values of the arguments without a default."""
    found = {}
    for name, one in inspect.signature(owner).parameters.items():
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            found[name] = NEEDED.get(name)
    if "sets" in found:
        found["sets"] = data.Shapes("x")
    if issubclass(owner, data.DomainDataModule):
        found["image_size"] = 16  # without a file to say it, it must be said
    if "method" in found:
        found["method"] = AdaMerging() if owner is modules.CoefficientModule else TIES()
    return found


CASES = [(owner, name, kinds) for owner in named_classes() for name, kinds in numbers(owner).items()]


def test_there_are_numbers_to_try() -> None:
    assert len(CASES) > 60
    assert {"batch_size", "image_size", "seed", "rank", "rate", "ridge", "alpha", "num_workers", "warmup"} <= {
        name for _, name, _ in CASES
    }


@pytest.mark.parametrize(
    ("owner", "name", "kinds"), CASES, ids=[f"{owner.__name__}-{name}" for owner, name, _ in CASES]
)
def test_what_a_number_cannot_be(owner: type, name: str, kinds: tuple[Any, ...]) -> None:
    others = needed(owner)
    owner(**others)
    values = [*NEVER, *(NEVER_COUNTED if float not in kinds else ())]
    for value in values:
        if (isinstance(value, str) and str in kinds) or (name == "calibration" and value is HUGE):  # all there are
            continue
        with pytest.raises(ConfigurationError) as caught:
            owner(**{**others, name: value})
        told = str(caught.value)
        assert told.startswith(f"{name} is "), told
        assert "allowed: " in told
        assert "\n" not in told
        assert len(told) < 300


def test_the_ends_of_a_range() -> None:
    for seed in (0, SEEDS):
        assert data.ImageFolders(".", seed=seed).seed == seed
    with pytest.raises(ConfigurationError, match=f"seed is {SEEDS + 1}; allowed: whole numbers from 0 to {SEEDS}"):
        methods.ZipIt(seed=SEEDS + 1)
    assert methods.SMILE(rank=MANY).rank == MANY
    with pytest.raises(ConfigurationError, match="rank is a number of 33220 bits"):
        methods.SMILE(rank=10**10000)
    with pytest.raises(ConfigurationError, match="num_workers is 1025; allowed: whole numbers from 0 to 1024"):
        data.UnsortedDataModule(".", num_workers=1025)
    assert Interpolation(steps=1000).steps == 1000
    with pytest.raises(ConfigurationError, match=r"clamp is 0\.5"):
        methods.PCB(clamp=0.5)


@pytest.mark.parametrize("weights", [[nan, 1], [inf, 1], [-1, 2], [0, 0], [1e308, 1e308], "12", 3, ["1", "2"]])
def test_weights_that_are_none(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match="weights is "):
        Average(weights=weights)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [3, None, "123", (1, 2), (nan, 1, 1), (inf, 1, 1), ("x", 1, 1), (1e30, 1, 1)])
def test_normalisation_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        Preprocessing(8, **{name: value})
    for spread in (0, -1, 1e-30):
        with pytest.raises(ConfigurationError, match="std is "):
            Preprocessing(8, std=(1, 1, spread))


@pytest.mark.parametrize(
    "options",
    [{"image_size": 0}, {"image_size": 2**20}, {"image_size": nan}, {"tolerance": -1}, {"tolerance": nan}],
)
def test_the_library_refuses_what_the_command_does(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} is "):
        project.check(nn.Conv2d(3, 3, 1), **options)
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        GivenPictures(torch.zeros(1, 3, 2, 2), batch_size=0)
