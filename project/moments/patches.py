"""The vectors that a layer multiplies: patches of a convolution, features of a linear layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20  # patches held at once


def joint_columns(values: Sequence[Tensor], layers: Sequence[nn.Module], *, constant: bool) -> Iterator[Tensor]:
    """Columns u = (z¹; …; z^N; 1) of one layer in all sources, in chunks of limited size.

    Args:
        values: What the layer reads in every source, on the same pictures: (batch, channels, height, width), or
            (batch, …, features), where every position is a sample.
        layers: The layer of every source: ``nn.Conv2d`` (zero padding) or ``nn.Linear``.
        constant: Whether to append a 1, for layers that add a constant.

    Yields:
        Float32, shape (Σ inputs · taps (+ 1), samples); entries in the order of ``weight.flatten(1)``, a sample for
        every picture and output position.
    """
    values = [flat(value, layer) for value, layer in zip(values, layers, strict=True)]
    sizes = [_inputs(value, layer) for value, layer in zip(values, layers, strict=True)]
    shapes = [
        geometry(layer, v.shape[2:]) if isinstance(layer, nn.Conv2d) else None
        for v, layer in zip(values, layers, strict=True)
    ]
    positions = 1 if shapes[0] is None else math.prod(shapes[0].positions)
    step = max(1, CHUNK_BYTES // (4 * sum(sizes) * positions))
    for chunk in zip(*(torch.split(value, step) for value in values), strict=True):
        samples = len(chunk[0]) * positions
        columns = torch.empty(sum(sizes) + constant, samples, dtype=torch.float32, device=chunk[0].device)
        for part, value, shape in zip(torch.split(columns[: sum(sizes)], sizes), chunk, shapes, strict=True):
            if shape is None:
                part.copy_(value.mT)
            else:
                _write(part, value, shape)
        columns[sum(sizes) :] = 1.0
        yield columns


def flat(values: Tensor, layer: nn.Module) -> Tensor:
    """What a layer reads or writes, the positions of a linear layer as samples: (samples, features)."""
    return values.flatten(0, -2) if isinstance(layer, nn.Linear) else values


def unit_columns(values: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Columns (a¹; …; a^N; 1) of one value of the graph in all sources: every picture position is a sample.

    Args:
        values: One for each source, such as (batch, units) or (batch, units, height, width).
        dim: Axis of the units.

    Returns:
        Float32, shape (Σ units + 1, samples).
    """
    units = [value.movedim(dim, 0) for value in values]
    sizes = [len(value) for value in units]
    columns = torch.empty(sum(sizes) + 1, units[0][0].numel(), dtype=torch.float32, device=units[0].device)
    for part, value in zip(torch.split(columns[:-1], sizes), units, strict=True):
        part.view(value.shape).copy_(value)
    columns[-1] = 1.0
    return columns


def unit_sums(values: Sequence[Tensor], dim: int = 1) -> Tensor:
    """The sum over all samples of (a¹; …; a^N); see :func:`unit_columns`.

    Returns:
        Float32, shape (Σ units,).
    """
    others = [other for other in range(values[0].dim()) if other != dim % values[0].dim()]
    return torch.cat([value.sum(others, dtype=torch.float32) for value in values])


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Float32 stays float32: no autocast, and no TF32 in convolutions, where it is torch's default.

    In matrix products torch leaves TF32 off unless ``torch.set_float32_matmul_precision`` asks for it.

    Args:
        device: Where the products are made.
    """
    with _CUDNN, torch.autocast(device.type, enabled=False):
        yield


class _ExactConvolutions:
    """While anybody is inside, in whichever thread, cuDNN's convolutions do not use TF32."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._restore = _without_tf32(torch.backends.cudnn)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore()


def _without_tf32(cudnn: Any) -> Callable[[], None]:
    """Switch TF32 off for convolutions; returns what brings back what was.

    The switch for all of cuDNN goes first, since others may read it meanwhile, which torch refuses where its parts
    differ; since torch 2.9 parts can be set by themselves, and what stands above them can overrule that switch.
    """
    changed: list[tuple[Any, str, Any]] = []

    def change(where: Any, name: str, value: Any) -> None:
        changed.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    try:
        if cudnn.allow_tf32:
            change(cudnn, "allow_tf32", False)
    except RuntimeError:
        pass  # its parts differ already
    if hasattr(cudnn, "conv") and cudnn.conv.fp32_precision == "tf32":
        change(cudnn.conv, "fp32_precision", "ieee")

    def restore() -> None:
        for where, name, value in reversed(changed):
            setattr(where, name, value)

    return restore


_CUDNN = _ExactConvolutions()


def _inputs(value: Tensor, layer: nn.Module) -> int:
    """Entries of z: as many as the values have, whatever width the layer was made for."""
    return value.shape[1] * (cast(int, math.prod(layer.kernel_size)) if isinstance(layer, nn.Conv2d) else 1)


@dataclass(frozen=True)
class Geometry:
    """Which places of a map a convolution reads; (height, width) each.

    Args:
        kernel: Taps.
        stride: Places between two output positions.
        dilation: Places between two taps.
        before: Zeros above and to the left.
        after: Zeros below and to the right.
        sides: Size of the map.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    sides: tuple[int, int]

    @property
    def positions(self) -> tuple[int, int]:
        """Size of the output."""
        tall, wide = (
            (before + side + after - d * (k - 1) - 1) // s + 1
            for before, side, after, k, s, d in zip(
                self.before, self.sides, self.after, self.kernel, self.stride, self.dilation, strict=True
            )
        )
        return tall, wide

    def place(self, side: int, position: int, tap: int) -> int:
        """What a tap reads at an output position, along one side; outside the map it reads zero."""
        return position * self.stride[side] + tap * self.dilation[side] - self.before[side]


def geometry(layer: nn.Conv2d, sides: Sequence[int]) -> Geometry:
    """Of a convolution with zero padding on maps of one size."""
    kernel, stride, dilation = (
        cast(tuple[int, int], tuple(it)) for it in (layer.kernel_size, layer.stride, layer.dilation)
    )
    height, width = sides
    if layer.padding == "valid":
        before = after = (0, 0)
    elif layer.padding == "same":  # the odd one out at the end, as torch has it
        (down, right) = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        before, after = (down // 2, right // 2), (down - down // 2, right - right // 2)
    else:
        down, right = (int(side) for side in layer.padding)
        before = after = (down, right)
    return Geometry(kernel, stride, dilation, before, after, (height, width))


def padded(values: Tensor, shape: Geometry) -> Tensor:
    """Maps with the zeros around them that a convolution reads."""
    (top, left), (bottom, right) = shape.before, shape.after
    return F.pad(values, (left, right, top, bottom))


def _write(part: Tensor, value: Tensor, shape: Geometry) -> None:
    """Write one source's patches, a tap at a time, each one strided copy."""
    maps = padded(value, shape).transpose(0, 1)
    target = part.view(maps.shape[0], *shape.kernel, value.shape[0], *shape.positions)
    for i, j in product(*map(range, shape.kernel)):
        rows, columns = (
            slice(tap * d, tap * d + (count - 1) * s + 1, s)
            for tap, d, count, s in zip((i, j), shape.dilation, shape.positions, shape.stride, strict=True)
        )
        target[:, i, j].copy_(maps[:, :, rows, columns])
