"""Putting tensors into a network, with an account of what does not fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from project.errors import CheckpointError

DIFFERENCES_SHOWN = 4


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the given tensors from being the expected ones, a phrase for each.

    Batch counters may be missing: files from before PyTorch 0.4.1 have none, and nothing here reads them.
    """
    missing = [f"{name} is missing" for name in expected if name not in given and not _is_counter(name)]
    unexpected = [f"{name} is not expected" for name in given if name not in expected]
    mismatched = [
        f"{name} is {_shape(given[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return missing + unexpected + mismatched


def check_strictly(network: nn.Module, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that are not exactly a network's, which may be without memory.

    Args:
        network: The network.
        state_dict: The tensors.
        origin: Where they come from, for the message.

    Raises:
        CheckpointError: If a tensor is missing, not expected, of another shape, or of integers where the network's
            own has floating numbers.
    """
    own = network.state_dict()
    if found := differences(own, state_dict):
        raise CheckpointError(f"{origin} does not fit the architecture: {summary(found)}.")
    for name, tensor in state_dict.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{origin} holds {name!r} of type {kind}; allowed: floating numbers.")


def load_strictly(network: nn.Module, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Copy all tensors into the network, in place.

    Args:
        network: Receives the values.
        state_dict: Exactly the network's tensors.
        origin: Where they come from, for the message.

    Raises:
        CheckpointError: See :func:`check_strictly`; the network is then unchanged.
    """
    check_strictly(network, state_dict, origin)
    counters = {name: torch.zeros_like(t) for name, t in network.state_dict().items() if _is_counter(name)}
    network.load_state_dict(counters | dict(state_dict))


def load_body(network: nn.Module, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Copy all tensors into the network, in place, but leave its own head where the given one has another width.

    Raises:
        CheckpointError: If anything but the head does not fit.
    """
    own = network.state_dict()
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    prefix = f"{last[0]}." if last else "fc."
    head = {name: tensor for name, tensor in own.items() if name.startswith(prefix)}
    if any(name not in state_dict or len(state_dict[name]) != len(tensor) for name, tensor in head.items()):
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)} | head
    load_strictly(network, state_dict, origin)


def summary(found: list[str]) -> str:
    """The first few phrases and how many more there are."""
    more = f" and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
    return "; ".join(found[:DIFFERENCES_SHOWN]) + more


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"
