"""A lit object before a blurred, cluttered background, with shadow, lens blur and grain."""

import numpy as np
from PIL import Image, ImageFilter

from project.data.shapes.scene import Scene
from project.data.shapes.styles.brush import (
    Pixels,
    clouds,
    colour,
    fill,
    landscape,
    palette_around,
    picture,
    silhouette,
)


def photo(scene: Scene, canvas: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as a photograph.

    Args:
        scene: What to draw.
        canvas: Side of the picture in pixels.
        rng: Source of every choice.
    """
    light = rng.uniform(0, 2 * np.pi)
    back = _background(scene, canvas, rng)
    mask = silhouette(scene.subject, canvas)
    shape = np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    soft = np.asarray(mask.filter(ImageFilter.BoxBlur(canvas / 16)), dtype=np.float32) / np.float32(255)
    shift = (round(np.sin(light) * canvas / 20), round(np.cos(light) * canvas / 20))
    shadow = np.roll(soft, shift, (0, 1))[:, :, None]
    body = Image.new("RGB", (canvas, canvas))
    brightness = (0.55, 1.0) if back.mean() < 128 else (0.15, 0.6)
    fill(body, scene.subject, palette_around(rng.random(), (0.1, 0.65), brightness, rng))
    relief = _relief(soft, light)
    lit = np.asarray(body, dtype=np.float32) * (0.9 + relief) + 60 * relief.clip(0, None)
    values = back * (1 - 0.55 * shadow) * (1 - shape) + lit * shape
    return _develop(_cover(picture(values), scene, rng), rng)


def _background(scene: Scene, canvas: int, rng: np.random.Generator) -> Pixels:
    """Blurred surroundings, shape (canvas, canvas, 3), 0 to 255."""
    above, below = (colour(rng.random(), rng.uniform(0.05, 0.5), rng.uniform(0.25, 0.9)) for _ in range(2))
    image = picture(landscape(canvas, above, below, rng) + clouds(canvas, 4, 18, rng) + clouds(canvas, 11, 10, rng))
    for figure in scene.clutter:
        fill(image, figure, palette_around(rng.random(), (0.1, 0.6), (0.2, 0.9), rng))
    blurred = image.filter(ImageFilter.BoxBlur(canvas * rng.uniform(0.008, 0.03)))
    return np.asarray(blurred, dtype=np.float32)


def _relief(soft: Pixels, light: float) -> Pixels:
    """Shading of a silhouette taken as a rounded height, lit from an angle: shape (canvas, canvas, 1), about zero."""
    down, right = np.gradient(soft)
    slope = -(down * np.sin(light) + right * np.cos(light)) * len(soft) / 9
    height, width = np.mgrid[-1 : 1 : len(soft) * 1j, -1 : 1 : len(soft) * 1j]
    ramp = -0.2 * (height * np.sin(light) + width * np.cos(light))
    shading: Pixels = (slope.clip(-0.5, 0.5) + ramp)[:, :, None].astype(np.float32)
    return shading


def _cover(image: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Put out-of-focus things before the object."""
    if not scene.cover:
        return image
    front = image.copy()
    fill(front, scene.cover, palette_around(rng.random(), (0.1, 0.6), (0.2, 0.8), rng))
    mask = silhouette(scene.cover, image.width).filter(ImageFilter.BoxBlur(image.width / 50))
    return Image.composite(front, image, mask)


def _develop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lens blur, exposure, colour cast and grain."""
    canvas = image.width
    values = np.asarray(image.filter(ImageFilter.BoxBlur(canvas * rng.uniform(0, 0.012))), dtype=np.float32)
    cast = rng.uniform(0.88, 1.12, 3) * rng.uniform(0.85, 1.25)
    grain = rng.standard_normal((canvas, canvas, 1), dtype=np.float32) * rng.uniform(3, 10)
    return picture(values * cast.astype(np.float32) + grain)
