"""How sure a network is of unlabelled pictures: the objective of test-time adaptation, and the pictures it looks at.

The entropy of the predicted classes falls where predictions become sure, which needs no label (Tent, arXiv 2006.10726;
AdaMerging, arXiv 2310.02575). It also falls where a network is sure of one and the same class for every picture, so
that scores and coefficients are worth a look.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from project.errors import ConfigurationError, MergeError, one_of
from project.methods.problem import Problem
from project.runtime import ALONE, World, lengths
from project.student import Student, own_statistics

Norms = Literal["mixed", "domain", "running"]
"""What batch norms normalise by: a batch's own statistics, of all domains together or of each alone, or kept ones."""


def entropies(logits: Tensor) -> Tensor:
    """H = −Σ p ln p of every row's softmax p, in nats.

    Args:
        logits: Shape (batch, classes).

    Returns:
        Shape (batch,).
    """
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def check_heads(name: str, problem: Problem, pictures: Sequence[str] | Mapping[str, object]) -> None:
    """Refuse pictures that no head answers for.

    Raises:
        ConfigurationError: With their domain.
    """
    unowned = [domain for domain in pictures if domain not in problem.labels.domains]
    if problem.labels.mode == "different" and unowned:
        raise ConfigurationError(
            f"method {name} looks at what each domain's own head predicts, but calibration pictures are of "
            f"{unowned[0]!r}, which has none; use pictures of the domains."
        )


class Objective:
    """Σ over the domains of the mean entropy of what a student's head for that domain predicts.

    The student's buffers take no part: ``mixed`` normalises by the statistics of a batch of all domains together, as
    re-estimation does after the merge; ``domain`` by those of each domain's pictures alone; ``running`` by the
    student's running statistics. None of them changes these. Of several processes, each normalises by the statistics of
    its own share of a batch.

    Args:
        student: Of one source's size; left as it is.
        domains: Of the pictures.
        norms: What batch norms normalise by.
        world: The processes that share the pictures.

    Raises:
        ConfigurationError: If there is no such way to normalise, or a domain has no head.
    """

    def __init__(self, student: Student, domains: Sequence[str], norms: Norms = "mixed", world: World = ALONE) -> None:
        one_of(Norms, norms=norms)
        self.student, self.norms, self.world = student, norms, world
        self.columns = {domain: student.labels.columns(domain) for domain in domains}

    def gradient(
        self, tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor], learned: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Its gradient on a batch that the processes share, the same in all of them.

        Args:
            tensors: The student's parameters by name, computed from what is learned; others are as they are.
            batch: This process' pictures of every domain, shape (batch, channels, height, width).
            learned: What the gradient is with respect to.

        Returns:
            The gradient, of the shape of ``learned``; and for each domain the mean entropy.

        Raises:
            MergeError: If one of these is not finite.
        """
        found = self.sums(tensors, batch)
        counts = torch.tensor([float(len(batch[domain])) for domain in self.columns], dtype=torch.float64)
        self.world.reduce(counts)
        shares = found / counts.to(found)
        (gradient,) = torch.autograd.grad(shares.sum(), [learned])
        told = shares.detach().double().cpu()
        self.world.reduce(gradient)
        self.world.reduce(told)
        check_finite(told, gradient)
        return gradient, dict(zip(self.columns, told.tolist(), strict=True))

    def sums(self, tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """For each domain, the sum of the entropies of its pictures in a batch: shape (domains,), differentiable."""
        replaced = {f"network.{name}": tensor for name, tensor in tensors.items()}
        together = [[domain] for domain in self.columns] if self.norms == "domain" else [list(self.columns)]
        found = []
        network, exact = self.student.network, self.student.exact_norms
        with nullcontext() if self.norms == "running" else own_statistics(network, exact):
            for domains in together:
                parts = [batch[domain] for domain in domains]
                logits = functional_call(self.student, replaced, (torch.cat(parts),))
                for domain, part in zip(domains, torch.split(logits, [len(one) for one in parts]), strict=True):
                    found.append(entropies(part[:, self.columns[domain]]).sum())
        return torch.stack(found)


def check_finite(*tensors: Tensor) -> None:
    """Refuse to go on learning from an entropy, or a gradient, that is not finite.

    Raises:
        MergeError: With what helps.
    """
    if not all(bool(one.isfinite().all()) for one in tensors):
        raise MergeError("the entropy, or its gradient, is no longer finite; take a smaller rate.")


class Draws(Iterator[dict[str, Tensor]]):
    """Endless batches that map every domain to pictures: each picture once, in random order, before any comes again.

    Args:
        pictures: domain -> this process' batches, none of them empty.
        batch: Pictures of each domain in a batch, over all processes, but one at least in each; all of them where there
            are fewer.
        seed: Seed of the order.
        world: The processes, which draw shares of a batch that differ by one picture at most.
    """

    def __init__(self, pictures: Mapping[str, Sequence[Tensor]], batch: int, seed: int, world: World = ALONE) -> None:
        whole, rest = divmod(batch, world.size)
        self.pictures, self.share = pictures, max(1, whole + (world.rank < rest))
        self.places = {
            domain: [(number, row) for number, size in enumerate(lengths(parts)) for row in range(size)]
            for domain, parts in pictures.items()
        }
        self.queues: dict[str, list[tuple[int, int]]] = {domain: [] for domain in pictures}
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> dict[str, Tensor]:
        """The next batch."""
        return {domain: self._drawn(domain) for domain in self.pictures}

    def _drawn(self, domain: str) -> Tensor:
        places, queue = self.places[domain], self.queues[domain]
        count = min(self.share, len(places))
        while len(queue) < count:
            queue += [places[index] for index in torch.randperm(len(places), generator=self.generator).tolist()]
        chosen, self.queues[domain] = queue[:count], queue[count:]
        found: dict[tuple[int, int], Tensor] = {}
        for number, group in groupby(sorted(set(chosen)), itemgetter(0)):  # each of the pictures' batches is read once
            places = list(group)
            rows = self.pictures[domain][number][torch.tensor([row for _, row in places])]
            found.update(zip(places, rows, strict=True))
        return torch.stack([found[place] for place in chosen])
