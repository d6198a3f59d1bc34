"""Telling an architecture from the shapes of its tensors, or from a network in memory."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights

from project.errors import CheckpointError, ConfigurationError
from project.models.alike import built_alike
from project.models.architecture import (
    CIFAR_NETS,
    IMAGENET_BLOCKS,
    WITH_AUXILIARY_HEADS,
    Architecture,
    Stem,
    architectures,
)
from project.models.cifar import CifarResNet, Shortcut
from project.models.custom import count_logits, dotted_path, last_layer
from project.models.reading.kin import kin
from project.models.strict import differences, summary
from project.models.zoo import FETCHING, TIMM, build_timm, head_of_timm, plain_name

SAY_SO = "{path: FILE, architecture: NAME}, where NAME is torchvision's, timm/NAME or a dotted path to what builds it"
HEADS = ("fc.weight", "fc.2.weight")
POOLED = "avgpool.linear.weight"
BLOCK = re.compile(r"layer(\d)\.\d+\.conv1\.weight")


def recognise(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The architecture whose tensors have exactly these names and shapes.

    Raises:
        CheckpointError: If none has; the message names the nearest one and how it differs.
    """
    if fits := fitting(state_dict):
        return fits
    if other := kin(state_dict):
        raise CheckpointError(f"The weights are named as {other}.")
    candidates = [candidate(name, state_dict) for name in architectures()]
    nearest = max(candidates, key=lambda architecture: _agreement(blueprint(architecture), state_dict))
    found = summary(differences(blueprint(nearest), state_dict))
    raise CheckpointError(
        f"The weights are of none of the known architectures ({', '.join(architectures())}); nearest is "
        f"{nearest.name}, but {found}; if it is another, say so: {SAY_SO}."
    )


def fitting(shapes: Mapping[str, Tensor]) -> Architecture | None:
    """The one of the ResNets whose tensors have exactly these names and shapes; None where there is none.

    Args:
        shapes: Tensors, which may lie on the meta device.
    """
    blocks: dict[str, int] = {}
    for name in shapes:
        if match := BLOCK.fullmatch(name):
            blocks[match[1]] = blocks.get(match[1], 0) + 1
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    for name in architectures():
        expected = (CIFAR_NETS[name],) * 3 if name in CIFAR_NETS else IMAGENET_BLOCKS[name]
        if counts == expected:
            try:
                found = candidate(name, shapes)
            except CheckpointError:
                return None
            if not differences(blueprint(found), shapes):
                return found
    return None


def architecture_of(network: nn.Module, arguments: Mapping[str, Any] | None = None) -> Architecture:
    """What a network in memory is: one of the names, where a build of that name is the same but for its weights.

    Args:
        network: Left unchanged.
        arguments: What its class was called with, where that is known; it is not one of the names then.

    Returns:
        The named architecture; else the dotted path of its class.

    Raises:
        ConfigurationError: If it has no layer to make logits, or an argument is no plain value.
    """
    logits = count_logits(network)
    if arguments is None:
        for architecture in _namesakes(network, logits):
            with torch.device("meta"):
                built = architecture.build()
            if not differences(built.state_dict(), network.state_dict()) and built_alike(built, network):
                return architecture
    return Architecture(dotted_path(network), logits, arguments=arguments)


def _namesakes(network: nn.Module, logits: int) -> list[Architecture]:
    """Named architectures whose builders stand where the network's class does, and that have as many parameters."""
    module, state = type(network).__module__, network.state_dict()
    if module == CifarResNet.__module__:
        return [candidate(name, state) for name in CIFAR_NETS] if "conv1.weight" in state else []
    if module.startswith(f"{TIMM.removesuffix('/')}."):
        return _timm_namesakes(network, logits)
    named = [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if torchvision.models.get_model_builder(name).__module__ == module
    ]
    if "conv1.weight" not in state or not any(head in state for head in HEADS):
        named = [name for name in named if name not in architectures()]
    return [
        candidate(name, state) if name in architectures() else Architecture(name, logits)
        for name in named
        if name in (*architectures(), *WITH_AUXILIARY_HEADS) or _trunk_size(name, network) == _own_trunk_size(network)
    ]


