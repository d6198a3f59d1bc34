"""From an opened picture to a normalised tensor."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from project.models.preprocessing import Preprocessing

Transform: TypeAlias = Callable[[Image.Image], Tensor]
"""Makes float32 of shape (3, image_size, image_size) of an RGB picture."""


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The same tensor every time; a picture that already has the size is not resampled.

    Args:
        preprocessing: Size, normalisation and how a picture that is not square is fitted.
    """
    return _compose(_fit(preprocessing), preprocessing)


def mirroring_transform(preprocessing: Preprocessing) -> Transform:
    """As :func:`evaluation_transform`, mirrored by lot; draws from torch's generator.

    Args:
        preprocessing: Size, normalisation and how a picture that is not square is fitted.
    """
    return _compose([*_fit(preprocessing), v2.RandomHorizontalFlip()], preprocessing)


def training_transform(preprocessing: Preprocessing) -> Transform:
    """A random part of the picture, at least half of it, resized and mirrored by lot; draws from torch's generator.

    Args:
        preprocessing: Size and normalisation.
    """
    zoom = v2.RandomResizedCrop(preprocessing.image_size, scale=(0.5, 1.0))
    return _compose([zoom, v2.RandomHorizontalFlip()], preprocessing)


def _fit(preprocessing: Preprocessing) -> list[v2.Transform]:
    side = preprocessing.image_size
    if preprocessing.crop == "center":
        return [v2.Resize(side), v2.CenterCrop(side)]
    return [v2.Resize((side, side))]


def _compose(steps: list[v2.Transform], preprocessing: Preprocessing) -> Transform:
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    transform: Transform = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), normalise])
    return transform
