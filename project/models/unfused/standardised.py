"""Convolutions that compute the weight they convolve with, as plain ones that hold it.

Weight standardisation (Qiao et al., arXiv 1903.10520; scaled, Brock et al., arXiv 2101.08692) subtracts from each row
of a weight its mean and divides by its deviation. What is merged, fitted and kept is the row that comes of it: a fit
of the raw row could reach but a part of all rows, and of two raw rows, which may be any multiple of each other, the
mean is not that of what they do.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PICTURES = 4
"""How many random pictures a layer must answer as the plain one does."""
ROUNDING = 1e-3
"""Largest difference of the answers, relative to the largest answer, that is rounding."""


class _Convolutions(TorchFunctionMode):
    """Notes with what a module convolves, and what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d:
            self.seen.append((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def weights_computed(network: nn.Module) -> None:
    """Let every convolution that computes its weight from its own tensors hold the weight that it computes.

    Args:
        network: Changed in place: such layers become plain convolutions of the same function in eval mode.
    """
    for owner in list(network.modules()):
        for name, layer in list(owner.named_children()):
            plain = _plain(layer) if isinstance(layer, nn.Conv2d) else None
            if plain is not None:
                owner._modules[name] = plain


def _plain(layer: nn.Conv2d) -> nn.Conv2d | None:
    """The plain convolution that a layer amounts to, if it does and is not one."""
    if type(layer).forward is nn.Conv2d.forward or layer.padding_mode != "zeros":
        return None
    sides = [dilation * (size - 1) + 1 for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    shape = (1, layer.in_channels, *sides)
    picture = layer.weight.new_zeros(shape)
    noted = _Convolutions()
    try:
        with noted:
            layer(picture)
    except (RuntimeError, TypeError, ValueError):
        return None  # it reads something else
    if len(noted.seen) != 1:
        return None
    read, weight, bias, *geometry = noted.seen[0]
    own = [layer.stride, layer.padding, layer.dilation, layer.groups]
    if read is not picture or weight is layer.weight or bias is not layer.bias or list(geometry) != own:
        return None
    padding = layer.padding if isinstance(layer.padding, str) else cast(tuple[int, int], layer.padding)
    result = nn.Conv2d(
        layer.in_channels, layer.out_channels, cast(tuple[int, int], layer.kernel_size),
        cast(tuple[int, int], layer.stride), padding, cast(tuple[int, int], layer.dilation), layer.groups,
        layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype,
    )  # fmt: skip
    result.weight.copy_(cast(Tensor, weight))
    if layer.bias is not None:
        cast(Tensor, result.bias).copy_(layer.bias)
    if not result.weight.is_meta and not _same_function(layer, result, shape):
        return None  # it does more, or computes its weight from what it reads
    return result.train(layer.training)


def _same_function(layer: nn.Module, plain: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer answers random pictures as the plain one does, but for rounding."""
    weight = cast(Tensor, plain.weight)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(PICTURES, *shape[1:], generator=generator).to(weight)
    expected, found = layer(pictures), plain(pictures)
    return expected.shape == found.shape and bool((expected - found).abs().max() <= ROUNDING * expected.abs().max())