def _timm_namesakes(network: nn.Module, logits: int) -> list[Architecture]:
    """What a network of timm says that it was made by, where that is plain."""
    configuration = getattr(network, "pretrained_cfg", None)
    name = configuration.get("architecture") if isinstance(configuration, Mapping) else None
    arguments = getattr(network, "_model_args", None) or {}
    try:
        return [Architecture(f"{TIMM}{name}", logits, arguments=_own_arguments(arguments) or None)] if name else []
    except ConfigurationError:  # an argument that no file can hold
        return []


def _own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that say how many classes there are and where weights come from."""
    return {name: value for name, value in arguments.items() if name not in FETCHING | {"num_classes"}}


def _own_trunk_size(network: nn.Module) -> int:
    """Number of parameters of a network, less those of its head."""
    head = network.get_submodule(last_layer(network))
    return sum(one.numel() for one in network.parameters()) - sum(one.numel() for one in head.parameters())


def _trunk_size(name: str, network: nn.Module) -> int:
    """The same of one of torchvision's, by what it says of its ImageNet weights, for a head that reads as much."""
    (entry, *_) = get_model_weights(name)
    head = network.get_submodule(last_layer(network))
    rows = cast(Tensor, head.weight).shape[0]
    return int(entry.meta["num_params"]) - 1000 * sum(one.numel() // rows for one in head.parameters())


def candidate(name: str, state_dict: Mapping[str, Tensor], arguments: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture of that name with the stem, the width and the classes that the tensors have.

    Args:
        name: Of a named architecture.
        state_dict: Its tensors.
        arguments: What to build it with beside; its number of logits may be among them.

    Raises:
        CheckpointError: If there is no first convolution or no head to read them from.
        ConfigurationError: If there is none of that name, or it does not take the arguments.
    """
    name = plain_name(name)
    if arguments is not None:
        rest = {key: value for key, value in arguments.items() if key != "num_classes"}
        classes = arguments.get("num_classes", candidate(name, state_dict).num_classes)
        return replace(candidate(name, state_dict), num_classes=classes, arguments=rest)
    if name not in architectures():
        head = state_dict.get(f"{_head(name)}.weight")
        return Architecture(name, 1 if head is None else len(head))  # what does not fit is told on loading
    first, head = state_dict.get("conv1.weight"), next((state_dict[one] for one in HEADS if one in state_dict), None)
    if first is None or first.ndim != 4 or head is None or head.ndim != 2:
        raise CheckpointError(
            "The weights hold no convolution 'conv1.weight' or no linear head 'fc.weight', so they are of none of the "
            f"known architectures: {', '.join(architectures())}; if it is another, say so: {SAY_SO}."
        )
    width = max(1, len(first) // 16) if name in CIFAR_NETS else 1
    pooled = POOLED in state_dict
    below = state_dict.get(POOLED if pooled else "fc.0.weight")
    hidden = 0 if below is None or "fc.weight" in state_dict else len(below)
    biased = ("fc.2.bias" if hidden else "fc.bias") in state_dict
    padded = name in CIFAR_NETS and not any(".downsample." in one for one in state_dict)
    stem: Stem = "small" if first.shape[-1] == 3 else "imagenet"
    shortcut: Shortcut = "padding" if padded else "projection"
    return Architecture(name, len(head), stem, width, None, hidden, biased, shortcut, "fastai" if pooled else "plain")


@lru_cache
def _head(name: str) -> str:
    """Name of the layer that makes the logits of one of torchvision's networks, or of timm's."""
    if name.startswith(TIMM):
        return head_of_timm(name, build_timm(name, 2, {}, shapes=True))
    with torch.device("meta"):
        return last_layer(Architecture(name, 1).build())


@lru_cache
def blueprint(architecture: Architecture) -> Mapping[str, Tensor]:
    """Names and shapes of the tensors of an architecture, without memory behind them."""
    return architecture.tensors()


def _agreement(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> int:
    return sum(name in given and given[name].shape == tensor.shape for name, tensor in expected.items())
