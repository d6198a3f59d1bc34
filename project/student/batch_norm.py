"""Batch norms that keep running statistics: which there are, and how a batch is normalised by its own."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from project.moments import BatchNorm
from project.runtime import ALONE, World
from project.symmetry import NORMS


def batch_norms(network: nn.Module, skip: Collection[str] = ()) -> dict[str, BatchNorm]:
    """Collect the batch-norm layers that keep running statistics, by name.

    Args:
        network: Any network.
        skip: Names to leave out.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, NORMS) and module.track_running_stats and name not in skip
    }


def _train_where_possible(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Normalise by the batch, or by the running statistics where it holds a lone value a unit, without variance."""
    norm.train(inputs[0].numel() > inputs[0].shape[1])


@contextmanager
def own_statistics(network: nn.Module, skip: Collection[str] = (), world: World = ALONE) -> Iterator[None]:
    """Normalise every batch by its own statistics while open, and leave the running ones as they are.

    Gradients pass through these statistics. A lone value a unit has none, and is normalised by the running ones. A
    batch that several processes share is one batch: they sum what its statistics are made of, and on the way back
    the gradients of these, so that all of them must go through the network, and back, together.

    Args:
        network: In eval mode, in which it is left.
        skip: Names of norms that keep to their running statistics.
        world: The processes that share each batch.
    """
    norms = batch_norms(network, skip).values()
    handles = [norm.register_forward_pre_hook(_train_where_possible) for norm in norms] if world.size == 1 else []
    for norm in norms:
        norm.track_running_stats = False
        if world.size > 1:
            norm.forward = partial(_normalised, norm, world)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.__dict__.pop("forward", None)
            norm.track_running_stats = True
            norm.eval()


def _normalised(norm: BatchNorm, world: World, values: Tensor) -> Tensor:
    """Normalise this process' share of a batch, (batch, units) or (batch, units, …), by the statistics of all of it.

    The squares are of deviations from the mean of all, so that nothing cancels.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    others, shape = [0, *range(2, values.dim())], (-1, *(1,) * (values.dim() - 2))
    count = exact.new_tensor([values.numel() // values.shape[1]])
    sums: Tensor = _Summed.apply(torch.cat([exact.sum(others), count]), world)
    total = float(sums[-1].detach())
    if total > 1:
        centred = exact - (sums[:-1] / total).view(shape)
        variance = _Summed.apply(centred.square().sum(others), world) / total
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        centred, variance = exact - norm.running_mean.view(shape), norm.running_var
    scale: Tensor = (variance + norm.eps).rsqrt()
    if norm.affine:
        return (centred * (scale * norm.weight).view(shape) + norm.bias.view(shape)).to(values.dtype)
    return (centred * scale.view(shape)).to(values.dtype)


class _Summed(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        """Sum over the processes."""
        ctx.world = world
        return _summed(tensor, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum over the processes: each of them has an answer that hangs on the sum."""
        return _summed(gradient, ctx.world), None


def _summed(tensor: Tensor, world: World) -> Tensor:
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    world.reduce(result)
    return result


def mixed(batch: Mapping[str, Tensor | None]) -> Tensor:
    """Put the pictures of all domains together: shape (sum of the batches, channels, height, width)."""
    return torch.cat([pictures for pictures in batch.values() if pictures is not None])


def batches_of_all(pictures: Mapping[str, Iterable[Tensor]]) -> Iterator[dict[str, Tensor | None]]:
    """Take the first batches of all domains together, then the second ones, as long as any domain has one.

    Args:
        pictures: domain -> its batches, each (batch, channels, height, width).
    """
    for parts in zip_longest(*pictures.values()):
        yield dict(zip(pictures, parts, strict=True))


def running_variances(network: nn.Module, skip: Collection[str] = ()) -> dict[str, float]:
    """Average the running variance of each batch norm over its units.

    Args:
        network: Any network.
        skip: Names to leave out.

    Returns:
        Name of the norm -> mean variance.
    """
    return {
        name: float(norm.running_var.mean())
        for name, norm in batch_norms(network, skip).items()
        if norm.running_var is not None
    }
