"""Networks that begin with torchvision's ImageNet weights."""

from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from project.errors import CheckpointError, ConfigurationError
from project.models.architecture import CIFAR_NETS, IMAGENET_NETS, Architecture
from project.models.strict import load_body


def pretrained(architecture: Architecture, weights: str) -> nn.Module:
    """The network with torchvision's weights; its head stays random where it has other than 1000 classes.

    Args:
        architecture: One of torchvision's networks, with the ImageNet stem.
        weights: torchvision's own name, such as ``IMAGENET1K_V1``.

    Raises:
        ConfigurationError: If there are no weights of that name for the architecture.
        CheckpointError: If they are not in the cache and cannot be downloaded.
    """
    entry = find_weights(architecture, weights)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state_dict = entry.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, HTTPException, RuntimeError) as error:  # no network; broken off; another hash
        raise CheckpointError(
            f"weights is {weights!r}, but {entry.url} could not be fetched into {folder} ({error}); "
            "where there is no network, put the file there by hand."
        ) from error
    network = architecture.build()
    load_body(network, state_dict, f"{weights} of {architecture.name}")
    return network


def find_weights(architecture: Architecture, weights: str) -> WeightsEnum:
    """The entry torchvision has for the weights of that name.

    Raises:
        ConfigurationError: If there is none for the architecture.
    """
    if architecture.name in CIFAR_NETS or architecture.custom or architecture.of_timm:
        raise ConfigurationError(
            f"weights is {weights!r}, but there are no ImageNet weights of {architecture.name}, only of "
            f"{', '.join(IMAGENET_NETS)} and torchvision's other networks."
        )
    if architecture.stem != "imagenet":
        raise ConfigurationError(
            f"weights is {weights!r}, which goes with stem 'imagenet' only, but stem is {architecture.stem!r}."
        )
    allowed = {entry.name: entry for entry in get_model_weights(architecture.name)}  # without DEFAULT, which moves
    if weights not in allowed:
        raise ConfigurationError(
            f"weights is {weights!r}; allowed for {architecture.name}: {', '.join(sorted(allowed))}."
        )
    return allowed[weights]
