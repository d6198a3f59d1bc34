"""The vectors that a layer multiplies: unfolded patches of a convolution, features of a linear layer."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20  # rows held at once


def unfold(values: Tensor, layer: nn.Module) -> Tensor:
    """Inputs of a layer as the vectors its weight matrix multiplies.

    Args:
        values: What the layer reads: (batch, channels, height, width), or (batch, features).
        layer: An ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.

    Returns:
        Shape (batch, positions, inputs · taps), a view where possible; entry order is that of ``weight.flatten(1)``.
    """
    if not isinstance(layer, nn.Conv2d):
        return values[:, None, :]
    if layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "same", "valid"):
        down, right = layer.stride
        return values[:, :, ::down, ::right].flatten(2).mT
    return F.unfold(F.pad(values, _padding(layer)), layer.kernel_size, layer.dilation, 0, layer.stride).mT


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros at (left, right, top, bottom); "same" puts the odd one out at the end, as torch does."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2
    down, right = (int(side) for side in layer.padding)
    return right, right, down, down


def joint_rows(values: Sequence[Tensor], layers: Sequence[nn.Module], *, constant: bool) -> Iterator[Tensor]:
    """Rows u = (z¹; …; z^N; 1) of one layer in all sources, in chunks of limited size.

    Args:
        values: The layer's input in every source, on the same pictures.
        layers: The layer of every source.
        constant: Whether to append a 1, for layers that add a constant.

    Yields:
        Float32, shape (samples, Σ inputs · taps (+ 1)).
    """
    batch = values[0].shape[0]
    step = max(1, CHUNK_BYTES * batch // max(1, 4 * sum(_entries(v, m) for v, m in zip(values, layers, strict=True))))
    for start in range(0, batch, step):
        parts = [unfold(v[start : start + step].float(), m) for v, m in zip(values, layers, strict=True)]
        if constant:
            parts.append(parts[0].new_ones(*parts[0].shape[:2], 1))
        yield torch.cat(parts, dim=2).flatten(0, 1)


def _entries(values: Tensor, layer: nn.Module) -> int:
    """Numbers in a layer's unfolded inputs, from the shape of one picture's."""
    return values.shape[0] * unfold(values[:1].float(), layer).numel()


def unit_rows(values: Sequence[Tensor]) -> Tensor:
    """Rows (a¹; …; a^N; 1) of one value of the graph in all sources: every picture position is a sample.

    Args:
        values: Shape (batch, units) or (batch, units, height, width), one for each source.

    Returns:
        Float32, shape (samples, Σ units + 1).
    """
    flat = [value.float().flatten(2) if value.dim() > 2 else value.float()[:, :, None] for value in values]
    rows = torch.cat([*flat, torch.ones_like(flat[0][:, :1])], dim=1)
    return rows.mT.flatten(0, 1)
