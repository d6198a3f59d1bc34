"""Which pictures train, validate and test, whatever the order of listing: the test ones by seed and path alone."""

from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

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


def hold_out_by_path(
    samples: list[Sample], fraction: float, seed: int, root: Path
) -> tuple[list[Sample], list[Sample]]:
    """Set a share of the pictures aside, each by a hash of its path, so that whether others come or go plays no part.

    Of a class of two pictures or more at least one is set aside, and one stays: where the hashes alone would set none
    aside, the smallest decides, and where they would leave none, the largest.

    Args:
        samples: What to divide.
        fraction: Share set aside, from 0 to 1, of what is expected over all seeds.
        seed: Seed of the hashes.
        root: Folder from which on paths count, so that it may lie anywhere.

    Returns:
        What stays and what is set aside, each sorted by class and file.
    """
    stay: list[Sample] = []
    aside: list[Sample] = []
    for members in by_class(samples).values():
        drawn = [_drawn(path.relative_to(root), seed) for path, _ in members]
        least, most = (min(drawn), max(drawn)) if fraction > 0 and len(members) > 1 else (-1.0, 2.0)
        for member, number in zip(members, drawn, strict=True):
            out = len(members) > 1 and (number < fraction or number == least) and number != most
            (aside if out else stay).append(member)
    return stay, aside


def _drawn(path: Path, seed: int) -> float:
    """A number from 0 up to but without 1 that a path and a seed decide, on any system and in any file system."""
    name = normalize("NFC", path.as_posix())  # some file systems keep accents as characters of their own
    digest = sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


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
