"""How far a student is from its sources on the calibration pictures."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from project.methods.problem import Problem
from project.moments import own_domains
from project.runtime import World
from project.student import Student, reestimation


@torch.no_grad()
def renormalised(student: Student, pictures: Mapping[str, Sequence[Tensor]], world: World) -> Student:
    """A copy of a student whose batch norms are re-estimated on some pictures, all domains mixed.

    Args:
        student: Left as it is.
        pictures: domain -> this process' batches.
        world: The processes that share the pictures.
    """
    student = deepcopy(student)
    with reestimation(student.network, student.exact_norms, world.reduce):
        for batches in zip_longest(*pictures.values()):
            student(torch.cat([batch for batch in batches if batch is not None]))
    return student


@torch.no_grad()
def divergence(student: Student, problem: Problem, pictures: Mapping[str, Sequence[Tensor]], world: World) -> float:
    """Mean KL divergence of the student's class probabilities from those of the source that owns each picture's domain.

    It is the mean over the domains of the means over their pictures, whose number does not count. On pictures of no
    domain, the mean over the sources; with several heads, that of the domain is compared, or each source's own columns.

    Args:
        student: Of these sources, its batch norms as they shall be, see :func:`renormalised`.
        problem: The sources.
        pictures: domain -> this process' batches.
        world: The processes that share the pictures.
    """
    device = next(student.parameters()).device
    found = {domain: torch.zeros(2, dtype=torch.float64, device=device) for domain in pictures}
    owned = own_domains(len(problem.sources), list(pictures), problem.owners)
    for source, domains in enumerate(owned):
        for domain in domains:
            for batch in pictures[domain]:
                theirs = problem.sources[source](batch)[:, problem.columns.get(domain, slice(None))]
                mine = student.answer(batch, domain)[:, _columns(problem, domain, source)]
                gaps = F.kl_div(mine.log_softmax(1), theirs.log_softmax(1), reduction="sum", log_target=True)
                found[domain] += torch.stack([gaps.double(), gaps.new_tensor(len(batch)).double()])
    return domain_mean(list(found.values()), world)


def domain_mean(found: Sequence[Tensor], world: World) -> float:
    """The mean over the domains of their means; of domains without pictures in any process there is none.

    Args:
        found: For each domain, this process' sum and count, shape (2,).
        world: The processes that share the pictures.
    """
    sums, counts = torch.stack(list(found)).T.contiguous()
    world.reduce(sums)
    world.reduce(counts)
    seen = counts > 0
    return float((sums[seen] / counts[seen]).mean()) if bool(seen.any()) else 0.0


def _columns(problem: Problem, domain: str, source: int) -> slice | list[int]:
    """The student's columns for what a source says of a picture."""
    labels = problem.labels
    if labels.mode == "shared" or domain in labels.domains:
        return labels.columns(domain) if labels.mode == "different" else slice(None)
    mine = [name for name, owner in problem.owners.items() if owner == source]
    return [column for name in mine for column in range(*labels.columns(name).indices(labels.width))]
