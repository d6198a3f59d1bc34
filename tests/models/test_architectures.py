from dataclasses import asdict
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from project.errors import ConfigurationError
from project.models import Architecture, architectures
from project.models.architecture import CIFAR_NETS, IMAGENET_NETS, Stem
from project.models.recognise import candidate


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_logits_have_one_column_for_each_class(name: str, stem: Stem) -> None:
    with torch.device("meta"):
        network = Architecture(name, 7, stem).build().eval()
        assert network(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "imagenet"), ("resnet50", "small"), ("resnet20", "small")])
def test_traced_network_computes_the_same(name: str, stem: Stem) -> None:
    network = Architecture(name, 5, stem).build().eval()
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(pictures), network(pictures))


@pytest.mark.parametrize("name", IMAGENET_NETS)
def test_tensors_are_named_and_shaped_as_in_torchvision(name: str) -> None:
    with torch.device("meta"):
        ours = Architecture(name, 1000).build().state_dict()
        theirs = torchvision.models.get_model(name).state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize(("name", "blocks"), CIFAR_NETS.items())
def test_depth_of_the_networks_for_small_pictures_is_their_name(name: str, blocks: int) -> None:
    with torch.device("meta"):
        network = Architecture(name, 10).build()
    layers = [m for key, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "downs" not in key]
    assert f"resnet{len(layers)}" == name
    assert len(layers) == 6 * blocks + 2


def test_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = Architecture("resnet20", 10).build()
    projections = sum(p.numel() for key, p in network.named_parameters() if "downsample" in key)
    assert sum(p.numel() for p in network.parameters()) - projections == 269_722  # 0.27M in the paper, option A


def test_width_multiplies_channels() -> None:
    with torch.device("meta"):
        network = Architecture("resnet32", 10, width=4).build()
    assert (network.conv1.out_channels, network.fc.in_features) == (64, 256)


def test_small_stem_keeps_the_resolution() -> None:
    with torch.device("meta"):
        network = Architecture("resnet18", 10, "small").build()
        assert network.maxpool(network.conv1(torch.empty(1, 3, 32, 32))).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "vit_b_32", "densenet121", "googlenet"])
def test_other_networks_of_torchvision_have_the_classes_asked_for(name: str) -> None:
    with torch.device("meta"):
        network = Architecture(name, 7).build().eval()
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 7)
    assert candidate(name, network.state_dict()) == Architecture(name, 7)


def test_regnets_are_built_where_tensors_have_no_values() -> None:
    with torch.device("meta"):
        network = Architecture("regnet_y_400mf", 7).build()
    assert network.fc.out_features == 7


def test_description_survives_plain_values() -> None:
    architecture = Architecture("resnet56", 10, width=2)
    assert Architecture(**asdict(architecture)) == architecture
    assert architecture == Architecture("resnet56", 10, "small", 2)  # whatever stem was stated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("vgg99", 10),
            "architecture is 'vgg99'; there is none of that name; nearest: vgg19, vgg19_bn, vgg16; allowed: resnet18",
        ),
        (("vgg16", 10, "small"), "stem is 'small', but vgg16 has one stem"),
        (("resnet18", 0), "num_classes is 0"),
        (("resnet18", 10, "tiny"), "stem is 'tiny'; allowed: 'imagenet', 'small'"),
        (("resnet20", 10, "small", 0), "width is 0"),
        (("resnet18", 10, "imagenet", 2), "width is 2, but resnet18 has one width"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Architecture(*arguments)
