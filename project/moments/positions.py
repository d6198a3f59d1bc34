"""Some positions of what a layer reads and writes, each a sample of its own.

Neighbouring positions of a picture say much the same. Where a picture has thousands of them, leaving out most costs
little accuracy; a patch that is read alone is a sample of a linear layer.
"""

from itertools import product

import torch
from torch import Tensor, nn

from project.moments.patches import geometry, padded


def draw_positions(values: Tensor, layer: nn.Module, step: int, seed: int) -> Tensor:
    """Positions of a layer's output, drawn for every picture by itself, none of them twice.

    Args:
        values: What the layer reads: (batch, channels, height, width), or (batch, …, features).
        layer: ``nn.Conv2d`` or ``nn.Linear``.
        step: One position in so many is drawn, at least one.
        seed: The same seed draws the same positions.

    Returns:
        Their numbers, row by row, shape (batch, drawn), on the values' device.
    """
    count = positions_of(values, layer)
    order = torch.rand(len(values), count, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order[:, : max(1, count // step)].to(values.device)


def positions_of(values: Tensor, layer: nn.Module) -> int:
    """How many positions a layer puts out for each picture of what it reads."""
    if isinstance(layer, nn.Conv2d):
        tall, wide = geometry(layer, values.shape[2:]).positions
        return tall * wide
    return values[0, ..., 0].numel()


def values_at(values: Tensor, layer: nn.Module, places: Tensor) -> Tensor:
    """What a layer puts out at some positions.

    Args:
        values: Its output, such as (batch, units, height, width) or (batch, …, units).
        layer: The layer.
        places: From :func:`draw_positions`.

    Returns:
        Shape (batch · drawn, units).
    """
    rows = values.flatten(2).mT if isinstance(layer, nn.Conv2d) else values.view(len(values), -1, values.shape[-1])
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)


def patches_at(values: Tensor, layer: nn.Module, places: Tensor) -> Tensor:
    """What a layer multiplies at some positions of its output.

    Args:
        values: What it reads, see :func:`draw_positions`.
        layer: ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.
        places: From :func:`draw_positions`.

    Returns:
        Shape (batch · drawn, inputs · taps), entries in the order of ``weight.flatten(1)``.
    """
    if not isinstance(layer, nn.Conv2d):
        return values_at(values, layer, places)
    shape = geometry(layer, values.shape[2:])
    maps = padded(values, shape)
    rows, width = maps.permute(0, 2, 3, 1).flatten(0, 2), maps.shape[3]  # a row for every place of every map
    top, left = places // shape.positions[1] * shape.stride[0], places % shape.positions[1] * shape.stride[1]
    corner = torch.arange(len(values), device=places.device)[:, None] * maps.shape[2] * width + top * width + left
    found = rows.new_empty(corner.numel(), values.shape[1], shape.kernel[0] * shape.kernel[1])
    for tap, (i, j) in enumerate(product(*map(range, shape.kernel))):
        there = corner + i * shape.dilation[0] * width + j * shape.dilation[1]
        found[:, :, tap] = rows[there.flatten()]
    return found.flatten(1)
