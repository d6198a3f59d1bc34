"""Re-estimating batch norm: averaged units vary less than their sources' (variance collapse), so statistics move."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from project.symmetry import NORMS


def batch_norms(network: nn.Module) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d]:
    """Batch-norm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, NORMS) and module.track_running_stats
    }


@contextmanager
def reestimation(network: nn.Module) -> Iterator[None]:
    """While open, every forward pass adds one batch to the cumulative average of each batch norm's statistics.

    Everything but the batch norms is in eval mode inside, and everything afterwards. Statistics from before are
    forgotten. Pass pictures of all domains in every batch, in the shares they shall have.
    """
    network.eval()
    norms = batch_norms(network)
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        yield
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        network.eval()


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of a network by those of some pictures.

    Args:
        network: Changed in place; in eval mode afterwards.
        batches: Pictures of all domains mixed, shape (batch, channels, height, width).
    """
    with reestimation(network):
        for pictures in batches:
            network(pictures)


def running_variances(network: nn.Module) -> dict[str, float]:
    """Mean over units of the running variance of each batch norm."""
    return {
        name: float(norm.running_var.mean())
        for name, norm in batch_norms(network).items()
        if norm.running_var is not None
    }
