"""EMR-Merging (Huang et al., arXiv 2405.17461): elect a vector, mask it and rescale it for each task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.allocation import Budget
from project.methods.base import Merged, Method
from project.methods.problem import Evidence, Problem, Run
from project.methods.shared.aligned import Space
from project.methods.shared.arithmetic import Aligned, task_vectors, write
from project.student import MaskedStudent, packed


class EMR(Aligned):
    """θ₀ + λᵢ Mᵢ ⊙ τ for source i: one file that is each source's network, by the name of its domain.

    τ has, in every entry, the sign of the mean of the task vectors τᵢ, and the largest magnitude of those that have
    this sign; Mᵢ is 1 where τᵢ has it; λᵢ = Σ mean|τᵢ| / Σ mean|Mᵢ ⊙ τ|, means over each tensor. Norms with their
    statistics, and parameters that the base lacks, are kept for every source as they are.

    The file holds θ₀, τ, and a bit a parameter and source; a named network costs what one source costs. It is not one
    network: compare it with the sources on their own domains, not with students that do without the name.

    Args:
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``emr``.
    """

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """It does."""
        return True

    @torch.no_grad()
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """One student of budget 1, whatever the budgets."""
        space = Space.of(problem, evidence, run.world, self.align)
        student = problem.start(space.maps)
        kept = _kept(space, student.network.state_dict())
        base = {name: values for name, values in space.base.items() if name not in kept}
        found = elect(task_vectors(space, base), [values.numel() for values in base.values()])
        write(student, base)
        merged = MaskedStudent(
            student, list(base), found.vector.float(), packed(found.masks), found.scales.float(), kept, problem.owners
        )
        yield Merged(self.name, Budget(1.0), merged, matches=space.matches, settled=True, norms="sources' own")


@dataclass(frozen=True, eq=False)
class Elected:
    """What all tasks share, and what each makes of it.

    Args:
        vector: τ, shape (parameters,).
        masks: Mᵢ, boolean, shape (sources, parameters).
        scales: λᵢ, shape (sources,).
    """

    vector: Tensor
    masks: Tensor
    scales: Tensor


def elect(vectors: Tensor, sizes: Sequence[int]) -> Elected:
    """Elect, mask and rescale.

    Args:
        vectors: Task vectors, shape (sources, parameters).
        sizes: How many of the parameters each tensor has, in order.
    """
    signs = torch.where(vectors.mean(0) > 0, 1.0, -1.0).to(vectors)
    masks = vectors * signs > 0
    vector = signs * torch.where(masks, vectors.abs(), 0.0).amax(0)
    mine, theirs = (
        torch.stack([part.mean(1) for part in torch.split(values, list(sizes), 1)]).sum(0)
        for values in (vectors.abs(), (masks * vector).abs())
    )
    return Elected(vector, masks, torch.where(theirs > 0, mine / theirs.clamp(min=1e-300), 1.0))


def _kept(space: Space, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms, and parameters that the base lacks, of every source in the student's shape: name -> (sources, ...)."""
    norms = {
        f"{norm.name}.{tensor}": norm.group
        for norm in space.problem.spec.norms
        for tensor in ("weight", "bias", "running_mean", "running_var")
    }
    found = {}
    for name in state:
        if name in norms and name in space.problem.sources[0].state_dict():
            found[name] = torch.stack([values.to(state[name]) for values in space.buffers(name)])
        elif name in space.names and name not in space.base:
            found[name] = torch.stack([one[name].to(state[name]) for one in space.sources])
    return found
