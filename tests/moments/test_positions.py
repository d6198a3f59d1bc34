"""Patches and values at drawn positions against all of them, unfolded."""

import itertools

import pytest
import torch
from helpers import unfolded
from torch import Tensor, nn

from project.moments import draw_positions, patches_at, positions_of, values_at

SHAPES = list(itertools.product((1, 2, (3, 1), 3), (1, 2, (2, 3)), (0, 1, (2, 0), "same"), (1, (1, 2))))


def pick(samples: Tensor, places: Tensor) -> Tensor:
    """Drawn columns of (…, batch · positions); shape (batch · drawn, …)."""
    by_picture = samples.view(len(samples), len(places), -1)
    return torch.cat([one[:, there].T for one, there in zip(by_picture.unbind(1), places, strict=True)])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_a_convolution_reads_and_writes() -> None:
    for kernel, stride, padding, dilation in SHAPES:
        if padding == "same" and stride != 1:
            continue
        layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=False).double()
        values = torch.randn(5, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        out = layer(values)
        places = draw_positions(values, layer, 4, 0)
        assert positions_of(values, layer) == out[0, 0].numel()
        assert places.shape == (5, max(1, out[0, 0].numel() // 4))
        patches, written = patches_at(values, layer, places), values_at(out, layer, places)
        assert torch.equal(patches, pick(unfolded(values, layer), places))
        assert torch.equal(written, pick(out.transpose(0, 1).flatten(1), places))
        assert torch.allclose(patches @ layer.weight.flatten(1).T, written)


@pytest.mark.parametrize("shape", [(5, 7), (5, 6, 7), (5, 2, 3, 7)])
def test_what_a_linear_layer_reads_and_writes(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(7, 4).double()
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = draw_positions(values, layer, 3, 1)
    expected = [one.view(-1, 7)[there] for one, there in zip(values, places, strict=True)]
    assert torch.equal(patches_at(values, layer, places), torch.cat(expected))
    assert torch.allclose(values_at(layer(values), layer, places), layer(torch.cat(expected)))


def test_each_picture_has_its_own_and_none_twice() -> None:
    layer, values = nn.Conv2d(3, 4, 3), torch.zeros(50, 3, 10, 10)
    places = draw_positions(values, layer, 2, 3)
    assert all(len(one.unique()) == 32 for one in places)
    assert len({tuple(one.sort().values.tolist()) for one in places}) == 50
    assert torch.equal(places, draw_positions(values, layer, 2, 3))
    assert not torch.equal(places, draw_positions(values, layer, 2, 4))
    counts = torch.bincount(places.flatten(), minlength=64)
    assert int(counts.min()) > 10
    assert int(counts.max()) < 40
    assert torch.equal(draw_positions(values, layer, 1, 3).sort(1).values, torch.arange(64).expand(50, 64))
