"""Which network: a name and the few numbers that fix every shape in it."""

from dataclasses import dataclass
from typing import Literal, get_args

import torchvision
from torch import nn

from project.errors import ConfigurationError
from project.models.cifar import CifarResNet

Stem = Literal["imagenet", "small"]

IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CIFAR_NETS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}  # blocks per stage


def architectures() -> tuple[str, ...]:
    """Names of all architectures that can be built."""
    return (*IMAGENET_NETS, *CIFAR_NETS)


@dataclass(frozen=True)
class Architecture:
    """A network that can be built from plain values alone; ``dataclasses.asdict`` of it is JSON.

    Args:
        name: ``resnet18``, ``34``, ``50``, ``101`` or ``152`` as torchvision has them, or ``resnet20``, ``32``,
            ``44``, ``56`` or ``110`` for small pictures.
        num_classes: Number of logits.
        stem: ``imagenet`` begins with a 7×7 convolution of stride 2 and max pooling; ``small`` with a 3×3 convolution
            of stride 1 and no pooling. The networks for small pictures always have the small one.
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
        if self.name not in architectures():
            raise ConfigurationError(f"architecture is {self.name!r}; allowed: {', '.join(architectures())}.")
        if self.num_classes < 1:
            raise ConfigurationError(f"num_classes is {self.num_classes}; it must be at least 1.")
        if self.stem not in get_args(Stem):
            raise ConfigurationError(f"stem is {self.stem!r}; allowed: 'imagenet', 'small'.")
        if self.width < 1:
            raise ConfigurationError(f"width is {self.width}; it must be at least 1.")
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
        network: nn.Module = torchvision.models.get_model(self.name, weights=None, num_classes=self.num_classes)
        if self.stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return network
