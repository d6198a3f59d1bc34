"""Oil on canvas: an uneven ground, broken colour laid in short strokes, and the weave showing through."""

import numpy as np
from PIL import Image, ImageDraw

from project.data.shapes.scene import Scene
from project.data.shapes.styles.brush import Pixels, clouds, colour, fill, landscape, palette_around, picture

STROKES = 220
"""Short strokes laid over the underpainting."""


def painting(scene: Scene, canvas: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as a painting.

    Args:
        scene: What to draw.
        canvas: Side of the picture in pixels.
        rng: Source of every choice.
    """
    hue = rng.random()
    above = colour(hue, rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.9))
    below = colour(hue + rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.8))
    under = picture(landscape(canvas, above, below, rng) + clouds(canvas, 6, 16, rng))
    for figure in scene.clutter:
        if rng.random() < 0.6:
            fill(under, figure, palette_around(hue, (0.2, 0.6), (0.3, 0.8), rng))
    palette = palette_around(hue + rng.uniform(0.25, 0.75), (0.35, 0.85), (0.35, 1), rng)
    edge = palette[3] if rng.random() < 0.4 else None
    fill(under, scene.subject, palette, edge, max(1, round(canvas * 0.015)))
    for part in scene.cover:
        fill(under, (part,), palette_around(hue, (0.2, 0.7), (0.3, 0.9), rng))
    strokes = np.asarray(_strokes(under, rng), dtype=np.float32)
    return picture((strokes + clouds(canvas, 14, 7, rng)) * _weave(canvas))


def _strokes(under: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Go over an underpainting with strokes, each of the colour found beneath it, turned by a smooth field."""
    canvas = under.width
    over, values = under.copy(), np.asarray(under)
    draw = ImageDraw.Draw(over)
    places = rng.integers(0, canvas, (STROKES, 2))
    tilt, swirl = rng.uniform(0, np.pi), rng.uniform(1, 3, 2) / canvas
    angles = tilt + np.sin(places @ swirl * np.pi) + rng.normal(0, 0.25, STROKES)
    reach = canvas * rng.uniform(0.015, 0.045, STROKES)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    paints = values[places[:, 1], places[:, 0]] + rng.normal(0, 10, (STROKES, 3))
    width = max(2, round(canvas * rng.uniform(0.02, 0.035)))
    lines = np.concatenate([places - steps, places + steps], axis=1).tolist()
    for line, paint in zip(lines, paints.clip(0, 255).astype(int).tolist(), strict=True):
        draw.line(line, fill=tuple(paint), width=width)
    return over


def _weave(canvas: int) -> Pixels:
    """Brightness of a woven cloth, shape (canvas, canvas, 1), about one."""
    thread = np.sin(np.arange(canvas) * (2 * np.pi / 9))
    cloth = 1 + 0.04 * thread[:, None] * thread[None, :] + 0.02 * (thread[:, None] + thread[None, :])
    brightness: Pixels = cloth[:, :, None].astype(np.float32)
    return brightness
