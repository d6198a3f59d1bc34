"""How sure a network is of unlabelled pictures: the objective of test-time adaptation, and the pictures it looks at.

The entropy of the predicted classes falls where predictions become sure, which needs no label (Tent, arXiv 2006.10726;
AdaMerging, arXiv 2310.02575). It also falls where a network is sure of one and the same class for every picture, so
that scores and coefficients are worth a look.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
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
    """Compute H = −Σ p ln p of every row's softmax p, in nats.

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
    student's running statistics. None of them changes these. A batch that several processes share is one batch: they
    normalise by the statistics of all of it.

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
        """Compute its gradient on a batch that the processes share, the same in all of them.

        Args:
            tensors: The student's parameters by name, computed from what is learned; others are as they are.
            batch: This process' pictures of every domain, shape (batch, channels, height, width).
            learned: What the gradient is with respect to.

        Returns:
            The gradient, of the shape of ``learned``; and for each domain the mean entropy.

        Raises:
            MergeError: If one of these is not finite.
        """
        sums = self.sums(tensors, batch)
        counts = torch.tensor([float(len(batch[domain])) for domain in self.columns], dtype=torch.float64)
        self.world.reduce(counts)
        shares = sums / counts.to(sums)
        (gradient,) = torch.autograd.grad(shares.sum(), [learned])
        entropies = shares.detach().double().cpu()
        self.world.reduce(gradient)
        self.world.reduce(entropies)
        check_finite(entropies, gradient)
        return gradient, dict(zip(self.columns, entropies.tolist(), strict=True))

    def sums(self, tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Sum the entropies of each domain's pictures in a batch: shape (domains,), differentiable."""
        replaced = {f"network.{name}": tensor for name, tensor in tensors.items()}
        together = [[domain] for domain in self.columns] if self.norms == "domain" else [list(self.columns)]
        sums = []
        network, exact = self.student.network, self.student.exact_norms
        with nullcontext() if self.norms == "running" else own_statistics(network, exact, self.world):
            for domains in together:
                parts = [batch[domain] for domain in domains]
                logits = functional_call(self.student, replaced, (torch.cat(parts),))
                for domain, part in zip(domains, torch.split(logits, [len(part) for part in parts]), strict=True):
                    sums.append(entropies(part[:, self.columns[domain]]).sum())
        return torch.stack(sums)


def check_finite(*tensors: Tensor) -> None:
    """Refuse to go on learning from an entropy, or a gradient, that is not finite.

    Raises:
        MergeError: With what helps.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise MergeError("the entropy, or its gradient, is no longer finite; take a smaller rate.")


class Draws(Iterator[dict[str, Tensor]]):
    """Endless batches that map every domain to pictures: each picture once, in random order, before any comes again.

    The pictures of a batch, and their order, are the same however many processes share them, where the pictures of
    the data were dealt out in turn, and unless the processes are more than a batch has pictures. Each step, the
    processes send each other those that were drawn, so that their shares are even.

    Args:
        pictures: domain -> this process' batches, none of them empty; every process the same domains.
        batch: Pictures of each domain in a batch, over all processes, but one at least in each; all of them where there
            are fewer.
        seed: Seed of the order.
        world: The processes, which all must ask; their shares differ by one picture at most.
    """

    def __init__(self, pictures: Mapping[str, Sequence[Tensor]], batch: int, seed: int, world: World = ALONE) -> None:
        self.pictures, self.world, self.batch = pictures, world, max(batch, world.size)
        sizes = {domain: lengths(parts) for domain, parts in pictures.items()}
        held = torch.zeros(len(pictures), world.size, dtype=torch.int64)
        held[:, world.rank] = torch.tensor([sum(counts) for counts in sizes.values()])
        world.reduce(held)
        self.places = {
            domain: [(number, row) for number, size in enumerate(counts) for row in range(size)]
            for domain, counts in sizes.items()
        }
        # Of all pictures in the order of the data: in which process each is, and which of its pictures it is.
        self.owners = {
            domain: sorted(((place, rank) for rank, count in enumerate(counts) for place in range(count)))
            for domain, counts in zip(pictures, held.tolist(), strict=True)
        }
        self.queues: dict[str, list[int]] = {domain: [] for domain in pictures}
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> dict[str, Tensor]:
        """The next batch, this process' share of it."""
        return {domain: self._shared(domain) for domain in self.pictures}

    def _shared(self, domain: str) -> Tensor:
        """Draw a batch of one domain, and take every so many of its pictures, from the process' number on."""
        owners, queue, rank = self.owners[domain], self.queues[domain], self.world.rank
        count = min(self.batch, len(owners))
        while len(queue) < count:
            queue += torch.randperm(len(owners), generator=self.generator).tolist()
        drawn, self.queues[domain] = [owners[number] for number in queue[:count]], queue[count:]
        mine = {index: place for index, (place, owner) in enumerate(drawn) if owner == rank}
        found = self._read(domain, list(mine.values()))
        if self.world.size == 1:
            return found
        whole = found.new_zeros(count, *found.shape[1:])
        whole[list(mine)] = found
        self.world.reduce(whole)
        return whole[rank :: self.world.size]

    def _read(self, domain: str, chosen: Sequence[int]) -> Tensor:
        """Read some of this process' pictures of one domain, by their places among them."""
        batches, places = self.pictures[domain], self.places[domain]
        pictures: dict[int, Tensor] = {}
        for number, group in groupby(sorted(set(chosen)), lambda place: places[place][0]):
            together = list(group)  # each of the pictures' batches is read once
            rows = batches[number][torch.tensor([places[place][1] for place in together])]
            pictures.update(zip(together, rows, strict=True))
        return torch.stack([pictures[place] for place in chosen]) if chosen else batches[0][:0]
