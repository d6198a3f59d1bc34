"""All sources side by side: the reference that costs N times one source."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.models import LabelSpace, MultiHead
from project.models.probe import run_with_features


class Ensemble(MultiHead):
    """Run every source on every picture.

    Args:
        sources: The sources.
        labels: What the logits mean. In shared mode they are the log of the mean of the sources' class probabilities,
            in different mode the sources' logits side by side.
        head: Name of the sources' head.
    """

    def __init__(self, sources: Sequence[nn.Module], labels: LabelSpace, head: str) -> None:
        super().__init__(labels)
        self.sources = nn.ModuleList(sources)
        self.head = head

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute the logits, shape (batch, columns of the label space)."""
        return self._together([source(pictures) for source in self.sources])

    def outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (batch, columns of the label space), and what the sources' heads read, side by side."""
        outputs = [run_with_features(source, self.head, pictures) for source in self.sources]
        return self._together([logits for logits, _ in outputs]), torch.cat([features for _, features in outputs], 1)

    def _together(self, logits: list[Tensor]) -> Tensor:
        if self.labels.mode == "different":
            return torch.cat(logits, 1)
        return torch.stack([source.log_softmax(1) for source in logits]).logsumexp(0) - math.log(len(logits))
