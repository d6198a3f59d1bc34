"""What the trainer sees of the data: loaders over the domains of any data sets."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from project.data.domain import Sample
from project.data.domains import Domains, Use
from project.data.mixed import MixedLoader
from project.data.pictures import NamedPictures, Pictures, TrainingPictures
from project.data.sharding import EachOnce, Shuffled, seed_of
from project.data.transforms import Transform, training_transform


class DomainDataModule(Domains, LightningDataModule):
    """Domains of one or several data sets, split, checked and loaded.

    Training runs over all domains at once; validation, test and prediction have one loader a domain, in order. The
    order of the training pictures and how they are varied depend on the seed of the run and the number of the epoch
    alone, not on what came before, nor on the number of workers. Pictures are decoded once before they are first used,
    so that an unreadable one is found before a long run. Its arguments are those of :class:`~project.data.Domains`.

    Raises:
        ConfigurationError: Where an argument has an impossible value.
    """

    fit_seed: int | None = None
    """Seed of the run, as it was when the fit began."""

    def prepare_data(self) -> None:
        """Download or render what is missing, in one process."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the lists and split them, in every process alike."""
        self.read()
        self.fit_seed = torch.initial_seed()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of pictures (B, 3, image_size, image_size) and output columns (B,), shuffled over all domains."""
        samples = self._training_samples()
        return self._training_loader(samples, self._varied, drop_last=self._lonely(samples))

    def _training_samples(self) -> list[Sample]:
        """The training pictures of all domains, and their output columns."""
        columns = self.label_space.columns
        return [
            (path, label + columns(name).start)
            for name in self.domain_names
            for path, label in self.samples(name, "train")
        ]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a domain: pictures (B, 3, image_size, image_size), labels (B,) among the domain's classes."""
        if self.validation_fraction == 0:
            return []
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return [self._evaluation_loader(name, "validation", each_once=not fitting) for name in self.domain_names]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a domain: pictures (B, 3, image_size, image_size), labels (B,) among the domain's classes."""
        return [self._evaluation_loader(name, "test", each_once=True) for name in self.domain_names]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a domain, over its test pictures: pictures (B, 3, image_size, image_size), paths (B)."""
        datasets = [NamedPictures(self.samples(name, "test"), self._plain) for name in self.domain_names]
        return [self._loader(dataset, sampler=EachOnce(dataset)) for dataset in datasets]

    def probe_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a domain, over its training pictures as they are: pictures and labels as in a test, each once."""
        return [self._evaluation_loader(name, "train", each_once=True) for name in self.domain_names]

    def calibration_dataloader(self, labelled: bool = False) -> MixedLoader:
        """The batches to calibrate with, see :meth:`calibration_batches`."""
        return self.calibration_batches(labelled)

    @staticmethod
    def no_pictures() -> MixedLoader:
        """One batch that maps nothing, where a merge need not look at pictures."""
        return MixedLoader({})

    def _evaluation_loader(self, domain: str, use: Use, each_once: bool) -> DataLoader[Any]:
        """Uneven shares would make processes wait for each other while fitting, so there `each_once` is off."""
        dataset = Pictures(self.samples(domain, use), self._plain)
        return self._loader(dataset, sampler=EachOnce(dataset) if each_once else None)

    def _training_loader(
        self,
        samples: list[Sample],
        transform: Transform,
        number: int = 0,
        *,
        labelled: bool = True,
        dealt: bool = True,
        **options: Any,
    ) -> DataLoader[Any]:
        """Shuffled, and varied by the transform, anew in every epoch; the number tells several loaders apart.

        Of several processes each has its share, or, where nothing is dealt out, all.
        """
        seed = seed_of(torch.initial_seed() if self.fit_seed is None else self.fit_seed, number)
        dataset = TrainingPictures(samples, transform, seed, labelled)
        # an iterator draws from a generator of its own: torch's is the network's, whenever the iterator is made
        return self._loader(
            dataset, sampler=Shuffled(dataset, seed, self._epoch, dealt), generator=torch.Generator(), **options
        )

    def _lonely(self, samples: list[Sample]) -> bool:
        """Whether the last batch would be of one picture, which would break batch norm; it is left out."""
        return len(samples) > self.batch_size and len(samples) % self.batch_size == 1

    @property
    def _varied(self) -> Transform:
        return training_transform(self.preprocessing) if self.augment else self._plain

    @property
    def _epoch(self) -> int:
        """The number of the epoch to be trained next, of a fit that goes on too."""
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]  # as it has it
