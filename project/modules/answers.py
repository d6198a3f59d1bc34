"""What networks answer, picture by picture: which classes they take for others, and what several have right at once."""

import torch
from torch import Tensor
from torchmetrics import Metric

PAIRS = 1000
"""Confusions that are told of one network and domain, the most frequent ones; of 32 classes all of them."""


class Confusions(Metric):
    """Counts which classes are taken for which, over batches and processes.

    Args:
        classes: Number of classes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, told: Tensor, labels: Tensor) -> None:
        """Take in one batch.

        Args:
            told: Indices of the classes that the network tells, shape (batch,).
            labels: Indices of the pictures' classes, shape (batch,).
        """
        self.counts.index_put_((labels, told), torch.ones_like(labels), accumulate=True)  # whole numbers: exact

    def compute(self) -> list[tuple[int, int, int]]:
        """The most frequent confusions: index of a class, of the one that it is taken for, and how often."""
        wrong = self.counts.cpu().clone().fill_diagonal_(0)
        found = [(label, told, int(wrong[label, told])) for label, told in wrong.nonzero().tolist()]
        return sorted(found, key=lambda one: -one[2])[:PAIRS]


class BothRight(Metric):
    """Counts the pictures that two networks have right, for each two of several, over batches and processes.

    The networks see the same pictures, so that their accuracies vary together; these counts tell how much.

    Args:
        networks: How many there are.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, networks: int) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("counts", torch.zeros(networks, networks, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, right: Tensor) -> None:
        """Take in one batch.

        Args:
            right: Which pictures each network has right, boolean, shape (networks, batch).
        """
        self.counts += torch.stack([(right & one).sum(1) for one in right])

    def compute(self) -> list[list[int]]:
        """How many pictures each two have right; a network with itself: how many it has right."""
        counts: list[list[int]] = self.counts.tolist()
        return counts
