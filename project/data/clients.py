"""Domains dealt out to clients that keep their pictures to themselves, as in federated learning."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from project.data.datamodule import DomainDataModule
from project.data.domain import DomainSet, Sample
from project.data.splits import by_class
from project.errors import ConfigurationError, above, whole

MOST_CLIENTS = 10_000  # of a domain: each trains a network of its own, which one process holds


class ClientDataModule(DomainDataModule):
    """Domains whose training pictures belong to clients: one for each domain, or several that share it unevenly.

    Clients of a domain have its classes in unlike proportions: for each class, the shares of the clients are drawn from
    a symmetric Dirichlet distribution (arXiv 1909.06335). Validation and tests are those of DomainDataModule, one
    loader a domain.

    Args:
        sets: Data set, or list of data sets, from which the domains come.
        clients: Clients of each domain; ``seed`` decides which picture is whose.
        alpha: Concentration of the Dirichlet distribution: small numbers give most of a class to one client, large
            ones the same to all. Plays no part where a domain has one client.
        local_epochs: How often each client sees each of its pictures in a round, shuffled and varied anew.
        options: As in DomainDataModule; ``label_space`` must be ``shared``.

    Raises:
        ConfigurationError: If there is to be no client, alpha is not above 0, or every domain has a head of its own.
    """

    def __init__(
        self,
        sets: DomainSet | list[DomainSet],
        clients: int = 1,
        alpha: float = 0.5,
        local_epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(sets, **options)
        whole(1, MOST_CLIENTS, clients=clients)
        whole(1, local_epochs=local_epochs)
        above(0, alpha=alpha)
        if self.label_mode != "shared":
            raise ConfigurationError(f"label_space is {self.label_mode!r}; clients share one head: use 'shared'.")
        self.clients, self.alpha, self.local_epochs = clients, alpha, local_epochs

    @property
    def client_names(self) -> tuple[str, ...]:
        """The clients: their domain, and a number where it has several."""
        if self.clients == 1:
            return self.domain_names
        return tuple(f"{domain}-{index}" for domain in self.domain_names for index in range(self.clients))

    def client_samples(self) -> dict[str, list[Sample]]:
        """Client -> its training pictures.

        Raises:
            ConfigurationError: If one has fewer than two, which a batch norm cannot be trained on.
        """
        dealt = [
            part
            for number, domain in enumerate(self.domain_names)
            for part in dirichlet_parts(self.samples(domain, "train"), self.clients, self.alpha, [self.seed, number])
        ]
        found = dict(zip(self.client_names, dealt, strict=True))
        for name, samples in found.items():
            if len(samples) < 2:
                raise ConfigurationError(
                    f"clients is {self.clients} with alpha {self.alpha}, which leaves {name} {len(samples)} of "
                    f"at least 2 pictures; use fewer clients, a larger alpha, or another seed."
                )
        return found

    def train_dataloader(self) -> CombinedLoader:  # type: ignore[override]
        """Batches that map every client to pictures (B, 3, image_size, image_size) and output columns (B,).

        In an epoch each client sees each of its pictures ``local_epochs`` times, shuffled, but for a last one that
        would be a batch by itself; one that has no more maps to None.
        """
        loaders = {
            name: Repeated(
                self._training_loader(samples, self._varied, number, drop_last=self._lonely(samples)), self.local_epochs
            )
            for number, (name, samples) in enumerate(self.client_samples().items())
        }
        return CombinedLoader(loaders, mode="max_size")


class Repeated:
    """A loader that is gone through several times in a row, each time in its next order.

    Args:
        loader: The loader.
        times: How often.
    """

    def __init__(self, loader: DataLoader[Any], times: int) -> None:
        self.loader, self.times = loader, times

    @property
    def sampler(self) -> Any:
        """The loader's, which Lightning tells of epochs."""
        return self.loader.sampler

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader) * self.times

    def __iter__(self) -> Iterator[Any]:
        """All batches, pass by pass."""
        for _ in range(self.times):
            yield from self.loader


def dirichlet_parts(samples: list[Sample], clients: int, alpha: float, seed: int | list[int]) -> list[list[Sample]]:
    """Deal samples out, each to one client, every class in proportions of its own.

    Args:
        samples: What is dealt out.
        clients: How many there are.
        alpha: Concentration of the Dirichlet distribution that the proportions are drawn from.
        seed: The same seed deals alike, in whatever order the samples come.

    Returns:
        The samples of each client, in the order of the clients.
    """
    draw = np.random.default_rng(seed)
    found: list[list[Sample]] = [[] for _ in range(clients)]
    for members in by_class(samples).values():
        order = draw.permutation(len(members))
        ends = np.round(np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).astype(int)
        for part, chosen in zip(found, np.split(order, ends), strict=True):
            part += [members[index] for index in chosen]
    return found
