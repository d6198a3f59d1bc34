"""Which pictures a merge calibrates with, and what they go through, as far as statistics depend on it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from project.data.domain import Sample
from project.models.preprocessing import Preprocessing
from project.moments import PictureSum


def picture_sums(
    samples: Mapping[str, list[Sample]], views: Mapping[str, int], threads: int = 4, labelled: bool = False
) -> dict[str, PictureSum]:
    """Sums of the hashes of files, wherever they lie and whatever they are called.

    Args:
        samples: domain -> its pictures.
        views: domain -> views of each picture. Beyond the first they depend on a picture's place in the list, which
            then counts.
        threads: How many files are read at a time.
        labelled: Whether their labels count.
    """
    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for domain, listed in samples.items():
            contents = pool.map(lambda sample: sample[0].read_bytes(), listed)
            placed = (
                content
                + (f" {number}".encode() if views[domain] > 1 else b"")
                + (f" of {label}".encode() if labelled else b"")
                for number, (content, (_, label)) in enumerate(zip(contents, listed, strict=True))
            )
            found[domain] = PictureSum.of(placed, views[domain])
    return found


def transform_entries(preprocessing: Preprocessing, views: int, seed: int) -> dict[str, Any]:
    """What pictures go through, as plain values; the seed counts where there are views at random."""
    return {**preprocessing.plain, "views": views, **({"seed": seed} if views > 1 else {})}
