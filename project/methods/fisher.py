"""Fisher-weighted averaging (Matena and Raffel, arXiv 2111.09832)."""

from collections.abc import Mapping, Sequence

import torch

from project.allocation import Budget
from project.errors import above, one_of
from project.methods.base import Method
from project.methods.problem import Problem, Run
from project.methods.shared import Arithmetic
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arguments import check_count, check_labels, check_weights
from project.methods.shared.arithmetic import Combined
from project.moments import DIAGONAL, Classes, fisher_need
from project.student import Student


class Fisher(Arithmetic):
    """Σ λᵢ F̂ᵢ ⊙ θᵢ / Σ λᵢ F̂ᵢ, entry by entry.

    F̂ᵢ is the diagonal of source i's Fisher information, the mean over its pictures of the squared gradient of
    log p(class | picture), over the Euclidean norm of the whole diagonal, and at least ``floor``.

    Args:
        classes: Gradients of which classes: ``sampled`` from the source's probabilities, ``exact`` over all of them
            (the paper's; as many backward passes as there are classes), or the pictures' ``labels``.
        weights: λ of each source, in their order; default: all the same.
        floor: Least F̂. The released code floors one of the sources only, which lets it have what none cares for; here
            that becomes the mean.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``fisher``.
    """

    def __init__(
        self,
        classes: Classes = "sampled",
        weights: Sequence[float] | None = None,
        floor: float = 1e-6,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        one_of(Classes, classes=classes)
        check_weights(weights)
        above(0, floor=floor)
        self.classes: Classes = classes
        self.weights, self.floor = weights, floor
        self.labelled = classes == "labels"
        self.needs = self.needs | {fisher_need(DIAGONAL, classes)}

    def check(
        self,
        problem: Problem,
        pictures: Mapping[str, int],
        budgets: Sequence[Budget],
        planned: Mapping[str, Method],
    ) -> None:
        """Refuse weights of another number of sources, and labels that public pictures do not have."""
        super().check(problem, pictures, budgets, planned)
        check_count(self.weights, problem)
        check_labels(self.classes, problem, pictures)

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """The weighted mean."""
        above = {name: torch.zeros_like(mean) for name, mean in space.mean.items()}
        below = {name: torch.zeros_like(mean) for name, mean in space.mean.items()}
        for index, source in enumerate(space.sources):
            squares = space.squares(index, self.classes)
            norm = torch.stack([one.square().sum() for one in squares.values()]).sum().sqrt().clamp(min=1e-300)
            weight = 1.0 if self.weights is None else self.weights[index]
            for name, mean in space.mean.items():
                share = weight * (squares[name] / norm).clamp(min=self.floor)
                above[name] += share * (source[name] - mean)
                below[name] += share
        return Combined({name: mean + above[name] / below[name] for name, mean in space.mean.items()})
