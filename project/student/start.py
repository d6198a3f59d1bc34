"""The start point: what the sources' weights make of a layer of the student before any fit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.alignment import UnitMap
from project.student.layers import bias_of, weight_of
from project.symmetry import Layer


def joint_matrix(layer: Layer, modules: Sequence[nn.Module]) -> list[Tensor]:
    """Collect a layer's weight matrix of every source, its constant as a last column.

    Args:
        layer: The layer.
        modules: The layer in every source.

    Returns:
        For each source float64, shape (outputs, inputs · taps (+ 1)).
    """
    matrices = []
    for module in modules:
        weight = weight_of(module).detach().flatten(1).double()
        bias = [bias_of(module).detach().double()[:, None]] if layer.bias else []
        matrices.append(torch.cat([weight, *bias], 1))
    return matrices


def targets(layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, shares: Tensor) -> Tensor:
    """Write the student's targets as a matrix B V over the inputs u of all sources.

    Args:
        layer: The layer.
        matrices: V: the sources' weights, from :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        shares: B: which sources' outputs are the target of each row; shape (outputs, sources).

    Returns:
        Float64, shape (outputs, Σ inputs · taps (+ 1)).
    """
    beyond = int(layer.bias)
    result = matrices[0].new_zeros(outputs.units, sum(matrix.shape[1] - beyond for matrix in matrices) + beyond)
    start = 0
    for source, matrix in enumerate(matrices):
        width = matrix.shape[1] - beyond
        blended = outputs.blend([(source, matrix)], shares)
        result[:, start : start + width] = blended[:, :width]
        if beyond:
            result[:, -1] += blended[:, -1]
        start += width
    return result


def start_matrix(
    layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, inputs: UnitMap, shares: Tensor | None = None
) -> Tensor:
    """Put the start point W⁰ together: what the sources' weights make of the student before any fit.

    Every row adds, over its sources, the source's weights to the units in that source's place, times its share in the
    row: by default between merged units the mean of the sources, from a single unit into a merged row its share. Rows
    of a grouped convolution read the units of their own block, which stand for the same sources.

    Args:
        layer: The layer.
        matrices: From :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        shares: Of the sources in each row, shape (outputs, sources); default: all alike.

    Returns:
        Float64, shape (outputs, inputs · taps (+ 1)), of a grouped convolution the inputs of a block.
    """
    shares = outputs.mean if shares is None else shares
    if layer.blocks > 1:
        return _grouped_start(layer, matrices, outputs, inputs, shares)
    return inputs.pull(targets(layer, matrices, outputs, shares).mT.contiguous(), taps=layer.taps).mT


def _grouped_start(
    layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, inputs: UnitMap, shares: Tensor
) -> Tensor:
    """W⁰ of a grouped convolution; shape (outputs, inputs of a block · taps (+ 1))."""
    tall, wide = outputs.sizes[0] // layer.blocks, inputs.sizes[0] // layer.blocks
    parts = []
    for source, matrix in enumerate(matrices):
        rows = outputs.present[:, source].nonzero()[:, 0]
        inside = (inputs.members[:, source].view(-1, wide) % wide).repeat_interleave(tall, 0)[rows].to(matrix.device)
        units = outputs.members[rows, source].to(matrix.device)
        weights = matrix[units][:, : wide * layer.taps].view(-1, wide, layer.taps)
        weights = weights.gather(1, inside[:, :, None].expand_as(weights)).flatten(1)
        moved = torch.cat([weights, matrix[units][:, wide * layer.taps :]], 1)
        parts.append(torch.zeros_like(matrix).index_copy(0, units, moved))
    return outputs.pull(torch.cat(parts), shares)
