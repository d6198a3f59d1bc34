"""How often a network is right, for each domain and each class."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassStatScores

from project.models.labels import LabelSpace


class DomainScores(nn.Module):
    """Accuracy and mean loss of every domain, gathered batch by batch and summed over processes.

    Args:
        label_space: The domains and their classes.
        domains: Which of them are looked at; by default all.
    """

    def __init__(self, label_space: LabelSpace, domains: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.classes = {domain: label_space.classes[domain] for domain in domains or label_space.domains}
        self.counts = [MulticlassStatScores(len(names), average=None) for names in self.classes.values()]
        self.losses = [MeanMetric() for _ in self.classes]
        self.metrics = nn.ModuleList([*self.counts, *self.losses])  # so that they move with the module

    def update(self, index: int, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Take in one batch.

        Args:
            index: Which of the domains the batch is from.
            logits: (batch, classes of the domain).
            labels: (batch,), indices of classes of the domain.
            loss: Mean loss over the batch.
        """
        self.counts[index].update(logits, labels)
        self.losses[index].update(loss, weight=len(labels))

    def compute(self) -> dict[str, Tensor]:
        """``<domain>/accuracy`` of every domain, and ``accuracy`` and ``loss``, which weigh all domains alike."""
        accuracies = {
            f"{domain}/accuracy": correct.sum() / seen.sum()
            for domain, (correct, seen) in zip(self.classes, self._counts(), strict=True)
        }
        losses = [loss.compute() for loss in self.losses]
        return accuracies | {
            "accuracy": torch.stack(list(accuracies.values())).mean(),
            "loss": torch.stack(losses).mean(),
        }

    def per_class(self) -> dict[str, Tensor]:
        """``<domain>/per_class/<class>``: accuracy on every class of which there was a picture."""
        return {
            f"{domain}/per_class/{name}": correct[i] / seen[i]
            for (domain, names), (correct, seen) in zip(self.classes.items(), self._counts(), strict=True)
            for i, name in enumerate(names)
            if seen[i] > 0
        }

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (*self.counts, *self.losses):
            metric.reset()

    def _counts(self) -> list[tuple[Tensor, Tensor]]:
        """Of every domain, the pictures of each class that were told rightly, and all of them."""
        stats = [metric.compute() for metric in self.counts]
        return [(counts[:, 0], counts[:, 4]) for counts in stats]
