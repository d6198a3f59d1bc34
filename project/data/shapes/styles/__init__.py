"""The domains of Shapes: each paints a scene in its own manner."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from project.data.shapes.scene import Scene
from project.data.shapes.styles.clipart import clipart
from project.data.shapes.styles.painting import painting
from project.data.shapes.styles.photo import photo
from project.data.shapes.styles.sketch import sketch

STYLES: dict[str, Callable[[Scene, int, np.random.Generator], Image.Image]] = {
    "clipart": clipart,
    "painting": painting,
    "photo": photo,
    "sketch": sketch,
}
"""How each domain paints a scene on a square canvas of so many pixels."""

__all__ = ["STYLES"]
