"""Batch norm in eval mode as one scale and one shift a unit: folded into a layer, or fitted itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit.activations import Activations
from project.moments import BatchNorm, norm_scale_and_shift
from project.runtime.spill import waiting
from project.student.layers import weight_of
from project.symmetry import NORMS


def scale_and_shift(source: nn.Module, norm: str | None, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Express a source's norm as the scale and shift by which it turns the layer's output into its own.

    Args:
        source: The source.
        norm: Name of the norm in it; None for none, which is scale 1 and shift 0.
        layer: The source's layer before it.

    Returns:
        Float64, shape (outputs,) each.
    """
    if norm is None:
        weight = weight_of(layer)
        ones = weight.new_ones(weight.shape[0], dtype=torch.float64)
        return ones, torch.zeros_like(ones)
    module = source.get_submodule(norm)
    assert isinstance(module, NORMS)
    return norm_scale_and_shift(module)


def fold_norm(matrix: Tensor, scale: Tensor, shift: Tensor, biased: bool) -> Tensor:
    """Fold the norm behind a layer into the layer's matrix.

    Args:
        matrix: Float64, shape (outputs, inputs · taps (+ 1)).
        scale: Of the norm, float64, shape (outputs,).
        shift: Of the norm, float64, shape (outputs,).
        biased: Whether the matrix has a last column of constants.

    Returns:
        Float64, shape (outputs, inputs · taps + 1), the constant as the last column.
    """
    weight, bias = (matrix[:, :-1], matrix[:, -1]) if biased else (matrix, torch.zeros_like(shift))
    return torch.cat([weight * scale[:, None], (bias * scale + shift)[:, None]], 1)


def fit_norm(norm: BatchNorm, node: fx.Node, units: UnitMap, activations: Activations) -> None:
    """Fit a norm's scale and shift by least squares, one of each a unit, towards what the sources' norms put out.

    The norm takes the statistics of what it reads. Units that no domain asks for anything keep theirs.

    Args:
        norm: The student's; changed in place.
        node: Its call.
        units: Unit map of its group.
        activations: All batches.
    """
    targets = waiting(
        (
            units.blend(
                ((source, batch.source_value(source, node.name).float()) for source in batch.sources),
                batch.shares(units),
                axis=1,
            )
            for batch in activations.batches
        ),
        activations.scratch,
    )
    sums = _unit_sums(node, units.units, activations, targets, norm.weight.device)
    for domain, owner in enumerate(activations.owners):
        if owner is not None:  # units without this source do not follow its domain
            sums[domain, :, ~units.present[:, owner]] = 0
    count, mean, aim, variance, covariance = _central_moments(sums.sum(0))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    followed = count > 0  # other units stay at their start
    mean = torch.where(followed, mean, norm.running_mean.double())
    variance = torch.where(followed, variance, norm.running_var.double())
    aim = torch.where(followed, aim, norm.bias.double())
    kept = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    slope = torch.where(followed & (variance > 1e-9), covariance / variance.clamp_min(1e-9), kept)
    set_affine(norm, mean, variance, slope, aim)


def add_constant(norm: BatchNorm, node: fx.Node, units: UnitMap, activations: Activations, constant: Tensor) -> None:
    """Let a norm take the statistics of what it reads, and add a constant to it.

    Args:
        norm: The student's, behind a layer that was fitted to what the sources' norms put out; changed in place.
        node: Its call.
        units: Unit map of its group.
        activations: All batches.
        constant: What it adds, float64, shape (units,).
    """
    sums = _unit_sums(node, units.units, activations, None, norm.weight.device)
    _, mean, _, variance, _ = _central_moments(sums.sum(0))
    set_affine(norm, mean, variance, torch.ones_like(mean), mean + constant)


def take_statistics(norm: BatchNorm, node: fx.Node, activations: Activations) -> None:
    """Let a norm take the statistics of what it reads; its scale and shift stay.

    Args:
        norm: The student's; changed in place.
        node: Its call.
        activations: All batches.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    sums = _unit_sums(node, norm.num_features, activations, None, norm.running_mean.device)
    _, mean, _, variance, _ = _central_moments(sums.sum(0))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def set_affine(norm: BatchNorm, mean: Tensor, variance: Tensor, slope: Tensor, aim: Tensor) -> None:
    """Let a norm hold these statistics of its input x and put out slope · (x − mean) + aim.

    Args:
        norm: Changed in place.
        mean: Of x, float64, shape (units,).
        variance: Of x, float64, shape (units,).
        slope: Float64, shape (units,).
        aim: Float64, shape (units,).
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(aim)


def _unit_sums(
    node: fx.Node, units: int, activations: Activations, targets: Sequence[Tensor] | None, device: torch.device
) -> Tensor:
    """Add up (count, Σx, Σt, Σx², Σxt) of a norm's input x and targets t over all processes.

    Args:
        node: The norm's call.
        units: How many it reads.
        activations: All batches.
        targets: t of every batch, shape (batch, units, …); x itself when None.
        device: Where to sum; a process without pictures has no batch that says.

    Returns:
        Weighted by the domains' weights: float64, shape (domains, 5, units).
    """
    sums = torch.zeros(len(activations.owners), 5, units, dtype=torch.float64, device=device)
    for number, batch in enumerate(activations.batches):
        values = batch.student.first_argument(node)
        x, t = (
            tensor.double().transpose(0, 1).flatten(1)
            for tensor in (values, values if targets is None else targets[number])
        )
        moments = [torch.full_like(x[:, 0], x.shape[1]), x.sum(1), t.sum(1), x.square().sum(1), (x * t).sum(1)]
        sums[batch.domain] += torch.stack(moments)
    activations.world.reduce(sums)
    return sums * torch.tensor(activations.weights).to(sums)[:, None, None]


def _central_moments(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Count, means of x and t, variance of x and covariance with t, from (count, Σx, Σt, Σx², Σxt) of every unit."""
    count, x, t, xx, xt = sums.unbind()
    n = count.clamp_min(1e-300)  # a weighted count may be less than one
    mean, aim = x / n, t / n
    return count, mean, aim, (xx / n - mean.square()).clamp_min(0), xt / n - mean * aim
