"""What every drawn object is made of: closed outlines in the square from -1 to 1, x to the right and y down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]
TONES = 4
"""Number of paints in an object's palette."""


@dataclass(frozen=True)
class Part:
    """One closed outline of an object and the paint that fills it.

    Args:
        points: Corners, shape (n, 2).
        tone: Which of the `TONES` paints of the palette fills it; 0 is the body, 3 the darkest.
    """

    points: Points
    tone: int


Figure: TypeAlias = tuple[Part, ...]
"""The parts of one object, in painting order."""


def polygon(corners: Sequence[tuple[float, float]], tone: int) -> Part:
    """A part from its corners."""
    return Part(np.array(corners, dtype=np.float64), tone)


def rectangle(left: float, top: float, right: float, bottom: float, tone: int) -> Part:
    """An upright rectangle."""
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], tone)


def ellipse(x: float, y: float, width: float, height: float, tone: int, start: float = 0, stop: float = 360) -> Part:
    """An ellipse, or the sector between two angles.

    Args:
        x: Centre.
        y: Centre.
        width: Half axis along x.
        height: Half axis along y.
        tone: Paint.
        start: First angle in degrees, clockwise from the right.
        stop: Last angle in degrees.
    """
    return Part(_arc(x, y, width, height, start, stop), tone)


def band(
    x: float, y: float, width: float, height: float, thickness: float, tone: int, start: float = 0, stop: float = 360
) -> Part:
    """A bent strip or a ring: what lies between an ellipse and a smaller one; arguments as in `ellipse`."""
    outer = _arc(x, y, width, height, start, stop)
    inner = _arc(x, y, width - thickness, height - thickness, start, stop)
    return Part(np.concatenate([outer, inner[::-1]]), tone)


def bar(x0: float, y0: float, x1: float, y1: float, width: float, tone: int) -> Part:
    """A straight strip of some width between two points."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) * (width / 2 / max(float(np.hypot(*along)), 1e-9))
    ends = np.array([[x0, y0], [x1, y1]])
    return Part(np.concatenate([ends + across, (ends - across)[::-1]]), tone)


def _arc(x: float, y: float, width: float, height: float, start: float, stop: float) -> Points:
    angles = np.radians(np.linspace(start, stop, 25))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)
