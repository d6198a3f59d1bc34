"""How often a network is right: for each domain, for each class, and among the classes of all heads."""

import torch
from torch import Tensor, nn

from project.models.labels import LabelSpace


class DomainScores(nn.Module):
    """Accuracy and mean loss of every domain, gathered batch by batch and summed over processes.

    Args:
        label_space: The domains and their classes.
        domains: Which of them are looked at; by default all.
    """

    def __init__(self, label_space: LabelSpace, domains: tuple[str, ...] | None = None) -> None:
        from torchmetrics import MeanMetric  # long to import, and no use to a merge that scores nothing
        from torchmetrics.classification import MulticlassStatScores

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


class JointScores(nn.Module):
    """How often a network with several heads is right where nobody says which of them to use.

    Args:
        label_space: What the network's columns mean.
        domains: Those that pictures come from, each with a head.
    """

    def __init__(self, label_space: LabelSpace, domains: tuple[str, ...]) -> None:
        from torchmetrics import MeanMetric

        super().__init__()
        self.columns = [label_space.columns(domain) for domain in domains]
        self.classes = [MeanMetric() for _ in domains]
        self.heads = [MeanMetric() for _ in domains]
        self.metrics = nn.ModuleList([*self.classes, *self.heads])  # so that they move with the module

    def update(self, index: int, shares: Tensor, labels: Tensor) -> None:
        """Take in one batch.

        Args:
            index: Which of the domains the batch is from.
            shares: Probabilities of all classes of all heads, shape (batch, columns of the label space).
            labels: (batch,), indices of classes of the domain.
        """
        best, own = shares.argmax(1), self.columns[index]
        self.classes[index].update((best == labels + own.start).float())
        self.heads[index].update(((best >= own.start) & (best < own.stop)).float())

    def compute(self) -> dict[str, Tensor]:
        """Shares of pictures, which weigh all domains alike.

        Returns:
            ``joint``: the class is right among those of all heads; ``head``: it is one of the picture's own domain.
        """
        return {
            name: torch.stack([metric.compute() for metric in metrics]).mean()
            for name, metrics in (("joint", self.classes), ("head", self.heads))
        }
