"""Architectures whose groups cannot be derived are refused by the name of what is in the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import PICTURE, random_network
from torch import Tensor, nn

from project.errors import TraceError
from project.models import written_out
from project.symmetry import trace


class Net(nn.Module):
    """A small network around the odd part."""

    def __init__(self, odd: nn.Module | None = None, through: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.odd = odd or nn.Identity()
        self.through = through
        self.head = nn.Linear(8, 5)
        self.table = nn.Parameter(torch.ones(8, 1, 1))
        self.still: Tensor
        self.register_buffer("still", torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.first(x))
        if self.through is not None:
            x = self.through(self, x)
        return self.head(x.mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped convolutions with a shuffle between them, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.second(x)


class Transposed(nn.Module):
    """Attention over positions, then their mean."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return self.attention(x, x, x)[0].mean(1)


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) + y


class TwoOutputs(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_the_harness_is_sound() -> None:
    assert [group.name for group in trace(Net().eval(), PICTURE).free] == ["first"]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), ("'odd'", "circular")),
        (nn.PReLU(8), ("'odd'", "PReLU")),
        (nn.ConvTranspose2d(8, 8, 3), ("'odd'", "ConvTranspose2d")),
        (nn.InstanceNorm2d(8, affine=True), ("'odd'", "InstanceNorm2d")),
        (nn.PixelShuffle(1), ("'odd'", "PixelShuffle")),
        (nn.Softmax(1), ("'odd'", "Softmax")),
        (nn.Sequential(nn.Identity(), nn.LayerNorm([8, 11, 13])), ("'odd.1'", "LayerNorm")),
    ],
)
def test_unknown_layers_are_named(odd: nn.Module, words: tuple[str, ...]) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Net(odd).eval(), PICTURE)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("through", "words"),
    [
        (lambda net, x: torch.softmax(x, 1), "softmax"),
        (lambda net, x: x * net.still, "'still' is a buffer"),
        (lambda net, x: x + x.var(1, keepdim=True), "var"),
        (lambda net, x: x.cumsum(1), "cumsum"),
        (lambda net, x: x[:, :, :8, :8] + x[:, :, :8, :8].transpose(1, 2), "units stand on different axes"),
        (
            lambda net, x: nn.functional.max_pool2d(x.permute(0, 2, 3, 1), 1).permute(0, 3, 1, 2),
            "axis 1 of a value whose units stand on axis 3",
        ),
        (lambda net, x: x + x.mean((2, 3), keepdim=True).mean((2, 3), keepdim=True).amax(1, keepdim=True), "amax"),
    ],
)
def test_unknown_calls_are_named(through: Callable[..., Tensor], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        trace(Net(through=through).eval(), PICTURE)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (nn.Sequential(nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)), ("'odd.1'", "4 blocks, another layer into 2")),
        (
            nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2)),
            ("'odd.1'", "ChannelShuffle"),
        ),
        (Shuffled(), ("'odd.second'", "do not follow their order")),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), ("added keys",)),
    ],
)
def test_blocks_that_do_not_fit_are_named(odd: nn.Module, words: tuple[str, ...]) -> None:
    if isinstance(odd, nn.MultiheadAttention):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), Transposed(odd), nn.Linear(8, 5)).eval()
    else:
        net = Net(odd).eval()
    with pytest.raises(TraceError) as caught:
        trace(written_out(net), PICTURE)
    assert all(word in str(caught.value) for word in words)


def test_the_line_of_code_is_named() -> None:
    with pytest.raises(TraceError, match=r"symmetry/test_refusals.py, line \d+: x = self.odd\(self.first\(x\)\)"):
        trace(Net(nn.Softmax(1)).eval(), PICTURE)
    with pytest.raises(TraceError, match=r"symmetry/test_refusals.py, line \d+: return super.*x.sum\(\) > 0"):
        trace(Branching().eval(), PICTURE)
    with pytest.raises(TraceError, match=r"symmetry/test_refusals.py, line \d+: x = self.odd\(self.first\(x\)\)"):
        trace(Net(nn.Conv2d(8, 8, 7)).eval(), (3, 4, 4))


def test_a_layer_that_runs_twice_is_named() -> None:
    net = Net(nn.Conv2d(8, 8, 1), lambda net, x: net.odd(x))
    with pytest.raises(TraceError, match="layer 'odd' runs more than once"):
        trace(net.eval(), PICTURE)


def test_training_mode_is_refused() -> None:
    with pytest.raises(TraceError, match="training mode"):
        trace(random_network(0).train(), PICTURE)


def test_two_inputs_are_refused() -> None:
    with pytest.raises(TraceError, match=r"'y'|does not run"):
        trace(TwoInputs().eval(), PICTURE)


def test_more_than_logits_is_refused() -> None:
    with pytest.raises(TraceError, match="logits"):
        trace(TwoOutputs().eval(), PICTURE)


def test_control_flow_is_refused() -> None:
    with pytest.raises(TraceError, match="cannot be traced"):
        trace(Branching().eval(), PICTURE)


def test_pictures_that_are_too_small_are_refused() -> None:
    net = Net(nn.Conv2d(8, 8, 7))
    with pytest.raises(TraceError, match="does not run on pictures"):
        trace(net.eval(), (3, 4, 4))


def test_a_linear_layer_on_maps_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(11, 6), nn.Flatten(), nn.Linear(216, 5)).eval()
    with pytest.raises(TraceError, match="layer '1' is a layer on axis 3 of a value whose units stand on axis 1"):
        trace(net, PICTURE)


def test_a_norm_over_flattened_maps_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(396), nn.Linear(396, 5)).eval()
    with pytest.raises(TraceError, match="layer '2'"):
        trace(net, PICTURE)


def test_logits_tied_to_channels_are_refused() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3)).eval()
    with pytest.raises(TraceError, match="tied"):
        trace(net, PICTURE)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_values_that_are_none() -> None:
    network = Net()
    network.head = nn.Linear(8, 0)
    with pytest.raises(TraceError, match=r"'head' makes values of shape \(\d+, 0\), which are none"):
        trace(network.eval(), PICTURE)
