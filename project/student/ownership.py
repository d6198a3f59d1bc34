"""Whose a picture is that belongs to no domain: that of the source whose batch norms know it best.

Running statistics are what a trained network keeps of the pictures it saw. With a the mean over positions of what a
norm reads on one picture, its distance from a source is the mean over units and norms of (a − μ)² / σ², μ and σ² the
running statistics: a Gaussian's, unit by unit. No label, and no picture of any domain, is needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.errors import MergeError
from project.student.normalise import Norm, batch_norms


@torch.no_grad()
def norm_distance(source: nn.Module, pictures: Tensor) -> Tensor:
    """How far each picture lies from what a network was trained on, as its batch norms remember that; shape (batch,).

    Args:
        source: In eval mode.
        pictures: Shape (batch, channels, height, width).

    Raises:
        MergeError: Where no batch norm keeps running statistics.
    """
    found: list[Tensor] = []

    def measure(norm: Norm, inputs: tuple[Tensor]) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        means = inputs[0].flatten(2).mean(2) if inputs[0].dim() > 2 else inputs[0]
        found.append(((means - norm.running_mean).square() / (norm.running_var + norm.eps)).mean(1))

    handles = [norm.register_forward_pre_hook(measure) for norm in batch_norms(source).values()]
    try:
        source(pictures)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise MergeError("pictures without a domain go to the source whose batch norms know them; there are none.")
    return torch.stack(found).mean(0)


def deal_out(sources: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each source, batches of the pictures that lie nearer to it than to any other.

    Args:
        sources: In eval mode.
        batches: Pictures, shape (batch, channels, height, width).
    """
    dealt: list[list[Tensor]] = [[] for _ in sources]
    for pictures in batches:
        nearest = torch.stack([norm_distance(source, pictures) for source in sources], 1).argmin(1)
        for index, mine in enumerate(dealt):
            if (part := pictures[nearest == index]).shape[0]:
                mine.append(part)
    return dealt
