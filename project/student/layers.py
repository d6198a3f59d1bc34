"""Layers whose output units see only the input units they share a source with, executed without their zeros."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from project.alignment import UnitMap


class BlockLayer(nn.Module):
    """A convolution or linear layer in blocks: each run of output units has its own weights over the inputs it sees.

    Multiply-accumulates are those of the non-zero weights alone.

    Args:
        parts: One plain layer for each run of output units, in order.
        columns: For each part, the slices of the input axis that it reads.
    """

    def __init__(self, parts: Sequence[nn.Module], columns: Sequence[Sequence[slice]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.columns = [list(slices) for slices in columns]

    def forward(self, values: Tensor) -> Tensor:
        """Apply every part to its inputs and put the outputs side by side."""
        dim = values.dim() - 1 if isinstance(self.parts[0], nn.Linear) else 1
        read = [_select(values, slices, dim) for slices in self.columns]
        return torch.cat([part(mine) for part, mine in zip(self.parts, read, strict=True)], dim)


def _select(values: Tensor, slices: list[slice], dim: int) -> Tensor:
    pieces = [values.narrow(dim, s.start, s.stop - s.start) for s in slices]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def resized(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A new layer like this convolution or linear layer, of other widths; blocks keep their size, not their number."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=layer.bias is not None)
    layer = cast(nn.Conv2d, layer)
    return nn.Conv2d(
        inputs,
        outputs,
        _pair(layer.kernel_size),
        _pair(layer.stride),
        layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
        _pair(layer.dilation),
        groups=1 if layer.groups == 1 else outputs * layer.groups // layer.out_channels,
        bias=layer.bias is not None,
    )


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    """(height, width), which torch declares as a tuple of any length."""
    height, width = sides
    return height, width


def student_layer(layer: nn.Module, outputs: UnitMap, inputs: UnitMap, taps: int) -> nn.Module:
    """The layer of a student: plain where all units see each other, in blocks where they do not.

    Args:
        layer: A source's layer: its kind, kernel, stride and the like are kept.
        outputs: Unit map of its output axis.
        inputs: Unit map of its input axis.
        taps: Weights per (output, input) pair.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return resized(layer, inputs.units, outputs.units)  # block by block, whatever the blocks stand for
    wide = taps if isinstance(layer, nn.Linear) else 1  # a linear layer after flattening has its taps on the axis
    parts, columns = [], []
    for rows, sources in outputs.blocks:
        seen = _seen(inputs, sources)
        parts.append(resized(layer, sum(s.stop - s.start for s in seen) * wide, rows.stop - rows.start))
        columns.append([slice(s.start * wide, s.stop * wide) for s in seen])
    if all(slices == [slice(0, inputs.units * wide)] for slices in columns):
        return resized(layer, inputs.units * wide, outputs.units)
    return BlockLayer(parts, columns)


def _seen(inputs: UnitMap, sources: Sequence[bool]) -> list[slice]:
    """Runs of input units that share a source with an output unit, neighbouring runs joined."""
    runs: list[slice] = []
    for rows, theirs in inputs.blocks:
        if not any(a and b for a, b in zip(sources, theirs, strict=True)):
            continue
        if runs and runs[-1].stop == rows.start:
            runs[-1] = slice(runs[-1].start, rows.stop)
        else:
            runs.append(rows)
    return runs


@torch.no_grad()
def load_matrix(layer: nn.Module, matrix: Tensor, bias: Tensor | None) -> None:
    """Write a dense weight matrix into a plain or block layer; entries outside the blocks must be zero.

    Args:
        layer: From :func:`student_layer`.
        matrix: Shape (outputs, inputs · taps), in the order of ``weight.flatten(1)``.
        bias: Shape (outputs,), or None.
    """
    if not isinstance(layer, BlockLayer):
        _write(layer, matrix, bias)
        return
    start = 0
    for part, slices in zip(layer.parts, layer.columns, strict=True):
        stop = start + weight_of(part).shape[0]
        taps = _taps(part)
        columns = torch.cat([matrix[start:stop, s.start * taps : s.stop * taps] for s in slices], 1)
        _write(part, columns, None if bias is None else bias[start:stop])
        start = stop


def dense_layer(layer: nn.Module) -> nn.Module:
    """A plain layer of the same function, its zeros written out."""
    if not isinstance(layer, BlockLayer):
        return layer
    inputs = max(s.stop for slices in layer.columns for s in slices)
    first, taps = layer.parts[0], _taps(layer.parts[0])
    outputs = sum(weight_of(part).shape[0] for part in layer.parts)
    matrix = weight_of(first).new_zeros(outputs, inputs * taps)
    start = 0
    for part, slices in zip(layer.parts, layer.columns, strict=True):
        weight, column = weight_of(part).detach().flatten(1), 0
        for s in slices:
            width = (s.stop - s.start) * taps
            matrix[start : start + len(weight), s.start * taps : s.stop * taps] = weight[:, column : column + width]
            column += width
        start += len(weight)
    biases = [part.bias.detach() for part in layer.parts if isinstance(part.bias, Tensor)]
    dense = resized(first, inputs, outputs).to(matrix.device)
    _write(dense, matrix, torch.cat(biases) if biases else None)
    return dense


@torch.no_grad()
def _write(layer: nn.Module, matrix: Tensor, bias: Tensor | None) -> None:
    weight = weight_of(layer)
    weight.copy_(matrix.reshape(weight.shape))
    if bias is not None:
        bias_of(layer).copy_(bias)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a plain convolution or linear layer."""
    return cast(Tensor, layer.weight)


def bias_of(layer: nn.Module) -> Tensor:
    """The constant of a plain convolution or linear layer that adds one."""
    return cast(Tensor, layer.bias)


def _taps(layer: nn.Module) -> int:
    """Entries of ``weight.flatten(1)`` for each entry of the input axis."""
    weight = weight_of(layer)
    return weight[0, 0].numel() if weight.dim() > 2 else 1
