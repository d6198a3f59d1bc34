"""Living things, each drawn with its own proportions."""

import numpy as np

from project.data.shapes.primitives import Figure, Part, bar, ellipse, polygon


def tree(rng: np.random.Generator) -> Figure:
    """A trunk under a crown: leafy clumps, or the tiers of a fir."""
    u = rng.uniform
    trunk = bar(u(-0.1, 0.1), 0.95, 0, u(-0.1, 0.2), u(0.14, 0.3), 3)
    if u() < 0.4:
        tiers = int(rng.integers(2, 5))
        width = u(0.5, 0.8)
        crown = [
            polygon(
                [(-width * s, 0.5 - 0.9 * i / tiers), (0, -0.35 - 0.6 * i / tiers), (width * s, 0.5 - 0.9 * i / tiers)],
                0,
            )
            for i, s in enumerate(np.linspace(1, 0.55, tiers))
        ]
        return (trunk, *crown)
    spots = [(u(-0.5, 0.5), u(-0.7, 0.1), u(0.28, 0.45)) for _ in range(int(rng.integers(3, 6)))]
    clumps = [ellipse(x, y, r, r * u(0.8, 1), int(rng.integers(0, 2))) for x, y, r in spots]
    return (trunk, ellipse(0, -0.3, u(0.45, 0.65), u(0.45, 0.6), 0), *clumps)


def fish(rng: np.random.Generator) -> Figure:
    """A body with tail, fins and an eye."""
    u = rng.uniform
    length, height, fork = u(0.5, 0.68), u(0.25, 0.48), u(0.25, 0.5)
    root = length * 0.75
    tail = polygon([(root, 0), (0.97, -fork), (u(0.75, 0.95), 0), (0.97, fork)], 1)
    fin = polygon([(-0.25, -height * 0.7), (u(0, 0.2), -height - u(0.15, 0.35)), (0.3, -height * 0.6)], 1)
    belly = polygon([(-0.1, height * 0.7), (u(0, 0.2), height + u(0.1, 0.25)), (0.2, height * 0.7)], 1)
    stripes = [bar(x, -height * 0.7, x + 0.05, height * 0.7, 0.09, 2) for x in (-0.1, 0.15)] if u() < 0.5 else []
    eye = [ellipse(-length * 0.6, -height * 0.2, 0.1, 0.1, 2), ellipse(-length * 0.62, -height * 0.2, 0.05, 0.05, 3)]
    return (tail, fin, belly, ellipse(-0.08, 0, length, height, 0), *stripes, *eye)


def butterfly(rng: np.random.Generator) -> Figure:
    """Four spotted wings on a thin body with feelers."""
    u = rng.uniform
    upper, lower, lift, spread = u(0.32, 0.46), u(0.22, 0.36), u(0.3, 0.45), u(0.42, 0.52)
    wings: list[Part] = []
    for side in (-1, 1):
        wings += [
            ellipse(side * spread * 0.9, u(0.35, 0.45), lower, lower * u(0.9, 1.25), 1),
            ellipse(side * spread, -lift, upper, upper * u(0.85, 1.15), 0),
            ellipse(side * (spread + 0.05), -lift, upper * 0.45, upper * 0.45, 2),
        ]
    feelers = [bar(0, -0.45, side * u(0.15, 0.3), -0.95, 0.06, 3) for side in (-1, 1)]
    return (*wings, *feelers, ellipse(0, 0.05, u(0.07, 0.12), 0.6, 3))


def mushroom(rng: np.random.Generator) -> Figure:
    """A domed, spotted cap on a stout stem."""
    u = rng.uniform
    width, rise, rim, stem = u(0.65, 0.92), u(0.6, 0.9), u(-0.05, 0.2), u(0.15, 0.3)
    foot = polygon([(-stem, rim), (stem, rim), (stem * u(1, 1.5), 0.9), (-stem * u(1, 1.5), 0.9)], 1)
    spots = [
        ellipse(x * width, rim - rise * u(0.3, 0.6), u(0.07, 0.14), u(0.06, 0.11), 2)
        for x in np.linspace(-0.5, 0.5, int(rng.integers(2, 4)))
    ]
    return (foot, ellipse(0, rim, width, rise, 0, 180, 360), ellipse(0, rim, width, 0.12, 3), *spots)


def flower(rng: np.random.Generator) -> Figure:
    """Petals round a disc, on a stalk with a leaf."""
    u = rng.uniform
    reach, size, height, petals = u(0.28, 0.4), u(0.16, 0.26), u(-0.45, -0.25), int(rng.integers(5, 9))
    stalk = bar(u(-0.2, 0.2), 0.97, 0, height, u(0.07, 0.13), 3)
    side = rng.choice((-1.0, 1.0))
    leaf = polygon([(0, 0.7), (side * 0.25, 0.35), (side * u(0.5, 0.7), u(0.25, 0.4)), (side * 0.3, 0.65)], 1)
    turns = u(0, 1) + np.arange(petals) * 2 * np.pi / petals
    ring = [ellipse(reach * np.cos(t), height + reach * np.sin(t), size, size, 0) for t in turns]
    return (stalk, leaf, *ring, ellipse(0, height, u(0.15, 0.24), u(0.15, 0.24), 2))


def cat(rng: np.random.Generator) -> Figure:
    """A head with pointed ears, eyes, nose and whiskers."""
    u = rng.uniform
    width, height, ear = u(0.6, 0.8), u(0.5, 0.68), u(0.6, 0.95)
    parts: list[Part] = []
    for side in (-1, 1):
        tip = (side * width * u(0.75, 1), -ear)
        parts += [polygon([(side * width * 0.97, 0), tip, (side * 0.1, -height * 0.6)], 0)]
        parts += [polygon([(side * width * 0.8, -0.2), (tip[0] * 0.95, -ear * 0.85), (side * 0.3, -0.35)], 1)]
    parts.append(ellipse(0, 0.15, width, height, 0))
    for side in (-1, 1):
        parts += [
            ellipse(side * width * 0.42, 0, 0.13, u(0.1, 0.17), 2),
            ellipse(side * width * 0.42, 0, 0.05, 0.12, 3),
        ]
        parts += [bar(side * 0.2, y, side * u(0.85, 1), y + u(-0.1, 0.1), 0.04, 3) for y in (0.3, 0.42)]
    return (*parts, polygon([(-0.1, 0.2), (0.1, 0.2), (0, 0.34)], 3))
