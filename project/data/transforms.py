"""From an opened picture to a normalised tensor."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from project.models.preprocessing import Preprocessing


class Transform:
    """Makes float32 of shape (3, image_size, image_size) of an RGB picture.

    Args:
        preprocessing: What it goes through; files are opened as it says, too.
        steps: What fits it to the input's size.
    """

    def __init__(self, preprocessing: Preprocessing, steps: Sequence[v2.Transform]) -> None:
        self.preprocessing = preprocessing
        mean, std = map(list, (preprocessing.mean, preprocessing.std))
        self._steps = v2.Compose([
            *steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)
        ])  # fmt: skip

    def __call__(self, picture: Image.Image) -> Tensor:
        """The network's input, its channels in the order in which the network reads them."""
        made: Tensor = self._steps(picture)
        return made.flip(0) if self.preprocessing.channels == "BGR" else made


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The same tensor every time; a picture that already has the size is not resampled.

    Args:
        preprocessing: Size, normalisation and how a picture that is not square is fitted.
    """
    return Transform(preprocessing, _fit(preprocessing))


def mirroring_transform(preprocessing: Preprocessing) -> Transform:
    """As :func:`evaluation_transform`, mirrored by lot; draws from torch's generator.

    Args:
        preprocessing: Size, normalisation and how a picture that is not square is fitted.
    """
    return Transform(preprocessing, [*_fit(preprocessing), v2.RandomHorizontalFlip()])


def training_transform(preprocessing: Preprocessing) -> Transform:
    """A random part of the picture, at least half of it, resized and mirrored by lot; draws from torch's generator.

    Args:
        preprocessing: Size, interpolation and normalisation.
    """
    mode = InterpolationMode(preprocessing.interpolation)
    zoom = v2.RandomResizedCrop(preprocessing.image_size, scale=(0.5, 1.0), interpolation=mode)
    return Transform(preprocessing, [zoom, v2.RandomHorizontalFlip()])


def _fit(preprocessing: Preprocessing) -> list[v2.Transform]:
    side, before = preprocessing.image_size, preprocessing.resized
    mode = InterpolationMode(preprocessing.interpolation)
    if preprocessing.crop == "center":
        return [v2.Resize(before, mode), v2.CenterCrop(side)]
    middle = [v2.CenterCrop(side)] if before > side else []
    return [v2.Resize((before, before), mode), *middle]
