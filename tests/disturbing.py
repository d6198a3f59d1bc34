"""Weights and pictures as another rounding could have left them: what hangs on their last digits then fails."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from project.data import transforms

SHARE = float(os.environ.get("PLEAS_TEST_DISTURB", "0"))
"""Standard deviation of a disturbance, over the number that is disturbed; 0 disturbs nothing."""
INITIALISERS = ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_")


def disturbed(tensor: Tensor) -> Tensor:
    """The tensor times 1 + ``SHARE`` · noise, which hangs on its values alone: equal tensors stay equal."""
    if not SHARE or tensor.is_meta or not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(zlib.crc32(tensor.detach().contiguous().numpy().tobytes()))
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
    return (tensor * (1 + SHARE * noise)).to(tensor.dtype)


@torch.no_grad()
def disturb(network: nn.Module) -> nn.Module:
    """The network, all its parameters and buffers disturbed in place."""
    for tensor in network.state_dict().values():
        tensor.copy_(disturbed(tensor))
    return network


@contextmanager
def disturbance() -> Iterator[None]:
    """Within it, fresh layers have disturbed weights, and files are read as disturbed pictures."""
    if not SHARE:
        yield
        return
    compose = transforms._compose

    def initialising(initialise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @torch.no_grad()
        def wrapped(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return tensor.copy_(disturbed(initialise(tensor, *args, **kwargs)))

        return wrapped

    def composed(*args: Any) -> transforms.Transform:
        transform = compose(*args)
        return lambda picture: disturbed(transform(picture))

    with pytest.MonkeyPatch.context() as patch:
        for name in INITIALISERS:
            patch.setattr(nn.init, name, initialising(getattr(nn.init, name)))
        patch.setattr(transforms, "_compose", composed)
        yield
