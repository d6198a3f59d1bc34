"""How a picture becomes a network's input: what a checkpoint must remember to be fed rightly."""

import re
from dataclasses import asdict, dataclass, fields
from math import floor, nextafter
from typing import Any, Literal

from project.errors import ConfigurationError, one_of, share, whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_SIDE = 2**14  # of a picture, in pixels: a batch of larger ones no machine holds
LARGEST_SHIFT, SMALLEST_SPREAD = 1e6, 1e-6  # beyond, squares of what a network reads leave float32

Crop = Literal["center", "squash"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Orientation = Literal["applied", "ignored"]
Channels = Literal["RGB", "BGR"]
GROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}


@dataclass(frozen=True)
class Preprocessing:
    """What pictures go through before a network reads them; `dataclasses.asdict` of it is fit for JSON.

    ``**`` brings it back. A field at its default does what this class did before it had the field.

    Args:
        image_size: Side of the square input, in pixels.
        mean: Mean of red, green and blue, for values from 0 to 1.
        std: Standard deviation of red, green and blue.
        crop: ``center``: the shorter side is resized to ``resize`` and the middle is kept; ``squash``: the whole
            picture is resized to a square of that side, of which the middle is kept.
        resize: Side to which a picture is resized before its middle of ``image_size`` is kept; None: ``image_size``,
            which keeps all of a square. See :func:`resize_of` for what others tell as a share.
        interpolation: How a picture is resized; with antialiasing, as Pillow does it.
        orientation: ``applied``: pictures stand as their camera noted (EXIF); ``ignored``: as their pixels lie, which
            is what torchvision's and timm's readers do. TIFF files stand as they note either way.
        ground: Colour on which transparent pictures are laid: ``white``, ``grey``, ``black`` or ``#rrggbb``; None:
            their transparency is dropped, which shows whatever colour was saved below.
        channels: Order in which the network reads the channels; ``mean`` and ``std`` are of red, green and blue always.

    Raises:
        ConfigurationError: Where a value cannot describe a picture.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: Crop = "center"
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    orientation: Orientation = "applied"
    ground: str | None = None
    channels: Channels = "RGB"

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
        if self.resize is not None:
            whole(self.image_size, LARGEST_SIDE, resize=self.resize)
            if self.resize == self.image_size:  # one way to say one thing, so that equal ones compare equal
                object.__setattr__(self, "resize", None)
        one_of(Interpolation, interpolation=self.interpolation)
        one_of(Orientation, orientation=self.orientation)
        if self.ground is not None:
            colour_of(self.ground)
        one_of(Channels, channels=self.channels)

    @property
    def plain(self) -> dict[str, Any]:
        """As plain values, without fields at their defaults that came later than what was written of it."""
        late = {field.name: field.default for field in fields(self)[4:]}
        return {name: value for name, value in asdict(self).items() if name not in late or value != late[name]}

    @property
    def resized(self) -> int:
        """Side to which pictures are resized, of which the middle is kept."""
        return self.resize or self.image_size

    @property
    def crop_pct(self) -> float:
        """The share of a side that is kept, as timm tells it: :func:`resize_of` of it is ``resized`` again."""
        found = self.image_size / self.resized
        while resize_of(self.image_size, found) < self.resized:
            found = nextafter(found, 0)
        return found

    @property
    def read(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the channels in the order in which the network reads them."""
        step = -1 if self.channels == "BGR" else 1
        return self.mean[::step], self.std[::step]


def resize_of(image_size: int, crop_pct: float) -> int:
    """Side to which pictures are resized before their middle is kept: ⌊image_size / crop_pct⌋, as timm rounds it.

    Args:
        image_size: Side of the middle.
        crop_pct: Its share of the side, above 0, up to 1.

    Raises:
        ConfigurationError: If it is no such share, or leaves too much.
    """
    whole(1, LARGEST_SIDE, image_size=image_size)
    share(crop_pct=crop_pct)
    if image_size / crop_pct >= LARGEST_SIDE + 1:
        raise ConfigurationError(
            f"crop_pct is {crop_pct}, which resizes pictures to {image_size / crop_pct:.6g} pixels for an image_size "
            f"of {image_size}; allowed: up to {LARGEST_SIDE}."
        )
    return floor(image_size / crop_pct)


def colour_of(ground: str) -> tuple[int, int, int]:
    """Red, green and blue of a ground, from 0 to 255.

    Raises:
        ConfigurationError: If it is no colour.
    """
    if isinstance(ground, str) and ground in GROUNDS:
        return GROUNDS[ground]
    if not isinstance(ground, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", ground):
        raise ConfigurationError(f"ground is {ground!r}; allowed: {', '.join(map(repr, GROUNDS))}, '#rrggbb', or null.")
    red, green, blue = (int(ground[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue
