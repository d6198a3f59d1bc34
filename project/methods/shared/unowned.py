"""Calibration pictures of none of the problem's domains: each source gets a version of them that it owns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from project.fit import restyled
from project.methods.problem import Problem
from project.runtime import waiting


@dataclass(frozen=True, eq=False)
class OwnedPictures:
    """Pictures to fit to, all of which a source owns where that can be.

    Args:
        owners: domain -> index of its source.
        pictures: domain -> this process' batches, each (batch, channels, height, width).
        weights: domain -> weight of each of its pictures; 1 where it is left out.
    """

    owners: Mapping[str, int]
    pictures: Mapping[str, Sequence[Tensor]]
    weights: Mapping[str, float]


def unowned_domains(problem: Problem, domains: Iterable[str]) -> list[str]:
    """Name the domains of calibration pictures that are none of the problem's."""
    return [domain for domain in domains if domain not in problem.labels.domains]


def restyle_unowned(
    problem: Problem,
    pictures: Mapping[str, Sequence[Tensor]],
    unowned: Sequence[str],
    weights: Mapping[str, float],
    steps: int,
    scratch: Path | None,
) -> OwnedPictures:
    """Make a version of unowned pictures for each source, that suits its batch norms, see :mod:`project.fit.inversion`.

    Args:
        problem: The sources.
        pictures: domain -> this process' batches.
        unowned: Names of the domains to be replaced by their versions, named ``domain/source``.
        weights: domain -> weight of each of its pictures.
        steps: Steps of gradient descent on the pixels.
        scratch: Folder in which versions wait; None for memory.
    """
    owners, versions, weights = dict(problem.owners), dict(pictures), dict(weights)
    for domain in unowned:
        batches = versions.pop(domain)
        for index, source in enumerate(problem.sources):
            bar = tqdm(batches, desc=f"restyling for source {index}", unit="batch", leave=False, disable=None)
            version = f"{domain}/{index}"
            changed = (restyled(source, batch, steps, problem.preprocessing) for batch in bar)
            versions[version] = waiting(changed, scratch)
            owners[version], weights[version] = index, weights.get(domain, 1.0)
    return OwnedPictures(owners, versions, weights)
