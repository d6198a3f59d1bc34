"""From a file to an RGB picture: which way up it stands, on which ground, and what else of it must be settled."""

import os
import stat
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from project.errors import DataError
from project.models.preprocessing import Preprocessing, colour_of

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What pictures are decoded as, whatever their suffix: Pillow would hand others on to programs, such as Ghostscript."""

AS_TAKEN = Preprocessing(1)
"""Opens pictures as nothing else is said."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""


class Finding(NamedTuple):
    """What a file is found to be, beside its pixels as 8 bits of red, green and blue.

    Args:
        defect: Why it cannot be opened as a picture; None where it can.
        absent: It is not there.
        turned: Its camera noted another way up than the pixels lie.
        deep: Its values have more than 8 bits.
        transparent: Some of it is transparent, wholly or in part.
    """

    defect: str | None = None
    absent: bool = False
    turned: bool = False
    deep: bool = False
    transparent: bool = False


def open_picture(path: str | Path, preprocessing: Preprocessing | None = None) -> Image.Image:
    """Open and decode a picture as RGB.

    Grey values of 16 bits are divided by 257, those of floating point from 0 to 1 are multiplied by 255, each rounded.

    Args:
        path: The file.
        preprocessing: Says which way up it stands and on which ground, see
            :class:`~project.models.preprocessing.Preprocessing`; default: as its camera noted, transparency dropped.

    Raises:
        DataError: Where the file cannot be read as a picture, or nothing tells what its values mean.
    """
    wanted = AS_TAKEN if preprocessing is None else preprocessing
    try:
        with opened(path) as image:
            image.load()
            shown = _eight_bits(image)
            if wanted.orientation == "applied":
                shown = _upright(shown, _orientation(image))
            if wanted.ground is not None and _has_alpha(shown):
                shown = _laid_on(shown, colour_of(wanted.ground))
            return shown.convert("RGB")
    except Exception as error:  # whatever a decoder raises that is given nonsense
        raise DataError(f"{path} cannot be read as a picture: {reason_of(error)}.") from error


def examine(path: Path) -> Finding:
    """Open a file as a picture, and say what it is.

    A JPEG is decoded at an eighth of its size, which finds truncation as well and is several times faster.
    """
    try:
        with opened(path) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            shown = _eight_bits(image)
            return Finding(None, False, _orientation(image) in TURNS, shown is not image, _is_transparent(shown))
    except Exception as error:  # whatever a decoder raises that is given nonsense
        return Finding(reason_of(error), isinstance(error, FileNotFoundError))


def defect(path: Path) -> str | None:
    """Why a file cannot be opened as a picture; None where it can."""
    return examine(path).defect


def opened(path: str | Path) -> Image.Image:
    """A picture whose head has been read.

    Raises:
        OSError: If it is no file: opening a pipe would wait for ever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no file")
    return Image.open(path, formats=_known())


@cache
def _known() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow has a plugin for; older ones know no AVIF."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reason_of(error: Exception) -> str:
    """What an error says, without its full stop."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def _orientation(image: Image.Image) -> int:
    """What its camera noted, 1 where that cannot be read: metadata are not what a picture fails for."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever a reader of metadata raises that is given nonsense
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """As `PIL.ImageOps.exif_transpose`, which also writes all metadata anew, and fails where it cannot."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture itself, or of one whose values Pillow would cut off at 255, one of the same range in 8 bits.

    Raises:
        ValueError: If nothing tells the range of its values.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not sixteen and image.mode not in ("I", "F"):
        return image
    values = np.asarray(image, dtype=np.float64)
    if sixteen:
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "I":
        raise ValueError("its values are integers of 32 bits, whose range nothing tells; save it with 8 or 16 bits")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"its values are of floating point, from {values.min():g} to {values.max():g}; allowed: 0 to 1"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _is_transparent(image: Image.Image) -> bool:
    """Whether some of it is: many files have a fourth channel that says nothing."""
    if not _has_alpha(image):
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def _laid_on(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, (*colour, 255)), above)
