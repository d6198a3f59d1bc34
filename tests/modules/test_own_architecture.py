"""Fits of networks of the user's own class, which the user names and no file does."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from project.data import DomainDataModule, ImageFolders
from project.errors import ConfigurationError
from project.modules import FineTuneModule
from project.student import load_source

pytestmark = pytest.mark.usefixtures("shown_once")

NAME = "fitted_nets"
CODE = """
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
        )


def ten(width: int) -> nn.Module:
    return Small(10, width)
"""


@pytest.fixture
def data(inside: Path, monkeypatch: pytest.MonkeyPatch) -> DomainDataModule:
    """Two classes of one domain, beside the module of the networks."""
    Path(f"{NAME}.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    for label in ("cat", "dog"):
        folder = Path("pictures", "photo", label)
        folder.mkdir(parents=True)
        for number in range(5):
            noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
    return DomainDataModule(ImageFolders("pictures"), image_size=8, batch_size=4, validation_fraction=0.25)


def trainer(epochs: int = 1) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet)


def module(name: str = "Small", **options: Any) -> FineTuneModule:
    return FineTuneModule(f"{NAME}.{name}", **options)


def test_a_fit_and_what_comes_of_it(data: DomainDataModule) -> None:
    fitting = trainer()
    fitting.fit(module(arguments={"width": 5}, freeze=("0",)), datamodule=data)
    fitting.save_checkpoint("own.ckpt")
    with pytest.raises(ConfigurationError, match="code of yours that a file may not choose"):
        load_source("own.ckpt")
    source = load_source("own.ckpt", architecture=f"{NAME}.Small")
    assert source.logits == 2
    assert source.network[0].weight.shape[0] == 5  # type: ignore[index, union-attr]
    kept: dict[str, Any] = {"datamodule": data, "ckpt_path": "own.ckpt", "weights_only": True}
    trainer().test(module(arguments={"width": 5}), verbose=False, **kept)
    again = module(arguments={"width": 5}, freeze=("0",))
    trainer(2).fit(again, **kept)
    assert again.global_step == 2 * fitting.global_step


def test_no_file_chooses_the_class(data: DomainDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint names another module, which would leave a trace where it is imported."""
    fitting = trainer()
    fitting.fit(module(), datamodule=data)
    fitting.save_checkpoint("own.ckpt")
    monkeypatch.delitem(sys.modules, NAME)
    with pytest.raises(ConfigurationError, match=f"{NAME}.Small is code that nobody has named"):
        FineTuneModule.load_from_checkpoint("own.ckpt", weights_only=True)
    assert NAME not in sys.modules
    Path("beside_fits.py").write_text("open('trace', 'w').close()\n\n\nclass Evil: ...\n")
    content = torch.load("own.ckpt", weights_only=True)
    content["hyper_parameters"]["architecture"] = "beside_fits.Evil"
    content["pleas"]["architecture"]["name"] = "beside_fits.Evil"
    torch.save(content, "theirs.ckpt")
    with pytest.raises(ConfigurationError, match="code that nobody has named"):
        FineTuneModule.load_from_checkpoint("theirs.ckpt", weights_only=True)
    assert not Path("trace").exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Small", {"arguments": {"num_classes": 3}}, "makes 3 logits for 2 classes; set its arguments"),
        ("ten", {"arguments": {"width": 3}}, "makes 10 logits for 2 classes"),
        ("ten", {}, "cannot be built with {}"),
        ("Small", {"stem": "small"}, "stem is 'small'"),
        ("Small", {"width": 2}, "width is 2"),
        ("Small", {"weights": "IMAGENET1K_V1"}, "weights is 'IMAGENET1K_V1'"),
    ],
)
def test_what_is_refused(data: DomainDataModule, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer().fit(module(name, **options), datamodule=data)
    assert words in str(caught.value)


def test_paths_that_name_nothing(inside: Path) -> None:
    for path, words in (("nowhere_at_all.Net", "cannot be imported"), ("torch.nothing", "names no class or function")):
        with pytest.raises(ConfigurationError, match=words):
            FineTuneModule(path).check_architecture()
    FineTuneModule("torch.nn.Linear").check_architecture()
    FineTuneModule("resnet8").check_architecture()
