import pytest
import torch
from torch import Tensor

from project.errors import CheckpointError
from project.models import Architecture, recognise
from project.models.architecture import CIFAR_NETS, IMAGENET_NETS

KNOWN = [
    *(
        Architecture(name, classes, stem)
        for name in IMAGENET_NETS
        for stem in ("imagenet", "small")
        for classes in (3,)
    ),
    *(Architecture(name, 1, width=width) for name in CIFAR_NETS for width in (1, 4)),
    Architecture("resnet18", 345),
    *(Architecture("resnet34", 5, hidden=7, head_bias=biased, head="fastai") for biased in (True, False)),
]


def tensors(architecture: Architecture) -> dict[str, Tensor]:
    with torch.device("meta"):
        return architecture.build().state_dict()


@pytest.mark.parametrize("architecture", KNOWN, ids=str)
def test_shapes_tell_the_architecture(architecture: Architecture) -> None:
    assert recognise(tensors(architecture)) == architecture


def test_batch_counters_may_be_missing() -> None:
    old = {key: t for key, t in tensors(Architecture("resnet34", 9)).items() if not key.endswith("num_batches_tracked")}
    assert recognise(old) == Architecture("resnet34", 9)


def test_nearest_is_named_with_its_differences() -> None:
    state_dict = tensors(Architecture("resnet50", 10))
    state_dict["layer2.0.conv2.weight"] = torch.empty(256, 128, 3, 3)
    message = r"nearest is resnet50, but layer2.0.conv2.weight is 256×128×3×3 instead of 128×128×3×3; if it is another"
    with pytest.raises(CheckpointError, match=message):
        recognise(state_dict)


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no convolution 'conv1"):
        recognise({"stem.0.weight": torch.empty(3)})
    with pytest.raises(CheckpointError, match=r"torchvision's VGG.* \(features\.0\.weight\); say which it is"):
        recognise({"features.0.weight": torch.empty(3)})
