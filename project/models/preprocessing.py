"""How a picture becomes a network's input: what a checkpoint must remember to be fed rightly."""

from dataclasses import dataclass
from typing import Literal

from project.errors import ConfigurationError, one_of, whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_SIDE = 2**14  # of a picture, in pixels: a batch of larger ones no machine holds
LARGEST_SHIFT, SMALLEST_SPREAD = 1e6, 1e-6  # beyond, squares of what a network reads leave float32

Crop = Literal["center", "squash"]


@dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of input pictures; `dataclasses.asdict` of it is fit for JSON, and ``**`` brings it back.

    Args:
        image_size: Side of the square input, in pixels.
        mean: Mean of red, green and blue, for values from 0 to 1.
        std: Standard deviation of red, green and blue.
        crop: ``center``: the shorter side is resized to ``image_size`` and the middle is kept; ``squash``: the whole
            picture is resized to a square.

    Raises:
        ConfigurationError: Where a value cannot describe a picture.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: Crop = "center"

    def __post_init__(self) -> None:
        """Take lists, as JSON gives them, and refuse impossible values."""
        whole(1, LARGEST_SIDE, image_size=self.image_size)
        one_of(Crop, crop=self.crop)
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                values = () if isinstance(given, str) else tuple(float(value) for value in given)
            except (TypeError, ValueError, OverflowError):
                values = ()
            if len(values) != 3 or not all(abs(value) <= LARGEST_SHIFT for value in values):
                raise ConfigurationError(
                    f"{name} is {given}; allowed: three numbers, for red, green and blue, for values from 0 to 1."
                )
            object.__setattr__(self, name, values)
        if min(self.std) < SMALLEST_SPREAD:
            raise ConfigurationError(f"std is {self.std}; allowed: three numbers of {SMALLEST_SPREAD:g} or more.")
