from pathlib import Path

import pytest
import torch
from torch import nn

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, load_network


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network and the file of its weights."""
    network = Architecture("resnet20", 4, width=2).build().train()
    network(torch.randn(8, 3, 32, 32))  # batch norms other than fresh ones
    torch.save(network.state_dict(), tmp_path / "w.pt")
    return network.eval(), tmp_path / "w.pt"


@pytest.mark.parametrize("architecture", [None, "resnet20", Architecture("resnet20", 4, width=2)])
def test_loaded_network_computes_the_same(saved: tuple[nn.Module, Path], architecture: Architecture) -> None:
    network, path = saved
    loaded, weights = load_network(path, architecture)
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(pictures), network(pictures))
    assert not any(module.training for module in loaded.modules())
    assert loaded.bn1.num_batches_tracked == 1
    assert all(p.data_ptr() != weights.state_dict[name].data_ptr() for name, p in loaded.named_parameters())


def test_loading_draws_no_random_numbers(saved: tuple[nn.Module, Path]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_network(saved[1])
    assert torch.rand(1) == expected


def test_missing_batch_counters_are_zero(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    tensors = {key: t for key, t in saved[0].state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "old.pt")
    assert load_network(tmp_path / "old.pt")[0].bn1.num_batches_tracked == 0


def test_file_decides_before_shapes_do(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    entry = {"name": "resnet32", "num_classes": 4, "stem": "small", "width": 2}
    torch.save({"state_dict": saved[0].state_dict(), "pleas": {"architecture": entry}}, tmp_path / "w.ckpt")
    with pytest.raises(
        CheckpointError, match=r"w.ckpt does not fit the architecture: layer1.3.conv1.weight is missing"
    ):
        load_network(tmp_path / "w.ckpt")
    assert load_network(tmp_path / "w.ckpt", "resnet20")[1].architecture.name == "resnet20"


def test_first_differences_are_told(saved: tuple[nn.Module, Path]) -> None:
    message = "conv1.weight is 32×3×3×3 instead of 16×3×3×3; .* and [0-9]+ more"
    with pytest.raises(CheckpointError, match=message):
        load_network(saved[1], Architecture("resnet20", 4))
    with pytest.raises(
        CheckpointError, match=r"layer3.2.conv1.weight is not expected|layer1.3.conv1.weight is missing"
    ):
        load_network(saved[1], "resnet32")
    with pytest.raises(ConfigurationError, match="architecture is 'resnet21'"):
        load_network(saved[1], "resnet21")


def test_unknown_networks_are_told_with_their_file(tmp_path: Path) -> None:
    torch.save({"features.weight": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w.pt: The weights hold no convolution"):
        load_network(tmp_path / "w.pt")
