"""Which network: a name and the few numbers that fix every shape in it."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
import torchvision
from torch import Tensor, nn

from project.errors import ConfigurationError, nearest, one_of, whole
from project.models.cifar import CifarResNet, Shortcut
from project.models.custom import make
from project.models.unfused.pooled import PooledLayer
from project.models.zoo import TIMM, build_timm, check_timm, plain_name

Stem = Literal["imagenet", "small"]
Head = Literal["plain", "fastai"]

IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# Blocks per stage; the smallest is none of the paper's.
IMAGENET_BLOCKS = {
    "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}  # fmt: skip
CIFAR_NETS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
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

    One that is named by a dotted path is not built from here: what it names is code, which files may tell of and only
    the user may choose, see :func:`project.models.network.untrained_network`.

    Args:
        name: ``resnet18``, ``34``, ``50``, ``101`` or ``152`` as torchvision has them, ``resnet8``, ``20``, ``32``,
            ``44``, ``56`` or ``110`` for small pictures, another classification network by torchvision's name
            (``torchvision/`` may stand before it), one of timm's behind ``timm/``, or the dotted path of a class or
            function that builds one.
        num_classes: Number of logits.
        stem: ``imagenet`` begins with a 7×7 convolution of stride 2 and max pooling; ``small`` with a 3×3 convolution
            of stride 1 and no pooling. The networks for small pictures always have the small one, torchvision's other
            networks their own, called ``imagenet`` here.
        width: Factor on all channels of the networks for small pictures.
        arguments: Keyword arguments, as JSON has them, that torchvision's builder, timm's or the dotted path is called
            with; None where they are not known.
        hidden: Units of a hidden layer with ReLU in the head of a ResNet; 0 for a head of one layer.
        head_bias: Whether the layers of a ResNet's head have biases.
        shortcut: Of the networks for small pictures where the shape changes: ``projection`` (option B), or ``padding``
            with channels of zeros (option A).
        head: Of a ResNet: ``plain``, or ``fastai``, which has a hidden layer that reads the largest and the mean value
            of every channel, and a batch norm before each of its layers.

    Raises:
        ConfigurationError: If the name is not known, or a value does not go with it.
    """

    name: str
    num_classes: int
    stem: Stem = "imagenet"
    width: int = 1
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)
    hidden: int = 0
    head_bias: bool = True
    shortcut: Shortcut = "projection"
    head: Head = "plain"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if not isinstance(self.name, str):
            raise ConfigurationError(f"architecture is {self.name!r}; allowed: a name.")
        object.__setattr__(self, "name", plain_name(self.name))
        if self.arguments is not None:
            object.__setattr__(self, "arguments", plain_arguments(self.arguments))
        if self.of_timm:
            check_timm(self.name, self.arguments or {})
        elif not self.custom and self.name not in (known := (*architectures(), *others())):
            like = nearest(self.name, known)
            listed = "." if like else f": {', '.join(others())}."
            raise ConfigurationError(
                f"architecture is {self.name!r}; there is none of that name{like}; allowed: "
                f"{', '.join(architectures())}, timm/NAME, a dotted path to a class or function that builds a network, "
                f"or another classification network of torchvision{listed}"
            )
        one_of(Stem, stem=self.stem)
        whole(1, num_classes=self.num_classes, width=self.width)
        if (self.custom or self.of_timm or self.name in others()) and self.stem != "imagenet":
            raise ConfigurationError(f"stem is {self.stem!r}, but {self.name} has one stem, called 'imagenet' here.")
        if self.name in CIFAR_NETS:
            object.__setattr__(self, "stem", "small")  # one network, one description of it
        elif self.width != 1:
            raise ConfigurationError(
                f"width is {self.width}, but {self.name} has one width; only {', '.join(CIFAR_NETS)} take another."
            )
        one_of(Shortcut, shortcut=self.shortcut)
        whole(0, hidden=self.hidden)
        if self.shortcut != "projection" and self.name not in CIFAR_NETS:
            raise ConfigurationError(
                f"shortcut is {self.shortcut!r}, but {self.name} has one kind; only {', '.join(CIFAR_NETS)} take "
                f"another."
            )
        one_of(Head, head=self.head)
        if self.head == "fastai" and not self.hidden:
            raise ConfigurationError("head is 'fastai', which has a hidden layer, but hidden is 0; allowed: 1 or more.")
        if (self.hidden or self.head_bias is not True or self.head != "plain") and self.name not in architectures():
            raise ConfigurationError(
                f"hidden is {self.hidden}, head_bias {self.head_bias} and head {self.head!r}, but {self.name} has a "
                f"head of its own; allowed for: {', '.join(architectures())}."
            )
        if self.arguments and self.name in CIFAR_NETS:
            raise ConfigurationError(f"arguments is {self.arguments}, but {self.name} takes none; allowed: width.")
        for taken in ("weights", "num_classes"):
            if not self.custom and taken in (self.arguments or {}):
                raise ConfigurationError(f"arguments holds {taken!r}, which {self.name} takes from its file.")

    @property
    def plain(self) -> dict[str, Any]:
        """Its fields as files keep them: those that came later only where they say something."""
        later = {"hidden": 0, "head_bias": True, "shortcut": "projection", "head": "plain"}
        return {name: value for name, value in asdict(self).items() if value != later.get(name, ...)}

    @property
    def custom(self) -> bool:
        """Whether it is named by a dotted path."""
        return "." in self.name

    @property
    def of_timm(self) -> bool:
        """Whether it is one of timm's."""
        return self.name.startswith(TIMM)

    def build(self) -> nn.Module:
        """The network, randomly initialised, its parameters named as torchvision names them.

        Raises:
            ConfigurationError: If it is named by a dotted path, or does not take its arguments.
        """
        if self.custom:
            raise ConfigurationError(f"{self.name} is code that nobody has named; pass it as architecture.")
        if self.of_timm:
            return build_timm(self.name, self.num_classes, self.arguments or {})
        if self.name in CIFAR_NETS:
            return self._headed(CifarResNet(CIFAR_NETS[self.name], self.num_classes, self.width, self.shortcut))
        options = {"aux_logits": False, "init_weights": True} if self.name in WITH_AUXILIARY_HEADS else {}
        # RegNets compute their widths with tensors, which need values wherever the parameters are to lie.
        with torch.device("cpu") if self.name.startswith("regnet") else nullcontext():
            network = make(
                torchvision.models.get_model_builder(self.name),
                {"weights": None, "num_classes": self.num_classes, **options, **(self.arguments or {})},
                f"architecture {self.name!r}",
            )
        if self.stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return self._headed(network)

    def tensors(self) -> Mapping[str, Tensor]:
        """Names and shapes of its tensors, without memory behind them, or with values that mean nothing.

        Raises:
            ConfigurationError: See :meth:`build`.
        """
        if self.of_timm:
            return build_timm(self.name, self.num_classes, self.arguments or {}, shapes=True).state_dict()
        with torch.device("meta"):
            return self.build().state_dict()

    def _headed(self, network: nn.Module) -> nn.Module:
        """The network with the head that is asked for in place of one linear layer."""
        if self.head == "fastai":
            channels = cast(nn.Linear, network.fc).in_features
            network.avgpool = PooledLayer(channels, self.hidden, self.head_bias)
            network.fc = nn.Sequential(
                nn.ReLU(), nn.BatchNorm1d(self.hidden), nn.Linear(self.hidden, self.num_classes, self.head_bias)
            )
        elif self.hidden or not self.head_bias:
            inputs = cast(nn.Linear, network.fc).in_features
            layers = [nn.Linear(self.hidden or inputs, self.num_classes, self.head_bias)]
            if self.hidden:
                network.fc = nn.Sequential(nn.Linear(inputs, self.hidden, self.head_bias), nn.ReLU(), *layers)
            else:
                network.fc = layers[0]
        return network


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as a file brings them back: tuples become lists.

    Raises:
        ConfigurationError: If one is no plain value.
    """
    found = {}
    for name, value in arguments.items():
        try:
            found[str(name)] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"arguments holds {name!r}, a {type(value).__name__}; allowed: numbers, strings, lists and mappings of "
                f"them, or a network that is built already as architecture."
            ) from error
    return found
