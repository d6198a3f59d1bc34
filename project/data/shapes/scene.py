"""What a picture shows, before any style: an object in some pose, what stands behind it and what covers it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from project.data.shapes import nature, things
from project.data.shapes.primitives import Figure, Part

OBJECTS: dict[str, Callable[[np.random.Generator], Figure]] = {
    "butterfly": nature.butterfly,
    "car": things.car,
    "cat": nature.cat,
    "cup": things.cup,
    "fish": nature.fish,
    "flower": nature.flower,
    "house": things.house,
    "key": things.key,
    "mushroom": nature.mushroom,
    "sailboat": things.sailboat,
    "tree": nature.tree,
    "umbrella": things.umbrella,
}
"""How each class is drawn; the order is the order of the labels."""

WILD = 0.06
"""Share of objects that are small, turned any way and strongly bent."""


@dataclass(frozen=True)
class Scene:
    """A picture's content, in the square from -1 to 1.

    Args:
        subject: The object that the label names.
        clutter: Fragments of other objects, behind the subject and partly outside the picture.
        cover: Blobs in front of the subject; often none.
    """

    subject: Figure
    clutter: tuple[Figure, ...]
    cover: Figure


def compose(name: str, rng: np.random.Generator) -> Scene:
    """Draw an object of a class by lot, with its surroundings.

    Args:
        name: Class, a key of `OBJECTS`.
        rng: Source of every choice.
    """
    others = [draw for other, draw in OBJECTS.items() if other != name]
    clutter = tuple(_aside(others[int(rng.integers(len(others)))](rng), rng) for _ in range(int(rng.integers(1, 4))))
    wild = rng.random() < WILD
    scale = rng.uniform(0.35, 0.55) if wild else rng.uniform(0.6, 0.92)
    turn = rng.uniform(-np.pi, np.pi) if wild else rng.normal(0, 0.22)
    place = rng.uniform(-1, 1, 2) * (1.05 - scale) * 0.75
    subject = _pose(OBJECTS[name](rng), scale, turn, place, 0.14 if wild else 0.06, rng)
    cover = tuple(_blob(place, scale, rng) for _ in range(int(rng.choice(3, p=(0.7, 0.24, 0.06)))))
    return Scene(subject, clutter, cover)


def _aside(figure: Figure, rng: np.random.Generator) -> Figure:
    """A small figure at the rim of the picture."""
    angle = rng.uniform(0, 2 * np.pi)
    place = rng.uniform(0.95, 1.25) * np.array([np.cos(angle), np.sin(angle)])
    return _pose(figure, rng.uniform(0.25, 0.5), rng.uniform(-np.pi, np.pi), place, 0.0, rng)


def _pose(
    figure: Figure, scale: float, turn: float, place: np.ndarray, bend: float, rng: np.random.Generator
) -> Figure:
    """Bend, mirror by lot, stretch, shear, turn and move a figure."""
    mirror = rng.choice((-1.0, 1.0))
    stretch, shear = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ np.array([[mirror * stretch, shear], [0, 1 / stretch]]) * scale
    phase, wave = rng.uniform(0, 2 * np.pi, 2), rng.uniform(1.5, 3)

    def moved(part: Part) -> Part:
        bent = part.points + bend * np.sin(wave * part.points[:, ::-1] + phase)
        return Part(bent @ linear.T + place, part.tone)

    return tuple(moved(part) for part in figure)


def _blob(place: np.ndarray, scale: float, rng: np.random.Generator) -> Part:
    """A rounded lump over some part of the object."""
    corners = int(rng.integers(5, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = scale * rng.uniform(0.2, 0.42) * rng.uniform(0.7, 1.2, corners)
    centre = place + rng.uniform(-0.8, 0.8, 2) * scale
    outline = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Part(outline, int(rng.integers(0, 3)))
