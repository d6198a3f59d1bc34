"""From a file of weights to a network that runs."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from project.errors import CheckpointError
from project.models.architecture import Architecture
from project.models.files import Weights, read_weights
from project.models.recognise import candidate, recognise
from project.models.strict import load_strictly


def load_network(path: str | Path, architecture: Architecture | str | None = None) -> tuple[nn.Module, Weights]:
    """Read a file of weights and build the network that they belong to.

    Args:
        path: File of weights, see :func:`~project.models.files.read_weights`.
        architecture: The network or its name; by default what the file says, or else what the shapes tell.

    Returns:
        The network in evaluation mode, and what was read, its architecture filled in. They share no memory.

    Raises:
        CheckpointError: If the file cannot be read, or its tensors are not those of the architecture.
        ConfigurationError: If the name of the architecture is not known.
    """
    return build_network(read_weights(path), architecture)


def build_network(weights: Weights, architecture: Architecture | str | None = None) -> tuple[nn.Module, Weights]:
    """Build the network that weights belong to; see :func:`load_network`."""
    try:
        if isinstance(architecture, str):
            architecture = candidate(architecture, weights.state_dict)
        architecture = architecture or weights.architecture or recognise(weights.state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    with torch.device("meta"):  # no random numbers are drawn, so a seed means the same with and without loading
        network = architecture.build()
    network.to_empty(device="cpu")
    load_strictly(network, weights.state_dict, str(weights.path))
    return network.eval(), replace(weights, architecture=architecture)
