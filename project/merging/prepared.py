"""What pictures go through before the networks of a merge read them: what files say of it, and what users ask for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypedDict

from project.errors import ConfigurationError
from project.models import Preprocessing
from project.models.preprocessing import Channels, Crop, Interpolation, Orientation
from project.runtime import warn

RESIZE, CROP_PCT = "resize", "crop_pct"  # two ways to say one thing


class PictureOptions(TypedDict, total=False):
    """What pictures in folders go through, as far as the sources' files do not say it or the user says otherwise.

    Attributes:
        mean: Mean of red, green and blue, for values from 0 to 1 (default: what the files say, else ImageNet's).
        std: Standard deviation of red, green and blue (default: what the files say, else ImageNet's).
        crop: ``center`` or ``squash``, see :class:`~project.models.Preprocessing`.
        resize: Side to which pictures are resized before their middle of ``image_size`` is kept, in pixels.
        interpolation: How pictures are resized: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or
            ``lanczos``.
        orientation: ``applied``: pictures stand as their camera noted (EXIF); ``ignored``: as their pixels lie.
        ground: Colour on which transparent pictures are laid: ``white``, ``grey``, ``black`` or ``#rrggbb``.
        channels: Order in which the networks read channels, ``RGB`` or ``BGR``.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None
    crop: Crop | None
    resize: int | None
    interpolation: Interpolation | None
    orientation: Orientation | None
    ground: str | None
    channels: Channels | None


PICTURE_OPTIONS = tuple(PictureOptions.__annotations__)


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a user says that pictures shall go through, by the names of :class:`~project.models.Preprocessing`."""
    names = ("image_size", *PICTURE_OPTIONS)
    return {name: options[name] for name in names if options.get(name) is not None}


def agreed_preprocessing(known: Mapping[str, Preprocessing | None], stated: Collection[str] = ()) -> dict[str, Any]:
    """What pictures must go through for all networks that say it, where the user does not.

    Args:
        known: File -> what it says; None where it says nothing.
        stated: Fields of Preprocessing that the user has stated.

    Returns:
        The other fields, as plain values, ``crop_pct`` in place of ``resize`` where the size is stated; empty where no
        file says any.

    Raises:
        ConfigurationError: If two files say different things.
    """
    saying = {name: {**asdict(one), CROP_PCT: one.crop_pct} for name, one in known.items() if one is not None}
    # A side to which pictures are resized goes with one size of what is kept of them; a share goes with any.
    asked = [field.name for field in fields(Preprocessing) if field.name not in {*stated, RESIZE}]
    if not {RESIZE, CROP_PCT} & set(stated):
        asked.append(CROP_PCT if "image_size" in stated else RESIZE)
    agreed: dict[str, Any] = {}
    for key in asked:
        for name, values in saying.items():
            first = next(iter(saying))
            if values[key] != saying[first][key]:
                raise ConfigurationError(
                    f"{first} was made for {key} {saying[first][key]}, but {name} for {values[key]}; say which the "
                    f"pictures are to have: {key} of the data."
                )
            agreed[key] = values[key]
    return agreed


def sized(agreed: Mapping[str, Any], origins: Collection[str]) -> None:
    """Refuse to guess at which size networks read pictures.

    Args:
        agreed: What pictures go through as far as it is known, see :func:`agreed_preprocessing`.
        origins: The files.

    Raises:
        ConfigurationError: If the size is not known.
    """
    if "image_size" not in agreed:
        raise ConfigurationError(
            f"image_size is missing: {', '.join(origins)} do not say on pictures of which size they were trained; say "
            f"it, such as --image-size 224 (image_size=224 in Python)."
        )


def warn_of_preprocessing(name: str, known: Preprocessing | None, given: Preprocessing | None) -> None:
    """Say so where the data's pictures are prepared in another way than a network's, as far as that is known."""
    if known is None or given is None:
        return
    mine, theirs = asdict(known), asdict(given)
    differing = [one for one in mine if mine[one] != theirs[one]]
    if differing:
        words = (", ".join(f"{one} {values[one]}" for one in differing) for values in (mine, theirs))
        warn("{} was made for {}, but data gives {}.".format(name, *words))
