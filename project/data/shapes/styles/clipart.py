"""Flat, saturated paint with a hard edge, on a plain ground."""

import numpy as np
from PIL import Image, ImageDraw

from project.data.shapes.scene import Scene
from project.data.shapes.styles.brush import colour, fill, palette_around, pixels


def clipart(scene: Scene, canvas: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as clip art.

    Args:
        scene: What to draw.
        canvas: Side of the picture in pixels.
        rng: Source of every choice.
    """
    hue = rng.random()
    ground = colour(hue, rng.uniform(0, 0.55), rng.uniform(0.75, 1))
    image = Image.new("RGB", (canvas, canvas), ground)
    if rng.random() < 0.5:
        _emblem(image, hue, rng)
    for figure in scene.clutter:
        if rng.random() < 0.3:
            fill(image, figure, palette_around(hue, (0.2, 0.6), (0.6, 0.9), rng))
    palette = palette_around(hue + rng.uniform(0.25, 0.75), (0.6, 1), (0.55, 1), rng)
    edge = colour(0, 0, rng.uniform(0, 0.2)) if rng.random() < 0.5 else None
    fill(image, scene.subject, palette, edge, max(1, round(canvas * rng.uniform(0.015, 0.03))))
    for part in scene.cover:
        ImageDraw.Draw(image).polygon(pixels(part.points, canvas), fill=colour(rng.random(), 0.8, rng.uniform(0.6, 1)))
    return image


def _emblem(image: Image.Image, hue: float, rng: np.random.Generator) -> None:
    """Put a disc, a slanting half or a horizon behind everything."""
    draw, canvas = ImageDraw.Draw(image), image.width
    paint = colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.7), rng.uniform(0.6, 1))
    kind = int(rng.integers(3))
    if kind == 0:
        radius = canvas * rng.uniform(0.3, 0.48)
        middle = canvas / 2
        draw.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], fill=paint)
    else:
        left, right = rng.uniform(0, canvas, 2) if kind == 1 else np.full(2, canvas * rng.uniform(0.5, 0.8))
        draw.polygon([(0, float(left)), (canvas, float(right)), (canvas, canvas), (0, canvas)], fill=paint)
