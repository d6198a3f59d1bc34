"""Telling an architecture from the shapes of its tensors."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from project.errors import CheckpointError
from project.models.architecture import CIFAR_NETS, Architecture, architectures
from project.models.strict import differences, summary


def recognise(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The architecture whose tensors have exactly these names and shapes.

    Raises:
        CheckpointError: If none has; the message names the nearest one and how it differs.
    """
    candidates = [candidate(name, state_dict) for name in architectures()]
    for architecture in candidates:
        if not differences(blueprint(architecture), state_dict):
            return architecture
    nearest = max(candidates, key=lambda architecture: _agreement(blueprint(architecture), state_dict))
    found = summary(differences(blueprint(nearest), state_dict))
    raise CheckpointError(
        f"The weights are of none of the known architectures ({', '.join(architectures())}); nearest is "
        f"{nearest.name}, but {found}; if it is another, say so: {{path: FILE, architecture: NAME}}."
    )


def candidate(name: str, state_dict: Mapping[str, Tensor]) -> Architecture:
    """The architecture of that name with the stem, the width and the classes that the tensors have.

    Raises:
        CheckpointError: If there is no first convolution or no head to read them from.
    """
    if name not in architectures():
        matrices = [tensor for tensor in state_dict.values() if tensor.ndim == 2]
        return Architecture(name, len(matrices[-1]) if matrices else 1)  # what does not fit is told on loading
    first, head = state_dict.get("conv1.weight"), state_dict.get("fc.weight")
    if first is None or first.ndim != 4 or head is None or head.ndim != 2:
        raise CheckpointError(
            "The weights hold no convolution 'conv1.weight' or no linear head 'fc.weight', so they are of none of the "
            f"known architectures: {', '.join(architectures())}; if it is another, say so: "
            f"{{path: FILE, architecture: NAME}}."
        )
    width = max(1, len(first) // 16) if name in CIFAR_NETS else 1
    return Architecture(name, len(head), "small" if first.shape[-1] == 3 else "imagenet", width)


@lru_cache
def blueprint(architecture: Architecture) -> Mapping[str, Tensor]:
    """Names and shapes of the tensors of an architecture, without memory behind them."""
    with torch.device("meta"):
        return architecture.build().state_dict()


def _agreement(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> int:
    return sum(name in given and given[name].shape == tensor.shape for name, tensor in expected.items())
