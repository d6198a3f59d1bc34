"""Which precision products are made in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import pictures, unfolded
from torch import nn

from project.moments import exact_products, layer_moment

cudnn: Any = torch.backends.cudnn
NEW = hasattr(cudnn, "conv")
SETTINGS: dict[str, Callable[[], None]] = {
    "as torch has it": lambda: None,
    "switched off": lambda: setattr(cudnn, "allow_tf32", False),
    "all of cuDNN": lambda: setattr(cudnn, "fp32_precision", "tf32"),
    "everywhere": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
}
if NEW:
    SETTINGS["convolutions alone"] = lambda: setattr(cudnn.conv, "fp32_precision", "ieee")


def state() -> tuple[Any, ...]:
    try:
        readable = cudnn.allow_tf32
    except RuntimeError:
        readable = None
    return (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, readable) if NEW else (readable,)


@pytest.mark.parametrize("name", SETTINGS)
def test_convolutions_do_without_tf32_whatever_was_set_and_it_is_set_again_afterwards(name: str) -> None:
    try:
        SETTINGS[name]()
        before = state()
        with exact_products(torch.device("cpu")), exact_products(torch.device("cpu")):
            assert not (cudnn.conv.fp32_precision == "tf32" if NEW else cudnn.allow_tf32)
        assert state() == before
    finally:
        for parent in (torch.backends, cudnn) if NEW else ():
            parent.fp32_precision = "none"
        cudnn.allow_tf32 = True  # torch's default, for convolutions and the rest


def test_long_sums_are_as_exact_as_short_ones() -> None:
    """Products of some thousand samples each: float32 alone would lose digits with the number of samples."""
    layer, values = nn.Conv2d(3, 4, 3, 2, 1), pictures(64, 0, (3, 64, 64)).abs()
    exact = unfolded(values, layer)
    found = layer_moment(layer, 3, (64, 64), constant=False)
    found.read([values])
    wanted = exact @ exact.mT
    assert float(((found.sum() - wanted).abs() / wanted).max()) < 2e-6
