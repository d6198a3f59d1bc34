"""Which of several sources of one domain merged units follow."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from project.errors import ConfigurationError
from project.methods.problem import Problem
from project.runtime import World, tell

SUREST, MEAN = "surest", "mean"


def check_lead(lead: str, problem: Problem) -> None:
    """Refuse a leading source that there is not, or that shares no domain.

    Raises:
        ConfigurationError: With the sources that may lead.
    """
    if lead in (SUREST, MEAN):
        return
    able = [
        problem.source_names[index] for index in sorted({one for those in problem.sharers.values() for one in those})
    ]
    if lead not in able:
        raise ConfigurationError(
            f"lead is {lead!r}; allowed: {SUREST!r}, {MEAN!r}, or a source that shares its domain with others: "
            f"{', '.join(able) or 'here there is none'}."
        )


@torch.no_grad()
def leads_of(lead: str, problem: Problem, pictures: Mapping[str, Sequence[Tensor]], world: World) -> dict[str, int]:
    """The leading source of every domain that several share; none where merged units follow the mean.

    The surest source is the one whose predictions have the least entropy on the domain's pictures; no label is read.

    Args:
        lead: ``surest``, ``mean``, or the name of a source, which leads on its domains.
        problem: The sources.
        pictures: domain -> this process' batches of pictures.
        world: The processes that share the pictures.
    """
    found: dict[str, int] = {}
    for domain, sharers in problem.sharers.items():
        if domain not in pictures or lead == MEAN:
            continue
        if lead != SUREST:
            number = problem.source_names.index(lead)
            if number in sharers:
                found[domain] = number
            continue
        sums = torch.zeros(len(sharers) + 1, dtype=torch.float64, device=next(problem.sources[0].parameters()).device)
        for batch in pictures[domain]:
            for place, source in enumerate(sharers):
                sums[place] += torch.special.entr(
                    problem.sources[source](batch.to(sums.device)).double().softmax(1)
                ).sum()
            sums[-1] += len(batch)
        world.reduce(sums)
        entropies = sums[:-1] / sums[-1]
        found[domain] = sharers[int(entropies.argmin())]
        told = ", ".join(
            f"{problem.source_names[source]} {entropy:.3f}"
            for source, entropy in zip(sharers, entropies.tolist(), strict=True)
        )
        name = problem.source_names[found[domain]]
        tell(f"{name} leads on {domain}, as the surest there (entropy of predictions in nats: {told})")
    return found
