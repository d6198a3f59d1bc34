"""Made things, each drawn with its own proportions."""

import numpy as np

from project.data.shapes.primitives import Figure, Part, band, bar, ellipse, polygon, rectangle


def house(rng: np.random.Generator) -> Figure:
    """Walls under a gable, with door, windows and perhaps a chimney."""
    u = rng.uniform
    width, eave, ridge = u(0.5, 0.75), u(-0.2, 0.1), u(0.45, 0.75)
    over = width + u(0.05, 0.2)
    chimney = [rectangle(width * 0.4, eave - ridge, width * 0.4 + u(0.15, 0.25), eave, 3)] if u() < 0.6 else []
    roof = polygon([(-over, eave), (u(-0.2, 0.2), eave - ridge), (over, eave)], 1)
    door, wide = u(-0.4, 0.4) * width, u(0.12, 0.2)
    holes = [rectangle(door - wide, u(0.3, 0.45), door + wide, 0.9, 3)]
    sides = (x for x in (-0.6 * width, 0.6 * width) if abs(x - door) > 2 * wide)
    holes += [rectangle(x - 0.12, eave + 0.15, x + 0.12, eave + u(0.35, 0.45), 2) for x in sides]
    return (*chimney, rectangle(-width, eave, width, 0.9, 0), roof, *holes)


def car(rng: np.random.Generator) -> Figure:
    """A body with a cabin, windows and two wheels."""
    u = rng.uniform
    roof, deck, wheel = u(-0.5, -0.3), u(-0.08, 0.1), u(0.19, 0.27)
    front, back = u(-0.6, -0.4), u(0.35, 0.7)
    cabin = polygon([(front, deck), (front + u(0.15, 0.3), roof), (back - u(0.05, 0.25), roof), (back, deck)], 0)
    middle = (front + back) / 2
    panes = [
        polygon(
            [(front + 0.1, deck), (front + 0.27, roof + 0.09), (middle - 0.05, roof + 0.09), (middle - 0.05, deck)], 2
        ),
        polygon(
            [(middle + 0.05, deck), (middle + 0.05, roof + 0.09), (back - 0.22, roof + 0.09), (back - 0.1, deck)], 2
        ),
    ]
    body = polygon(
        [(-0.95, 0.4), (-0.92, deck + 0.08), (front, deck), (back, deck), (0.93, deck + 0.05), (0.95, 0.4)], 0
    )
    parts: list[Part] = [cabin, *panes, body, ellipse(-0.87, 0.18, 0.06, 0.06, 2)]
    for x in (u(-0.6, -0.5), u(0.5, 0.6)):
        parts += [ellipse(x, 0.42, wheel, wheel, 3), ellipse(x, 0.42, wheel * 0.45, wheel * 0.45, 1)]
    return tuple(parts)


def umbrella(rng: np.random.Generator) -> Figure:
    """A scalloped canopy over a stick that ends in a hook."""
    u = rng.uniform
    width, rise, rim, ribs = u(0.75, 0.95), u(0.6, 0.85), u(-0.1, 0.15), int(rng.integers(3, 6))
    stick, thick = bar(0, rim - rise - 0.1, 0, 0.75, 0.08, 3), u(0.07, 0.11)
    hook = band(rng.choice((-1.0, 1.0)) * 0.16, 0.72, 0.2, 0.22, thick, 3, 0, 180)
    step = 2 * width / ribs
    scallops = [ellipse(-width + step * (i + 0.5), rim, step / 2, 0.13, 3) for i in range(ribs)]
    wedges = [
        polygon([(-width + step * i, rim), (0, rim - rise), (-width + step * (i + 1), rim)], 1)
        for i in range(1, ribs, 2)
    ]
    return (stick, hook, ellipse(0, rim, width, rise, 0, 180, 360), *wedges, *scallops)


def sailboat(rng: np.random.Generator) -> Figure:
    """A hull with a mast and one or two sails."""
    u = rng.uniform
    deck, width, mast = u(0.35, 0.5), u(0.65, 0.9), u(-0.15, 0.2)
    hull = polygon([(-width, deck), (width, deck), (width * u(0.5, 0.8), 0.85), (-width * u(0.4, 0.75), 0.85)], 0)
    pole = bar(mast, deck, mast, -0.97, 0.07, 3)
    main = polygon([(mast + 0.06, u(-0.9, -0.7)), (mast + 0.06, deck - 0.1), (width * u(0.7, 1), deck - 0.1)], 1)
    jib = polygon([(mast - 0.06, u(-0.75, -0.4)), (mast - 0.06, deck - 0.1), (-width * u(0.6, 0.95), deck - 0.1)], 2)
    return (pole, main, jib, hull) if u() < 0.75 else (pole, main, hull)


def cup(rng: np.random.Generator) -> Figure:
    """A tapering cup with a handle, seen a little from above."""
    u = rng.uniform
    top, bottom, rim, foot = u(0.45, 0.62), u(0.32, 0.5), u(-0.6, -0.3), u(0.6, 0.85)
    handle = band(top * 0.9, (rim + foot) / 2 - 0.05, u(0.32, 0.42), u(0.3, 0.42), u(0.1, 0.15), 1, -100, 100)
    side = polygon([(-top, rim), (top, rim), (bottom, foot), (-bottom, foot)], 0)
    stripe = [rectangle(-bottom, u(-0.05, 0.2), bottom, u(0.25, 0.4), 2)] if u() < 0.5 else []
    mouth = [ellipse(0, rim, top, 0.17, 1), ellipse(0, rim, top * 0.82, 0.11, 3)]
    return (handle, side, ellipse(0, foot, bottom, 0.12, 0), *stripe, *mouth)


def key(rng: np.random.Generator) -> Figure:
    """A ring, a shaft and two or three teeth."""
    u = rng.uniform
    ring, shaft, thick = u(0.3, 0.42), u(0.09, 0.15), u(0.13, 0.2)
    bow = band(-0.55, 0, ring, ring * u(0.85, 1.15), thick, 0)
    teeth = [
        rectangle(x, 0, x + u(0.1, 0.14), u(0.25, 0.48), 1) for x in np.linspace(0.45, 0.83, int(rng.integers(2, 4)))
    ]
    collar = ellipse(-0.55 + ring, 0, 0.08, shaft * 1.2, 2)
    return (*teeth, bow, bar(-0.55 + ring - 0.05, 0, 0.97, 0, shaft * 1.5, 0), collar)
