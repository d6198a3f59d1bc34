"""Whether tensors can be the weights of a trained network: the one door through which all sources come."""

from collections.abc import Mapping

import torch
from torch import Tensor

from project.errors import PleasError


def sound_state(tensors: Mapping[str, Tensor], origin: str, error: type[PleasError]) -> dict[str, Tensor]:
    """Bring floating tensors to float32 on the CPU, and refuse what no network can have been trained to.

    Args:
        tensors: Parameters and buffers by name; counters and indices among them stay as they are.
        origin: What messages call their file or network.
        error: What to raise.

    Returns:
        The same, copied only where they were of another type.

    Raises:
        error: If one is sparse, quantised, complex or without values, holds values that are not finite or that float32
            cannot hold, or a negative running variance; the message names it.
    """
    return {name: _sound(name, tensor, origin, error) for name, tensor in tensors.items()}


def _sound(name: str, tensor: Tensor, origin: str, error: type[PleasError]) -> Tensor:
    if kind := unusable_kind(tensor):
        raise error(f"{origin} holds {name!r}, which is {kind}; allowed: plain tensors of floating numbers.")
    tensor = tensor.detach()
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    single = tensor.float()
    least, most = map(float, torch.aminmax(single))  # nan where there is one
    if not (-torch.inf < least <= most < torch.inf):
        if bool(tensor.isfinite().all()):
            raise error(
                f"{origin} holds values in {name!r} up to {float(tensor.abs().max()):.1e}, of which float32 holds none "
                f"above {torch.finfo(torch.float32).max:.1e}."
            )
        raise error(f"{origin} holds values in {name!r} that are not finite.")
    if name.endswith("running_var") and least < 0:
        raise error(f"{origin} holds negative variances in {name!r}, down to {least:.1e}.")
    return single


def unusable_kind(tensor: Tensor) -> str | None:
    """Why a tensor can be no weights, whatever its values; None if it can."""
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    return None


def check_varied(tensors: Mapping[str, Tensor], origin: str, error: type[PleasError]) -> None:
    """Refuse a network that was never trained, or whose values were lost: each of its layers holds one number only.

    Norms begin with ones and zeros, and the last layer of a branch or a head with zeros, so that one layer tells
    nothing; in a network whose layers are all so, all units of a layer are the same.

    Args:
        tensors: Parameters and buffers by name.
        origin: What messages call their file or network.
        error: What to raise.

    Raises:
        error: With the number, where there is one for all layers.
    """
    layers = {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if name.endswith("weight") and tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() > 1
    }
    ends = [tuple(map(float, torch.aminmax(tensor))) for tensor in layers.values()]
    if not ends or any(least != most for least, most in ends):
        return
    values = {least for least, _ in ends}
    what = f"is {values.pop():g} throughout" if len(values) == 1 else "holds one number throughout"
    raise error(f"{origin} was never trained, or its values are lost: every layer's weight {what}.")
