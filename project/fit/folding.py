"""Batch norm in eval mode as what it is there: one scale and one shift a unit."""

import torch
from torch import Tensor, nn

from project.moments import BatchNorm, norm_scale_and_shift
from project.student.layers import weight_of
from project.symmetry import NORMS


def scale_and_shift(source: nn.Module, norm: str | None, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift by which a source's norm turns the layer's output into its own: float64."""
    if norm is None:
        weight = weight_of(layer)
        ones = weight.new_ones(weight.shape[0], dtype=torch.float64)
        return ones, torch.zeros_like(ones)
    module = source.get_submodule(norm)
    assert isinstance(module, NORMS)
    return norm_scale_and_shift(module)


def fold_norm(matrix: Tensor, scale: Tensor, shift: Tensor, biased: bool) -> Tensor:
    """A layer's matrix with the norm behind it brought in, its constant as a last column."""
    weight, bias = (matrix[:, :-1], matrix[:, -1]) if biased else (matrix, torch.zeros_like(shift))
    return torch.cat([weight * scale[:, None], (bias * scale + shift)[:, None]], 1)


def central_moments(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Count, means of x and t, variance of x and covariance with t, from (count, Σx, Σt, Σx², Σxt) of every unit."""
    count, x, t, xx, xt = sums.unbind()
    n = count.clamp_min(1e-300)  # a weighted count may be less than one
    mean, aim = x / n, t / n
    return count, mean, aim, (xx / n - mean.square()).clamp_min(0), xt / n - mean * aim


def set_affine(norm: BatchNorm, mean: Tensor, variance: Tensor, slope: Tensor, aim: Tensor) -> None:
    """Let a norm hold these statistics of its input x and put out slope · (x − mean) + aim."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(aim)
