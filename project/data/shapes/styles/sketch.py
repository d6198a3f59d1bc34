"""Pencil on paper: shaky outlines gone over more than once, hardly any tone."""

import numpy as np
from PIL import Image, ImageDraw

from project.data.shapes.primitives import Figure
from project.data.shapes.scene import Scene
from project.data.shapes.styles.brush import Colour, pixels, silhouette


def sketch(scene: Scene, canvas: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene in pencil.

    Args:
        scene: What to draw.
        canvas: Side of the picture in pixels.
        rng: Source of every choice.
    """
    white = int(rng.integers(236, 256))
    paper = (white, white, white - int(rng.integers(0, 8)))
    image = Image.new("RGB", (canvas, canvas), paper)
    for figure in scene.clutter:
        if rng.random() < 0.35:
            _outline(image, figure, paper, int(rng.integers(130, 190)), 1, rng)
    _outline(image, scene.subject, paper, int(rng.integers(15, 100)), int(rng.integers(1, 3)), rng)
    if rng.random() < 0.4:
        _hatch(image, scene.subject, rng)
    for part in scene.cover:
        ImageDraw.Draw(image).polygon(pixels(part.points, canvas), fill=paper)
    return image


def _outline(
    image: Image.Image, figure: Figure, paper: Colour, grey: int, passes: int, rng: np.random.Generator
) -> None:
    """Draw every part's edge in shaky strokes; what lies behind the part is hidden."""
    draw = ImageDraw.Draw(image)
    shake = rng.uniform(0.008, 0.03)
    width = max(1, round(image.width * rng.uniform(0.012, 0.024)))
    for part in figure:
        draw.polygon(pixels(part.points, image.width), fill=paper)
        for _ in range(passes):
            stroke = pixels(part.points + rng.normal(0, shake, part.points.shape), image.width)
            shade = min(255, grey + int(rng.integers(0, 40)))
            draw.line([*stroke, stroke[0]], fill=(shade, shade, shade), width=width)


def _hatch(image: Image.Image, figure: Figure, rng: np.random.Generator) -> None:
    """Shade one of the larger parts with parallel strokes."""
    canvas = image.width
    part = max(figure, key=lambda part: float(np.ptp(part.points, axis=0).prod()))
    lines = image.copy()
    draw = ImageDraw.Draw(lines)
    slope, gap = rng.uniform(-1, 1) * canvas, max(4, round(canvas * rng.uniform(0.05, 0.09)))
    shade = int(rng.integers(90, 170))
    for x in range(-canvas, 2 * canvas, gap):
        draw.line([(x, 0), (x + slope, canvas)], fill=(shade, shade, shade), width=1)
    image.paste(lines, mask=silhouette((part,), canvas))
