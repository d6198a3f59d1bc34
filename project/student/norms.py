"""Norms of a student, of its own widths."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from project.alignment import UnitMap

TENSORS = ("weight", "bias", "running_mean", "running_var")


def student_norm(norm: nn.Module, units: UnitMap) -> nn.Module:
    """Make the norm of a student, its values not set.

    Args:
        norm: A source's: batch norm (which always gets scale and shift, as a fit may need them), GroupNorm, or a
            LayerNorm over the units.
        units: Unit map of the axis it normalises.
    """
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return type(norm)(units.units, norm.eps, norm.momentum, True, norm.track_running_stats)
    if isinstance(norm, nn.GroupNorm):  # its groups keep their size
        return nn.GroupNorm(units.units * norm.num_groups // norm.num_channels, units.units, norm.eps, norm.affine)
    norm = cast(nn.LayerNorm, norm)
    return type(norm)(units.units, norm.eps, norm.elementwise_affine, norm.bias is not None)


@torch.no_grad()
def load_norm(norm: nn.Module, sources: Sequence[nn.Module], units: UnitMap) -> None:
    """Give a student's norm the mean of its sources', unit by unit.

    Args:
        norm: From :func:`student_norm`.
        sources: The norm of every source.
        units: Unit map of the axis it normalises.
    """
    for name in TENSORS:
        tensors = [getattr(source, name, None) for source in sources]
        if all(tensor is not None for tensor in tensors):
            mean = units.pull(torch.cat([cast(Tensor, tensor) for tensor in tensors]).double(), units.mean)
            getattr(norm, name).copy_(mean)
