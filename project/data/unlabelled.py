"""Domains to train on without their labels."""

from typing import Any

from lightning.pytorch.utilities import CombinedLoader

from project.data.datamodule import DomainDataModule
from project.data.transforms import mirroring_transform
from project.errors import ConfigurationError


class UnlabelledDataModule(DomainDataModule):
    """Domains whose calibration pictures are trained on, by domain and without labels.

    With the settings of a merge they are the pictures of that merge. A training batch holds
    ``calibration_batch_size`` pictures of each domain; ``calibration_views`` plays no part. ``augment`` mirrors them at
    random and does not crop them: a student errs more on parts of pictures than on whole ones that it has not seen.
    Validation and tests are those of DomainDataModule; labels are read for scoring only.
    """

    def train_dataloader(self) -> CombinedLoader:  # type: ignore[override]
        """Batches that map every domain to pictures (B, 3, image_size, image_size), shuffled in every epoch.

        A domain of fewer pictures than the others comes round again, so that no batch lacks it.

        Raises:
            ConfigurationError: If there are to be no calibration pictures.
        """
        if not self.calibration_domains:
            raise ConfigurationError(f"calibration is {self.calibration!r}, which leaves nothing to train on.")
        transform = mirroring_transform(self.preprocessing) if self.augment else self._plain
        options: dict[str, Any] = {"labelled": False, "batch_size": self.calibration_batch_size}
        loaders = {
            name: self._training_loader(self.samples(name, "calibration"), transform, number, **options)
            for number, name in enumerate(self.calibration_domains)
        }
        return CombinedLoader(loaders, mode="max_size_cycle")

    def _views(self, domain: str) -> int:
        return 1
