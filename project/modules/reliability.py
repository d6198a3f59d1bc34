"""Whether networks are as often right as they are sure: the pictures of a domain by confidence."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric

BINS = 15
"""Bins of confidence from 0 to 1, each of the same width, as the literature counts them (arXiv 1706.04599)."""


class Reliability(Metric):
    """Counts pictures, right answers and confidences by bin of confidence, over batches and processes."""

    full_state_update = False
    counts: Tensor
    confidences: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("counts", torch.zeros(2, BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("confidences", torch.zeros(BINS), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch.

        Args:
            logits: Shape (batch, classes).
            labels: Indices of classes, shape (batch,).
        """
        confidence, told = logits.float().softmax(1).max(1)
        # by products and not bincount, whose sums on a GPU depend on chance
        members = one_hot((confidence * BINS).long().clamp(0, BINS - 1), BINS)
        self.counts += torch.stack([members.sum(0), members[told == labels].sum(0)])
        self.confidences += (confidence[:, None] * members).sum(0)  # no product of matrices, which autocast rounds

    def compute(self) -> dict[str, list[float]]:
        """``pictures`` and ``right`` of every bin, and ``confidence``, its mean, 0 in an empty one."""
        pictures, right = self.counts
        mean = self.confidences / pictures.clamp(min=1)
        return {"pictures": pictures.tolist(), "right": right.tolist(), "confidence": mean.tolist()}
