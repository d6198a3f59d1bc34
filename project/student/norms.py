"""Norms of a student, of its own widths."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from project.alignment import UnitMap

TENSORS = ("weight", "bias", "running_mean", "running_var")


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, LayerNorm2d)


def student_norm(norm: nn.Module, units: UnitMap) -> nn.Module:
    """Make the norm of a student, its values not set.

    Args:
        norm: A source's: batch norm (which always gets scale and shift, as a fit may need them), GroupNorm, or a
            LayerNorm over the units. What a library made of one, such as a batch norm that activates what it puts out,
            stays what it is.
        units: Unit map of the axis it normalises.
    """
    if type(norm) not in PLAIN:
        return _derived(norm, units.units)
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return type(norm)(units.units, norm.eps, norm.momentum, True, norm.track_running_stats)
    if isinstance(norm, nn.GroupNorm):  # its groups keep their size
        return nn.GroupNorm(units.units * norm.num_groups // norm.num_channels, units.units, norm.eps, norm.affine)
    norm = cast(nn.LayerNorm, norm)
    return type(norm)(units.units, norm.eps, norm.elementwise_affine, norm.bias is not None)


def _derived(norm: nn.Module, units: int) -> nn.Module:
    """A copy of a norm whose class is not torch's, and whose constructor is not known, of another width."""
    result = copy.deepcopy(norm)
    for tensors in (result._parameters, result._buffers):
        for name in set(TENSORS) & set(tensors):
            old = tensors[name]
            if old is not None:
                new = old.detach().new_empty(units)
                setattr(result, name, nn.Parameter(new, old.requires_grad) if name in result._parameters else new)
    if isinstance(result, nn.BatchNorm1d | nn.BatchNorm2d):
        if result.weight is None:
            like = cast(Tensor, result.running_mean)
            result.weight, result.bias = (nn.Parameter(like.new_full((units,), level)) for level in (1.0, 0.0))
            result.affine = True
        result.num_features = units
    elif isinstance(result, nn.GroupNorm):
        result.num_groups, result.num_channels = units * result.num_groups // result.num_channels, units
    elif isinstance(result, nn.LayerNorm):
        result.normalized_shape = (units,)
    return result


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
