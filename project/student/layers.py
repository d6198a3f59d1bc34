"""Layers whose output units see only the input units they share a source with, executed without their zeros."""

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from project.alignment import UnitMap
from project.symmetry import is_plain


class BlockLayer(nn.Module):
    """A convolution or linear layer whose weight is a block matrix: each run of output units sees some inputs alone.

    Multiply-accumulates are those of the non-zero weights alone. Neighbouring runs that read neighbouring inputs run as
    one grouped convolution, which spares gathering their inputs and joining their outputs.

    Args:
        parts: One layer for each run of output units, in order, or one grouped convolution for several.
        columns: For each part, the slices of the input axis that it reads; one slice where it is grouped.
    """

    def __init__(self, parts: Sequence[nn.Module], columns: Sequence[Sequence[slice]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.columns = [list(slices) for slices in columns]

    def forward(self, values: Tensor) -> Tensor:
        """Apply every part to its inputs and put the outputs side by side.

        Args:
            values: Units on the last axis of a linear layer, else on axis 1.
        """
        dim = values.dim() - 1 if isinstance(self.parts[0], nn.Linear) else 1
        inputs = [_select(values, slices, dim) for slices in self.columns]
        return _joined([part(its_inputs) for part, its_inputs in zip(self.parts, inputs, strict=True)], dim)

    def tiles(self) -> Iterator[tuple[Tensor, slice, list[slice]]]:
        """Iterate over the runs: weight (outputs, inputs, …), output units, slices of the input axis they read."""
        start = 0
        for part, slices in zip(self.parts, self.columns, strict=True):
            runs = weight_of(part).chunk(getattr(part, "groups", 1))
            for run, weight in enumerate(runs):
                yield weight, slice(start, start + len(weight)), [_nth(s, run, len(runs)) for s in slices]
                start += len(weight)


def _select(values: Tensor, slices: list[slice], dim: int) -> Tensor:
    return _joined([values.narrow(dim, s.start, s.stop - s.start) for s in slices], dim)


def _joined(pieces: list[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _nth(run: slice, index: int, count: int) -> slice:
    """Take one of the equal pieces of a slice."""
    width = (run.stop - run.start) // count
    return slice(run.start + index * width, run.start + (index + 1) * width)


def resized(layer: nn.Module, inputs: int, outputs: int, groups: int | None = None) -> nn.Module:
    """Make a freshly initialised layer like this convolution or linear layer, of other widths.

    Args:
        layer: Its kind, kernel, stride and the like are kept.
        inputs: Width of the input axis.
        outputs: Width of the output axis.
        groups: Of a convolution; None for as many as keep their size, or for one if it has one.
    """
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=layer.bias is not None)
    layer = cast(nn.Conv2d, layer)
    if groups is None:
        groups = 1 if layer.groups == 1 else outputs * layer.groups // layer.out_channels
    return nn.Conv2d(
        inputs,
        outputs,
        _pair(layer.kernel_size),
        _pair(layer.stride),
        layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
        _pair(layer.dilation),
        groups=groups,
        bias=layer.bias is not None,
    )


def _derived(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A copy of a layer whose class is derived from torch's, with the tensors and widths of a plain one."""
    result, plain = copy.deepcopy(layer), resized(layer, inputs, outputs)
    result._parameters |= {name: plain._parameters[name] for name in ("weight", "bias")}
    for name in ("in_channels", "out_channels", "groups", "in_features", "out_features"):
        if hasattr(plain, name):
            setattr(result, name, getattr(plain, name))
    return result


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    """(height, width), which torch declares as a tuple of any length."""
    height, width = sides
    return height, width


def student_layer(layer: nn.Module, outputs: UnitMap, inputs: UnitMap, taps: int) -> nn.Module:
    """Make the layer of a student: plain where all units see each other, else a :class:`BlockLayer`.

    Args:
        layer: A source's layer: its kind, kernel, stride and the like are kept.
        outputs: Unit map of its output axis.
        inputs: Unit map of its input axis.
        taps: Weights per (output, input) pair.

    Returns:
        The layer, freshly initialised.
    """
    if not is_plain(layer):
        return _derived(layer, inputs.units * (taps if isinstance(layer, nn.Linear) else 1), outputs.units)
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return resized(layer, inputs.units, outputs.units)  # group by group, whatever their units stand for
    wide = taps if isinstance(layer, nn.Linear) else 1  # a linear layer after flattening has its taps on the axis
    runs = []
    for rows, sources in outputs.blocks:
        seen = [slice(s.start * wide, s.stop * wide) for s in _seen(inputs, sources)]
        runs.append((rows.stop - rows.start, seen))
    if all(seen == [slice(0, inputs.units * wide)] for _, seen in runs):
        return resized(layer, inputs.units * wide, outputs.units)
    parts, columns = [], []
    for bank in _banks(runs) if isinstance(layer, nn.Conv2d) else [[run] for run in runs]:
        seen = bank[0][1] if len(bank) == 1 else [slice(bank[0][1][0].start, bank[-1][1][0].stop)]
        part = resized(layer, sum(s.stop - s.start for s in seen), sum(width for width, _ in bank), len(bank))
        parts.append(part)
        columns.append(seen)
    return BlockLayer(parts, columns)


def _banks(runs: list[tuple[int, list[slice]]]) -> list[list[tuple[int, list[slice]]]]:
    """Gather runs of output units where a grouped convolution can execute them together."""
    banks: list[list[tuple[int, list[slice]]]] = []
    for width, seen in runs:
        if banks and len(seen) == len(banks[-1][-1][1]) == 1:
            before, (last,) = banks[-1][-1]
            if (width, seen[0].start, _width(seen[0])) == (before, last.stop, _width(last)):
                banks[-1].append((width, seen))
                continue
        banks.append([(width, seen)])
    return banks


def _width(run: slice) -> int:
    return int(run.stop - run.start)


def _seen(inputs: UnitMap, sources: Sequence[bool]) -> list[slice]:
    """Find the runs of input units that share a source with an output unit, neighbouring runs joined.

    Args:
        inputs: Unit map of the input axis.
        sources: For each source, whether the output unit stands for one of its units.
    """
    runs: list[slice] = []
    for rows, present in inputs.blocks:
        if not any(a and b for a, b in zip(sources, present, strict=True)):
            continue
        if runs and runs[-1].stop == rows.start:
            runs[-1] = slice(runs[-1].start, rows.stop)
        else:
            runs.append(rows)
    return runs


@torch.no_grad()
def load_matrix(layer: nn.Module, matrix: Tensor, bias: Tensor | None) -> None:
    """Write a dense weight matrix into a plain layer or a :class:`BlockLayer`, where what it lacks must be zero.

    Args:
        layer: From :func:`student_layer`.
        matrix: Shape (outputs, inputs · taps), in the order of ``weight.flatten(1)``.
        bias: Shape (outputs,), or None.
    """
    if not isinstance(layer, BlockLayer):
        _write(layer, matrix, bias)
        return
    for weight, rows, slices in layer.tiles():
        taps = _taps(weight)
        columns = torch.cat([matrix[rows, s.start * taps : s.stop * taps] for s in slices], 1)
        weight.copy_(columns.reshape(weight.shape))
    if bias is not None:
        widths = [len(weight_of(part)) for part in layer.parts]
        for part, values in zip(layer.parts, torch.split(bias, widths), strict=True):
            bias_of(part).copy_(values)


def dense_layer(layer: nn.Module) -> nn.Module:
    """Make a plain layer of the same function, zeros between units that do not see each other written out."""
    if not isinstance(layer, BlockLayer):
        return layer
    first = layer.parts[0]
    inputs = max(s.stop for slices in layer.columns for s in slices)
    outputs, taps = sum(len(weight_of(part)) for part in layer.parts), _taps(weight_of(first))
    matrix = weight_of(first).new_zeros(outputs, inputs * taps)
    for weight, rows, slices in layer.tiles():
        widths = [_width(s) * taps for s in slices]
        for s, values in zip(slices, torch.split(weight.detach().flatten(1), widths, 1), strict=True):
            matrix[rows, s.start * taps : s.stop * taps] = values
    biases = [part.bias.detach() for part in layer.parts if isinstance(part.bias, Tensor)]
    dense = resized(first, inputs, outputs, 1).to(matrix.device)
    _write(dense, matrix, torch.cat(biases) if biases else None)
    return dense


@torch.no_grad()
def _write(layer: nn.Module, matrix: Tensor, bias: Tensor | None) -> None:
    weight = weight_of(layer)
    weight.copy_(matrix.reshape(weight.shape))
    if bias is not None:
        bias_of(layer).copy_(bias)


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a plain convolution or linear layer, shape (outputs, inputs, …)."""
    return cast(Tensor, layer.weight)


def bias_of(layer: nn.Module) -> Tensor:
    """Return the bias of a plain convolution or linear layer that has one, shape (outputs,)."""
    return cast(Tensor, layer.bias)


def _taps(weight: Tensor) -> int:
    """Count the entries of ``weight.flatten(1)`` for each entry of the input axis."""
    return weight[0, 0].numel() if weight.dim() > 2 else 1
