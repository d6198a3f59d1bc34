"""Which pictures train, validate and test, by seed and file name alone, whatever the order of listing."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from project.data.domain import Domain, Sample


@dataclass(frozen=True)
class Splits:
    """The pictures of one domain by their use, disjoint."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def split(domain: Domain, validation_fraction: float, seed: int) -> Splits:
    """Divide a domain.

    Args:
        domain: What to divide.
        validation_fraction: Share of each class's training pictures held out for validation.
        seed: Seed of the choice.
    """
    train, validation = hold_out(domain.train, validation_fraction, seed)
    return Splits(train, validation, domain.test)


def hold_out(samples: list[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Set a share of every class aside.

    Args:
        samples: What to divide.
        fraction: Share set aside, from 0 to 1; of a class with two pictures or more, at least one is, and one stays.
        seed: Seed of the choice.

    Returns:
        What stays and what is set aside, each sorted by class and file.
    """
    stay: list[Sample] = []
    aside: list[Sample] = []
    for label, members in by_class(samples).items():
        count = min(max(1, round(fraction * len(members))), len(members) - 1) if fraction > 0 else 0
        chosen = set(np.random.default_rng([seed, label]).permutation(len(members))[:count].tolist())
        for index, member in enumerate(members):
            (aside if index in chosen else stay).append(member)
    return stay, aside


def by_class(samples: list[Sample]) -> dict[int, list[Sample]]:
    """Label -> its samples by file, whatever the order of listing; labels ascend."""
    found: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (sample[1], sample[0])):
        found[sample[1]].append(sample)
    return found


def shuffled(samples: list[Sample], seed: int) -> list[Sample]:
    """All samples in an order that mixes the classes."""
    ordered = sorted(samples)
    return [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
