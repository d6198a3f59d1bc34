"""Pictures as torch data sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from project.data.domain import Sample
from project.data.opening import open_picture
from project.data.sharding import seed_of
from project.data.transforms import Transform


class Pictures(Dataset[Any]):
    """Pictures with their labels: item i is a tensor of shape (3, image_size, image_size) and the label.

    Args:
        samples: Files and labels.
        transform: Makes a tensor of an opened picture.

    Raises:
        DataError: From an item whose file cannot be read as a picture.
    """

    def __init__(self, samples: list[Sample], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """The picture and its label."""
        return self.picture(index), self.samples[index][1]

    def picture(self, index: int) -> Tensor:
        """The picture alone."""
        return self._shown(index, self.transform)

    def _shown(self, index: int, transform: Transform) -> Tensor:
        """A picture, opened and transformed in one way."""
        return transform(open_picture(self.samples[index][0], transform.preprocessing))


class CalibrationPictures(Pictures):
    """Pictures to calibrate with: all as they are, then all once more for every further view.

    Further views are cropped and mirrored at random. A view depends on the seed, its number and its picture's number
    alone, and draws nothing from torch's generator.

    Args:
        samples: Files and labels.
        transform: Makes a tensor of an opened picture.
        varied: The same, at random, for every view but the first.
        views: Views of each picture.
        seed: Seed of the views.
        labelled: Whether an item is the picture and its label; else it is the picture alone.
    """

    def __init__(
        self,
        samples: list[Sample],
        transform: Transform,
        varied: Transform,
        views: int = 1,
        seed: int = 0,
        labelled: bool = False,
    ) -> None:
        super().__init__(samples, transform)
        self.varied = varied
        self.views = views
        self.seed = seed
        self.labelled = labelled

    def __len__(self) -> int:
        """Number of views of all pictures."""
        return self.views * len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """A view of a picture, with its label where asked for."""
        view, number = divmod(index, len(self.samples))
        shown = self._view(view, number)
        return (shown, self.samples[number][1]) if self.labelled else shown

    def _view(self, view: int, number: int) -> Tensor:
        if view == 0:
            return self.picture(number)
        with drawing(self.seed, view, number):
            return self._shown(number, self.varied)


class TrainingPictures(Pictures):
    """Pictures to train on, varied at random and differently in every draw, however many workers load them.

    Item i + n · draw, n being the number of pictures, is picture i as that draw shows it: the seed and these numbers
    alone decide how. Nothing is drawn from torch's generator.

    Args:
        samples: Files and labels.
        transform: Makes a tensor of an opened picture, at random or not.
        seed: Seed of all that is drawn.
        labelled: Whether an item is the picture and its label; else it is the picture alone.
    """

    def __init__(self, samples: list[Sample], transform: Transform, seed: int, labelled: bool = True) -> None:
        super().__init__(samples, transform)
        self.seed, self.labelled = seed, labelled

    def __getitem__(self, index: int) -> Any:
        """A picture as a draw shows it, with its label where asked for."""
        draw, number = divmod(index, len(self))
        with drawing(self.seed, draw, number):
            shown = self.picture(number)
        return (shown, self.samples[number][1]) if self.labelled else shown


class NamedPictures(Pictures):
    """Pictures with the paths of their files."""

    def __getitem__(self, index: int) -> Any:
        """The picture and its path."""
        return self.picture(index), str(self.samples[index][0])


@contextmanager
def drawing(*numbers: int) -> Iterator[None]:
    """While open, torch's generator of the CPU draws what some numbers decide; then it goes on as if nothing had been.

    Args:
        numbers: None below 0.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_of(*numbers))  # torch.manual_seed would reset those of GPUs, too
    try:
        yield
    finally:
        torch.set_rng_state(before)
