"""How often a network is right: for each domain, for each class, and among the classes of all heads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from project.models.labels import CODE_POINTS, NATURAL, LabelSpace, natural_key


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

    def tallies(self) -> dict[str, tuple[list[int], list[int]]]:
        """Domain -> of every class, how many pictures were told rightly, and how many there were."""
        counts = zip(self.classes, self._counts(), strict=True)
        return {domain: (correct.tolist(), seen.tolist()) for domain, (correct, seen) in counts}

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


class OwnHeadScores(nn.Module):
    """How often a network with heads of domains beside the shared one is right by these.

    Args:
        domains: Those that pictures come from.
    """

    def __init__(self, domains: tuple[str, ...]) -> None:
        from torchmetrics import MeanMetric

        super().__init__()
        self.told = nn.ModuleList(MeanMetric() for _ in domains)
        self.guessed = nn.ModuleList(MeanMetric() for _ in domains)

    def update(self, index: int, told: Tensor, guessed: Tensor, labels: Tensor) -> None:
        """Take in one batch.

        Args:
            index: Which of the domains the batch is from.
            told: Logits where the domain is told, shape (batch, classes).
            guessed: Probabilities where it is guessed, of the same shape.
            labels: (batch,), indices of classes.
        """
        self.told[index].update((told.argmax(1) == labels).float())  # type: ignore[operator]
        self.guessed[index].update((guessed.argmax(1) == labels).float())  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """Shares of pictures whose class is right, domains weighing alike: ``told`` and ``guessed``."""
        return {
            name: torch.stack([metric.compute() for metric in metrics]).mean()  # type: ignore[operator]
            for name, metrics in (("told", self.told), ("guessed", self.guessed))
        }


class OrderScores(nn.Module):
    """Whether networks are right more often if their columns mean the classes of every domain in another order.

    Args:
        classes: Domain -> names of the classes, in the order that is assumed.
    """

    DEVIATIONS = 3.0  # by which the pictures that only one of two orders has right must differ, as in McNemar's test

    def __init__(self, classes: Mapping[str, tuple[str, ...]]) -> None:
        from torchmetrics import SumMetric

        super().__init__()
        self.orders = [
            {order: means for order, means in meanings(names).items() if means != list(range(len(names)))}
            for names in classes.values()
        ]
        self.known = sorted({order for orders in self.orders for order in orders})
        self.right = {order: (SumMetric(), SumMetric()) for order in self.known}
        self.metrics = nn.ModuleList(metric for pair in self.right.values() for metric in pair)  # to move with it
        for now, then in self.right.values():
            now.update(0)  # or one that sees no picture would warn
            then.update(0)

    def update(self, index: int, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch of one domain.

        Args:
            index: Which of the domains.
            logits: (batch, classes of the domain).
            labels: (batch,), indices of classes of the domain.
        """
        told = logits.argmax(1)
        for order, means in self.orders[index].items():
            other = torch.tensor(means, device=told.device)[told]
            now, then = self.right[order]
            now.update(((told == labels) & (other != labels)).sum())
            then.update(((other == labels) & (told != labels)).sum())

    def better(self) -> dict[str, tuple[int, int]]:
        """Orders that fit clearly better -> how many pictures only this and only the assumed one have right."""
        found = {}
        for order in self.known:
            now, then = (int(metric.compute()) for metric in self.right[order])
            if then - now > self.DEVIATIONS * (then + now) ** 0.5:
                found[order] = (then, now)
        return found


def meanings(names: tuple[str, ...]) -> dict[str, list[int]]:
    """Order of classes -> for each column in it, the place of its class among the names."""
    by_order = {CODE_POINTS: sorted(names), NATURAL: sorted(names, key=natural_key)}
    return {order: [names.index(name) for name in found] for order, found in by_order.items()}
