"""Patches and values at drawn positions against all of them, unfolded."""

import itertools
import math

import pytest
import torch
from helpers import unfolded
from torch import Tensor, nn

from project.moments import Positions

SHAPES = list(itertools.product((1, 2, (3, 1), 3), (1, 2, (2, 3)), (0, 1, (2, 0), "same"), (1, (1, 2))))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pick(samples: Tensor, places: Tensor) -> Tensor:
    """SampledPositions columns of (…, batch · positions); shape (batch · drawn, …)."""
    by_picture = samples.view(len(samples), len(places), -1)
    return torch.cat([one[:, there].T for one, there in zip(by_picture.unbind(1), places, strict=True)])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_a_convolution_reads_and_writes() -> None:
    for kernel, stride, padding, dilation in SHAPES:
        if padding == "same" and stride != 1:
            continue
        layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=False).double()
        values = random(5, 3, 9, 8)
        out = layer(values)
        drawn = Positions.draw(values, layer, 4, 0)
        assert drawn.places.shape == (5, max(1, out[0, 0].numel() // 4))
        patches, written = drawn.inputs(values), drawn.outputs(out)
        assert torch.equal(patches, pick(unfolded(values, layer), drawn.places))
        assert torch.equal(written, pick(out.transpose(0, 1).flatten(1), drawn.places))
        assert torch.allclose(patches @ layer.weight.flatten(1).T, written)
        everywhere = random(5, 4, 1, 1)  # such as a mean over positions that is added to the output
        assert torch.equal(drawn.outputs(everywhere), everywhere.flatten(1).repeat_interleave(drawn.places.shape[1], 0))


@pytest.mark.parametrize("shape", [(5, 7), (5, 6, 7), (5, 2, 3, 7)])
def test_what_a_linear_layer_reads_and_writes(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(7, 4).double()
    values = random(*shape)
    if len(shape) == 4:
        values = values.permute(0, 2, 1, 3)  # not in the order in which it lies in memory
    drawn = Positions.draw(values, layer, 3, 1)
    expected = [one.reshape(-1, 7)[there] for one, there in zip(values, drawn.places, strict=True)]
    assert torch.equal(drawn.inputs(values), torch.cat(expected))
    assert torch.allclose(drawn.outputs(layer(values)), layer(torch.cat(expected)))


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 63, 64, 100])
def test_each_picture_has_its_own_and_none_twice(step: int) -> None:
    layer, values = nn.Conv2d(3, 4, 3), torch.zeros(50, 3, 10, 10)
    places = Positions.draw(values, layer, step, 3).places
    assert places.shape == (50, max(1, 64 // step))
    assert all(len(one.unique()) == len(one) for one in places)
    assert torch.equal(places, Positions.draw(values, layer, step, 3).places)
    if step == 1:
        assert torch.equal(places, torch.arange(64).expand(50, 64))
        return
    assert len({tuple(one.tolist()) for one in places}) > 10
    assert not torch.equal(places, Positions.draw(values, layer, step, 4).places)


@pytest.mark.parametrize("step", [2, 3, 8])
def test_every_position_is_as_likely(step: int) -> None:
    layer, values = nn.Conv2d(3, 4, 3), torch.zeros(4000, 3, 10, 10)
    counts = torch.bincount(Positions.draw(values, layer, step, 0).places.flatten(), minlength=64).double()
    runs = 64 / (64 // step)  # as long on average: a run of one more is drawn from a little less often
    likely = 4000 / runs
    spread = math.sqrt(likely * (1 - 1 / runs))
    assert float((counts - likely).abs().max()) < 5 * spread + likely / step * (64 % (64 // step) > 0)


def test_a_batch_without_pictures_has_none() -> None:
    assert Positions.draw(torch.zeros(0, 3, 6, 6), nn.Conv2d(3, 4, 3), 2, 0).places.shape == (0, 8)
