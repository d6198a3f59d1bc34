"""Pictures for networks that are trained side by side."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from project.data.datamodule import DomainDataModule
from project.data.domain import DomainSet
from project.data.pictures import Pictures
from project.data.splits import shuffled
from project.errors import ConfigurationError, whole
from project.runtime import World


class PopulationDataModule(DomainDataModule):
    """Domains whose training pictures all members of a population see, each in an order and variations of its own.

    In several processes there is one member in each. Validation and tests are those of DomainDataModule.

    Args:
        sets: Data set, or list of data sets, from which the domains come.
        members: How many networks are trained side by side.
        options: As in DomainDataModule.

    Raises:
        ConfigurationError: If there are fewer than two members, or not as many as processes.
    """

    def __init__(self, sets: DomainSet | list[DomainSet], members: int = 4, **options: Any) -> None:
        super().__init__(sets, **options)
        whole(2, members=members)
        self.members = members

    @property
    def local_members(self) -> list[int]:
        """Numbers of the members of this process.

        Raises:
            ConfigurationError: If there are several processes, but not as many as members.
        """
        world = World.current()
        if world.size not in (1, self.members):
            raise ConfigurationError(
                f"trainer.devices and num_nodes make {world.size} processes for {self.members} members; allowed: one "
                f"for all, or one for each."
            )
        return list(range(self.members)) if world.size == 1 else [world.rank]

    def train_dataloader(self) -> CombinedLoader:  # type: ignore[override]
        """Batches that map this process's members to pictures (B, 3, image_size, image_size) and columns (B,)."""
        samples = self._training_samples()
        loaders = {
            number: self._training_loader(samples, self._varied, number, drop_last=self._lonely(samples), dealt=False)
            for number in self.local_members
        }
        return CombinedLoader(loaders, mode="max_size")

    def plain_batches(self, count: int) -> Iterator[Tensor]:
        """Training pictures as they are, the same in every process.

        Args:
            count: How many, at most.

        Yields:
            Pictures (B, 3, image_size, image_size).
        """
        samples = shuffled(self._training_samples(), self.seed)[:count]
        pictures = Pictures(samples, self._plain)
        for start in range(0, len(samples), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(samples)))
            yield torch.stack([pictures.picture(number) for number in numbers])
