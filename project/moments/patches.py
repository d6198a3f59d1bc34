"""The vectors that a layer multiplies: patches of a convolution, features of a linear layer."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

CHUNK_BYTES = 256 * 2**20  # patches held at once


def joint_columns(values: Sequence[Tensor], layers: Sequence[nn.Module], *, constant: bool) -> Iterator[Tensor]:
    """Columns u = (z¹; …; z^N; 1) of one layer in all sources, in chunks of limited size.

    Args:
        values: What the layer reads in every source, on the same pictures: (batch, channels, height, width), or
            (batch, …, features), where every position is a sample.
        layers: The layer of every source: ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.
        constant: Whether to append a 1, for layers that add a constant.

    Yields:
        Float32, shape (Σ inputs · taps (+ 1), samples); entries in the order of ``weight.flatten(1)``, a sample for
        every picture and output position.
    """
    values = [flat(value, layer) for value, layer in zip(values, layers, strict=True)]
    sizes = [_inputs(value, layer) for value, layer in zip(values, layers, strict=True)]
    positions = _output_size(values[0], layers[0])
    step = max(1, CHUNK_BYTES // (4 * sum(sizes) * positions.numel()))
    for chunk in zip(*(torch.split(value, step) for value in values), strict=True):
        batch = chunk[0].shape[0]
        columns = torch.empty(sum(sizes) + constant, batch * positions.numel(), device=chunk[0].device)
        for part, value, layer in zip(torch.split(columns[: sum(sizes)], sizes), chunk, layers, strict=True):
            _write(part, value, layer, positions)
        columns[sum(sizes) :] = 1.0
        yield columns


def flat(values: Tensor, layer: nn.Module) -> Tensor:
    """What a layer reads or writes, the positions of a linear layer as samples: (samples, features)."""
    return values.flatten(0, -2) if isinstance(layer, nn.Linear) else values


def cross_moment(targets: Tensor, values: Tensor, layer: nn.Module, *, constant: bool) -> Tensor:
    """The sum over samples of t zᵀ for targets t of a layer and its inputs z, without unfolding.

    For a convolution this is the gradient of ⟨t, layer(z)⟩ with respect to its weight.

    Args:
        targets: Shape of the layer's output: (batch, outputs, height, width), or (samples, outputs).
        values: What the layer reads; see :func:`flat`.
        layer: An ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.
        constant: Whether to append a 1 to z.

    Returns:
        Float32, shape (outputs, inputs · taps (+ 1)).
    """
    if isinstance(layer, nn.Conv2d):
        padded = F.pad(values, _padding(layer))
        shape = torch.Size((targets.shape[1], values.shape[1], *layer.kernel_size))
        with _exact_convolutions():
            cross: Tensor = conv2d_weight(padded, shape, targets, layer.stride, 0, layer.dilation)  # type: ignore[no-untyped-call]
        cross = cross.flatten(1)
        sums = targets.sum((0, 2, 3))
    else:
        cross, sums = targets.mT @ values, targets.sum(0)
    return torch.cat([cross, sums[:, None]], 1) if constant else cross


def unit_columns(values: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Columns (a¹; …; a^N; 1) of one value of the graph in all sources: every picture position is a sample.

    Args:
        values: One for each source, such as (batch, units) or (batch, units, height, width).
        dim: Axis of the units.

    Returns:
        Float32, shape (Σ units + 1, samples).
    """
    units = [value.float().movedim(dim, 0).flatten(1) for value in values]
    return torch.cat([*units, units[0].new_ones(1, units[0].shape[1])])


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Without TF32, everything else as the user has set it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _inputs(value: Tensor, layer: nn.Module) -> int:
    """Entries of z: as many as the values have, whatever width the layer was made for."""
    return value.shape[1] * (cast(int, math.prod(layer.kernel_size)) if isinstance(layer, nn.Conv2d) else 1)


def _output_size(value: Tensor, layer: nn.Module) -> torch.Size:
    if not isinstance(layer, nn.Conv2d):
        return torch.Size((1, 1))
    left, right, top, bottom = _padding(layer)
    sides = zip(
        (top + bottom, left + right), value.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
    )
    return torch.Size((padded + side - d * (k - 1) - 1) // s + 1 for padded, side, k, s, d in sides)


def _write(part: Tensor, value: Tensor, layer: nn.Module, positions: torch.Size) -> None:
    """Write one source's patches, a tap at a time, each one strided copy."""
    if not isinstance(layer, nn.Conv2d):
        part.copy_(value.mT)
        return
    padded = F.pad(value, _padding(layer)).transpose(0, 1)
    (tall, wide), (down, right), (apart, aside) = layer.kernel_size, layer.stride, layer.dilation
    target = part.view(padded.shape[0], tall, wide, value.shape[0], *positions)
    for i in range(tall):
        for j in range(wide):
            rows = slice(i * apart, i * apart + (positions[0] - 1) * down + 1, down)
            cols = slice(j * aside, j * aside + (positions[1] - 1) * right + 1, right)
            target[:, i, j].copy_(padded[:, :, rows, cols])


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros at (left, right, top, bottom); "same" puts the odd one out at the end, as torch does."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2
    down, right = (int(side) for side in layer.padding)
    return right, right, down, down
