"""What the trainer sees of the data: loaders over the domains of any data sets."""

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import ConcatDataset, DataLoader

from project.data.domains import Domains, Use
from project.data.mixed import MixedLoader
from project.data.pictures import NamedPictures, Pictures
from project.data.sharding import EachOnce
from project.data.transforms import training_transform


class DomainDataModule(Domains, LightningDataModule):
    """Domains of one or several data sets, split, checked and loaded.

    Training runs over all domains at once; validation, test and prediction have one loader a domain, in order.
    Pictures are decoded once before they are first used, so that an unreadable one is found before a long run. Its
    arguments are those of :class:`~project.data.Domains`.

    Raises:
        ConfigurationError: Where an argument has an impossible value.
    """

    def prepare_data(self) -> None:
        """Download or render what is missing, in one process."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the lists and split them, in every process alike."""
        self.read()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of pictures (B, 3, image_size, image_size) and output columns (B,), shuffled over all domains."""
        transform = training_transform(self.preprocessing) if self.augment else self._plain
        columns = self.label_space.columns
        parts = [Pictures(self.samples(name, "train"), transform, columns(name).start) for name in self.domain_names]
        dataset: ConcatDataset[Any] = ConcatDataset(parts)
        return self._training_loader(dataset)

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

    def _training_loader(self, dataset: Any) -> DataLoader[Any]:
        """Shuffled; a last batch of one picture, which would break batch norm, is left out."""
        lonely = len(dataset) > self.batch_size and len(dataset) % self.batch_size == 1
        return self._loader(dataset, shuffle=True, drop_last=lonely)
