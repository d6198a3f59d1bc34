"""Colour and drawing that several styles share."""

import colorsys
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from project.data.shapes.primitives import TONES, Figure, Points

Colour: TypeAlias = tuple[int, int, int]
Pixels: TypeAlias = npt.NDArray[np.float32]


def colour(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue (any number, one turn per unit), saturation and value (0 to 1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def pixels(points: Points, canvas: int) -> list[tuple[float, float]]:
    """Corners in the square from -1 to 1 as places on a canvas of so many pixels."""
    return [(float(x), float(y)) for x, y in (points + 1) * (canvas / 2)]


def fill(image: Image.Image, figure: Figure, palette: list[Colour], edge: Colour | None = None, width: int = 1) -> None:
    """Paint the parts of a figure flat, in order, with or without an edge of some width in pixels."""
    draw = ImageDraw.Draw(image)
    for part in figure:
        corners = pixels(part.points, image.width)
        draw.polygon(corners, fill=palette[part.tone])
        if edge is not None:
            draw.line([*corners, corners[0]], fill=edge, width=width, joint="curve")


def silhouette(figure: Figure, canvas: int) -> Image.Image:
    """Where a figure is: 255 inside and 0 outside, mode L."""
    mask = Image.new("L", (canvas, canvas))
    draw = ImageDraw.Draw(mask)
    for part in figure:
        draw.polygon(pixels(part.points, canvas), fill=255)
    return mask


def clouds(canvas: int, grain: int, spread: float, rng: np.random.Generator) -> Pixels:
    """Smooth noise of shape (canvas, canvas, 3), zero on average, varying over about canvas / grain pixels.

    Most of it is light and dark; a third as much is colour.
    """
    light, tint = rng.normal(0, spread, (grain, grain, 1)), rng.normal(0, spread / 3, (grain, grain, 3))
    coarse = (light + tint).clip(-127, 127) + 128
    smooth = Image.fromarray(coarse.astype(np.uint8)).resize((canvas, canvas), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) - 128


def landscape(canvas: int, above: Colour, below: Colour, rng: np.random.Generator) -> Pixels:
    """One colour above, another below, and a horizon between them of some softness: shape (canvas, canvas, 3)."""
    horizon, softness = rng.uniform(0.2, 0.8), rng.uniform(0.02, 0.4)
    share = ((np.linspace(0, 1, canvas) - horizon) / softness + 0.5).clip(0, 1)[:, None, None]
    rows = np.array(above) * (1 - share) + np.array(below) * share
    return np.broadcast_to(rows, (canvas, canvas, 3)).astype(np.float32)


def picture(values: Pixels) -> Image.Image:
    """An RGB image of values between 0 and 255, shape (canvas, canvas, 3); what lies outside is clipped."""
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def palette_around(
    hue: float, saturation: tuple[float, float], value: tuple[float, float], rng: np.random.Generator
) -> list[Colour]:
    """Paints for the tones of an object: a body near a hue, two companions and a dark one.

    Args:
        hue: Hue of the body, one turn per unit.
        saturation: Range of the saturations.
        value: Range of the values of all but the dark paint.
        rng: Source of every choice.
    """
    hues = hue + np.array([0, rng.uniform(0.1, 0.5), rng.uniform(0.4, 0.8)])
    bright = [colour(h, rng.uniform(*saturation), rng.uniform(*value)) for h in hues]
    dark = colour(rng.random(), rng.uniform(*saturation) * 0.6, rng.uniform(0.08, 0.3))
    return [*bright, dark][:TONES]
