"""Pictures as torch data sets."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from project.data.domain import Sample
from project.data.transforms import Transform
from project.errors import DataError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is missing, truncated or no picture."""


class Pictures(Dataset[Any]):
    """Pictures with their labels: item i is a tensor of shape (3, image_size, image_size) and the label.

    Args:
        samples: Files and labels.
        transform: Makes a tensor of an opened picture.
        offset: Added to every label: the first output column of the domain's head.

    Raises:
        DataError: From an item whose file cannot be read as a picture.
    """

    def __init__(self, samples: list[Sample], transform: Transform, offset: int = 0) -> None:
        self.samples = samples
        self.transform = transform
        self.offset = offset

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """The picture and its label."""
        return self.picture(index), self.samples[index][1] + self.offset

    def picture(self, index: int) -> Tensor:
        """The picture alone."""
        return self.transform(open_picture(self.samples[index][0]))


class UnlabelledPictures(Pictures):
    """Pictures alone."""

    def __getitem__(self, index: int) -> Any:
        """The picture."""
        return self.picture(index)


class NamedPictures(Pictures):
    """Pictures with the paths of their files."""

    def __getitem__(self, index: int) -> Any:
        """The picture and its path."""
        return self.picture(index), str(self.samples[index][0])


def open_picture(path: Path) -> Image.Image:
    """Open and decode a picture as RGB.

    Raises:
        DataError: Where the file cannot be read as a picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a picture: {_reason(error)}.") from error


def defect(path: Path) -> str | None:
    """Why a file cannot be decoded as a picture; None where it can.

    A JPEG is decoded at an eighth of its size, which finds truncation as well and is several times faster.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except UNREADABLE as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
