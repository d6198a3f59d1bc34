"""Moments of grouped convolutions against float64 sums over the patches of each block."""

import itertools

import pytest
import torch
from helpers import unfolded
from torch import Tensor, nn

from project.moments import GroupedMoment, cross_moment

Sides = int | tuple[int, int]
WIDTHS = ((4, 4), (4, 8), (6, 3), (6, 2))
SHAPES = list(itertools.product((1, 3, (2, 3)), (1, 2, (2, 3)), (0, 1, (2, 0)), (1, 2), WIDTHS))


def whole(*shape: int, seed: int) -> Tensor:
    """Small whole numbers: products and sums of them are exact in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def grouped(kernel: Sides, stride: Sides, padding: Sides, dilation: int, widths: tuple[int, int]) -> nn.Conv2d:
    """From ``widths[0]`` channels in as many blocks as both widths can be divided into."""
    inputs, other = widths
    blocks = min(widths)
    return nn.Conv2d(inputs, max(other, blocks), kernel, stride, padding, dilation, groups=blocks)


def patches(value: Tensor, layer: nn.Conv2d) -> Tensor:
    """Shape (blocks, inputs of a block · taps + 1, samples), float64."""
    columns = unfolded(value, layer)
    columns = columns.view(layer.groups, -1, columns.shape[1])
    return torch.cat([columns, columns.new_ones(layer.groups, 1, columns.shape[2])], 1)


@pytest.mark.parametrize("constant", [True, False])
def test_every_grouped_convolution(constant: bool) -> None:
    for kernel, stride, padding, dilation, widths in SHAPES:
        layer = grouped(kernel, stride, padding, dilation, widths)
        batches = [whole(2, layer.in_channels, 9, 8, seed=0), whole(3, layer.in_channels, 9, 8, seed=1)]
        moment = GroupedMoment(layer, constant=constant)
        expected, samples = 0.0, 0
        for batch in batches:
            moment.read([batch])
            x = patches(batch, layer)[:, : None if constant else -1]
            expected, samples = expected + x @ x.mT, samples + x.shape[2]
        assert moment.count == samples
        assert torch.equal(moment.totals[0], expected), (kernel, stride, padding, dilation, widths)
        assert torch.equal(moment.mean(), expected / samples)


@pytest.mark.parametrize("constant", [True, False])
def test_products_with_targets(constant: bool) -> None:
    for kernel, stride, padding, dilation, widths in SHAPES:
        layer = grouped(kernel, stride, padding, dilation, widths)
        batch = whole(3, layer.in_channels, 9, 8, seed=2)
        targets = whole(*layer(batch).shape, seed=3)
        found = cross_moment(targets, batch, layer, constant=constant)
        t = targets.double().transpose(0, 1).flatten(1).view(layer.groups, layer.out_channels // layer.groups, -1)
        expected = (t @ patches(batch, layer)[:, : None if constant else -1].mT).flatten(0, 1)
        assert torch.equal(found.double(), expected), (kernel, stride, padding, dilation, widths)


def test_pieces_add_up_and_shards_do() -> None:
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=3)
    first, second = (whole(2, 6, 5, 7, seed=seed) for seed in (4, 5))
    one, other, both = (GroupedMoment(layer, constant=True) for _ in range(3))
    one.read([first])
    other.read([second])
    both.read([torch.cat([first, second])])
    one.add(other)
    assert one.count == both.count
    assert torch.equal(one.mean(), both.mean())
