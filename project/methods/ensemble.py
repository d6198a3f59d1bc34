"""All sources side by side: the reference that costs N times one source."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.models.labels import LabelMode


class Ensemble(nn.Module):
    """Run every source on every picture.

    Args:
        sources: The sources.
        mode: ``shared``: log of the mean of the sources' class probabilities; ``different``: their logits side by side.
    """

    def __init__(self, sources: Sequence[nn.Module], mode: LabelMode) -> None:
        super().__init__()
        self.sources = nn.ModuleList(sources)
        self.mode = mode

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape (batch, columns of the label space)."""
        logits = [source(pictures) for source in self.sources]
        if self.mode == "different":
            return torch.cat(logits, 1)
        return torch.stack([one.softmax(1) for one in logits]).mean(0).log()
