"""Which network: a name and the few numbers that fix every shape in it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import nn

from project.errors import ConfigurationError, at_least, nearest, one_of
from project.models.cifar import CifarResNet

Stem = Literal["imagenet", "small"]

IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CIFAR_NETS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}  # blocks per stage
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def architectures() -> tuple[str, ...]:
    """Names of the ResNets, which the shapes of their tensors tell from each other."""
    return (*IMAGENET_NETS, *CIFAR_NETS)


def others() -> tuple[str, ...]:
    """Names of torchvision's other classification networks; whether one can be merged, its trace tells."""
    return tuple(
        name for name in torchvision.models.list_models(module=torchvision.models) if name not in IMAGENET_NETS
    )


@dataclass(frozen=True)
class Architecture:
    """A network that can be built from plain values alone; ``dataclasses.asdict`` of it is JSON.

    Args:
        name: ``resnet18``, ``34``, ``50``, ``101`` or ``152`` as torchvision has them, ``resnet20``, ``32``, ``44``,
            ``56`` or ``110`` for small pictures, or another classification network by torchvision's name.
        num_classes: Number of logits.
        stem: ``imagenet`` begins with a 7×7 convolution of stride 2 and max pooling; ``small`` with a 3×3 convolution
            of stride 1 and no pooling. The networks for small pictures always have the small one, torchvision's other
            networks their own, called ``imagenet`` here.
        width: Factor on all channels of the networks for small pictures.

    Raises:
        ConfigurationError: If the name is not known, or a value does not go with it.
    """

    name: str
    num_classes: int
    stem: Stem = "imagenet"
    width: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.name not in (known := (*architectures(), *others())):
            like = nearest(self.name, known)
            listed = "." if like else f": {', '.join(others())}."
            raise ConfigurationError(
                f"architecture is {self.name!r}; there is none of that name{like}; allowed: "
                f"{', '.join(architectures())}, or another classification network of torchvision{listed}"
            )
        one_of(Stem, stem=self.stem)
        at_least(1, num_classes=self.num_classes, width=self.width)
        if self.name in others() and self.stem != "imagenet":
            raise ConfigurationError(f"stem is {self.stem!r}, but {self.name} has one stem, called 'imagenet' here.")
        if self.name in CIFAR_NETS:
            object.__setattr__(self, "stem", "small")  # one network, one description of it
        elif self.width != 1:
            raise ConfigurationError(
                f"width is {self.width}, but {self.name} has one width; only {', '.join(CIFAR_NETS)} take another."
            )

    def build(self) -> nn.Module:
        """The network, randomly initialised, its parameters named as torchvision names them."""
        if self.name in CIFAR_NETS:
            return CifarResNet(CIFAR_NETS[self.name], self.num_classes, self.width)
        options = {"aux_logits": False, "init_weights": True} if self.name in WITH_AUXILIARY_HEADS else {}
        # RegNets compute their widths with tensors, which need values wherever the parameters are to lie.
        with torch.device("cpu") if self.name.startswith("regnet") else nullcontext():
            network: nn.Module = torchvision.models.get_model(
                self.name, weights=None, num_classes=self.num_classes, **options
            )
        if self.stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return network
