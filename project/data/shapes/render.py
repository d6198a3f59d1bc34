"""One picture of Shapes from four numbers."""

import zlib

import numpy as np
from PIL import Image

from project.data.shapes.scene import compose
from project.data.shapes.styles import STYLES

SUPERSAMPLING = 3
"""Every picture is drawn so many times larger, then reduced."""


def render(domain: str, name: str, index: int, size: int, seed: int) -> Image.Image:
    """Draw one picture; the same arguments give the same pixels, whatever was drawn before.

    Args:
        domain: Style, a key of `STYLES`.
        name: Class, a key of `OBJECTS`.
        index: Which picture of that class and domain.
        size: Side in pixels.
        seed: Seed of the whole data set.
    """
    rng = np.random.default_rng([seed, zlib.crc32(domain.encode()), zlib.crc32(name.encode()), index])
    large = STYLES[domain](compose(name, rng), size * SUPERSAMPLING, rng)
    return large.reduce(SUPERSAMPLING)
