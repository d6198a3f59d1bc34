"""Pictures of which nothing is known, to ask a network about."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from project.data.checking import OnError, PictureCheck, check_loading
from project.data.domain import Sample
from project.data.folders import PictureFolder
from project.data.pictures import NamedPictures
from project.data.sharding import EachOnce
from project.data.transforms import evaluation_transform
from project.errors import ConfigurationError, DataError
from project.models.preprocessing import Preprocessing


class UnsortedDataModule(LightningDataModule):
    """All pictures below a folder, however it is arranged, for ``predict``: no classes, no domain, no labels.

    Pictures go through what the file of the network says its pictures must.

    Args:
        root: The folder.
        batch_size: Pictures in a batch.
        num_workers: Processes that load pictures.
        on_error: What to do about an unreadable picture: ``raise`` an error, or ``skip`` it with a warning.

    Raises:
        ConfigurationError: Where an argument has an impossible value.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 64,
        num_workers: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # of fewer pictures than processes
        check_loading(batch_size, num_workers)
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers
        self.preprocessing: Preprocessing | None = None
        self._check = PictureCheck(on_error)
        self._samples: list[Sample] = []

    def setup(self, stage: str | None = None) -> None:
        """List the pictures.

        Raises:
            DataError: Where there are none.
        """
        (found,) = PictureFolder(self.root).read()
        found.tell()
        self._samples = list(found.train)

    def suit(self, name: str, known: Preprocessing | None) -> None:
        """Prepare pictures as a network's file says.

        Args:
            name: The network, for messages.
            known: What its file says.

        Raises:
            ConfigurationError: If it says nothing.
        """
        if known is None:
            raise ConfigurationError(f"the file of network {name} does not say how pictures are prepared for it.")
        self.preprocessing = known

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of pictures (B, 3, image_size, image_size) and their paths (B), each once over all processes.

        Raises:
            ConfigurationError: Where nobody has said how pictures are prepared.
            DataError: Where a picture cannot be read, or none.
        """
        if self.preprocessing is None:
            raise ConfigurationError("no network has said how pictures are prepared; use EvaluationModule as model.")
        readable = self._check.readable(self._samples)
        if not readable:
            raise DataError(f"{self.root} holds no picture that can be read.")
        self._check.account(readable, self.preprocessing, str(self.root))
        dataset = NamedPictures(readable, evaluation_transform(self.preprocessing))
        return DataLoader(dataset, batch_size=self.batch_size, sampler=EachOnce(dataset), num_workers=self.num_workers)
