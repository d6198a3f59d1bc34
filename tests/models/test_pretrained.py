from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, pretrained
from project.models.pretrained import find_weights

FILE = "resnet18-f37072fd.pth"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's cache, and no network."""

    def download(url: str, *_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def original(cache: Path) -> nn.Module:
    """A network of 1000 classes whose weights lie in the cache as torchvision's."""
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), cache / FILE)
    return network


def test_cached_weights_are_taken_with_their_head(original: nn.Module) -> None:
    network = pretrained(Architecture("resnet18", 1000), "IMAGENET1K_V1")
    assert all(torch.equal(t, original.state_dict()[key]) for key, t in network.state_dict().items())


def test_other_classes_get_a_new_head(original: nn.Module) -> None:
    network = pretrained(Architecture("resnet18", 12), "IMAGENET1K_V1")
    assert torch.equal(network.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (12, 512)


def test_without_network_the_address_and_folder_are_told(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=f"https://.*{FILE} could not be fetched into {cache} .*no network"):
        pretrained(Architecture("resnet18", 10), "IMAGENET1K_V1")


@pytest.mark.parametrize("version", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_both_versions_are_known(version: str) -> None:
    assert find_weights(Architecture("resnet50", 10), version).name == version


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        (Architecture("resnet18", 10), "IMAGENET1K_V2", "allowed for resnet18: IMAGENET1K_V1"),
        (Architecture("resnet50", 10), "V3", "weights is 'V3'; allowed for resnet50: IMAGENET1K_V1, IMAGENET1K_V2"),
        (Architecture("resnet50", 10), "DEFAULT", "weights is 'DEFAULT'; allowed"),
        (Architecture("resnet18", 10, "small"), "IMAGENET1K_V1", "stem 'imagenet' only, but stem is 'small'"),
        (Architecture("resnet20", 10), "IMAGENET1K_V1", "no ImageNet weights of resnet20, only of resnet18"),
    ],
)
def test_what_does_not_exist_is_refused(cache: Path, architecture: Architecture, weights: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pretrained(architecture, weights)
