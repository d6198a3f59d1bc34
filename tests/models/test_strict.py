import pytest
import torch

from project.errors import CheckpointError
from project.models import Architecture
from project.models.strict import differences, load_body, load_strictly


def test_head_of_another_width_stays() -> None:
    torch.manual_seed(0)
    network, other = Architecture("resnet20", 3).build(), Architecture("resnet20", 5).build()
    head = network.fc.weight.clone()
    load_body(network, other.state_dict(), "base")
    assert torch.equal(network.fc.weight, head)
    assert torch.equal(network.conv1.weight, other.conv1.weight)


def test_head_of_the_same_width_is_taken() -> None:
    network, other = Architecture("resnet20", 3).build(), Architecture("resnet20", 3).build()
    load_body(network, other.state_dict(), "base")
    assert torch.equal(network.fc.weight, other.fc.weight)


def test_body_without_a_head_is_enough() -> None:
    network, other = Architecture("resnet20", 3).build(), Architecture("resnet20", 3).build()
    load_body(network, {key: t for key, t in other.state_dict().items() if not key.startswith("fc.")}, "base")
    assert torch.equal(network.conv1.weight, other.conv1.weight)


def test_body_of_another_width_is_refused() -> None:
    network, other = Architecture("resnet20", 3).build(), Architecture("resnet20", 3, width=2).build()
    with pytest.raises(CheckpointError, match=r"base does not fit the architecture: conv1.weight is 32×3×3×3"):
        load_body(network, other.state_dict(), "base")


def test_refused_tensors_change_nothing() -> None:
    network = Architecture("resnet20", 3).build()
    before = {key: t.clone() for key, t in network.state_dict().items()}
    tensors = {key: t + 1 for key, t in before.items()} | {"fc.weight": torch.ones(4, 64), "extra": torch.ones(1)}
    del tensors["bn1.bias"]
    assert differences(before, tensors) == [
        "bn1.bias is missing",
        "extra is not expected",
        "fc.weight is 4×64 instead of 3×64",
    ]
    with pytest.raises(CheckpointError, match="file does not fit"):
        load_strictly(network, tensors, "file")
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
