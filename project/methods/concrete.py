"""Concrete subspace learning (Tang et al., arXiv 2312.06173): a mask of the task vectors that all sources share."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from project.errors import above, flags, one_of
from project.methods.problem import Problem
from project.methods.shared import Learned
from project.methods.shared.aligned import Align, Space
from project.methods.shared.blend import Blend, MaskedBlend
from project.methods.shared.curves import ALL
from project.methods.shared.entropy import Norms, Objective
from project.runtime import ALONE, World
from project.student import Student

Coefficients = Literal["fixed", "learned"]


class Concrete(Learned):
    """θ₀ + Σ λᵢ m ⊙ τᵢ, with the mask m that minimises the entropy of the classes predicted on calibration pictures.

    m has a logit x for each parameter, 0 at first. While it is learned it is drawn from a concrete distribution,
    m = σ((ln u − ln (1 − u) + x) / T) with u uniform from 0 to 1, and divided by its mean over each tensor. What is
    merged in the end has u = ½. The entropy is AdaMerging's.

    - ``fixed`` (Concrete task arithmetic): λ stays, x is learned.
    - ``learned`` (Concrete AdaMerging), with a λ for each source and tensor: in the first half of the steps, λ takes
      one gradient step from its start, for the mask as it was drawn, on half of the step's pictures; with this λ, x
      takes a step of Adam on the other half. In the second half of the steps the mask stays and λ is learned from
      its start, as AdaMerging does, but never clamped.

    Args:
        coefficients: Whether λ is ``fixed`` or ``learned``.
        scale: λ, or where all λ start.
        temperature: T.
        binarise: Whether in the end m is 1 where x ≥ 0, and 0 elsewhere, over its mean in each tensor.
        inner_rate: For ``learned``: length of the step of λ over its gradient, in the first half.
        steps: Steps, of both halves together.
        batch: Pictures of each domain in a step, over all processes.
        rate: Learning rate of Adam.
        norms: What batch norms normalise by meanwhile, without changing their statistics: a step's own pictures, all
            domains together (``mixed``), as re-estimation does after the merge, or each ``domain`` alone, all
            processes' shares of a step together; or the mean of the sources' ``running`` statistics.
        seed: Seed of the order of the pictures, and of u.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``concrete``.
    """

    def __init__(
        self,
        coefficients: Coefficients = "fixed",
        scale: float = 0.3,
        temperature: float = 0.5,
        binarise: bool = False,
        inner_rate: float = 1.0,
        steps: int = 2000,
        batch: int = 16,
        rate: float = 1e-3,
        norms: Norms = "mixed",
        seed: int = 0,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(scale, steps, batch, rate, norms, seed, align, label)
        one_of(Coefficients, coefficients=coefficients)
        flags(binarise=binarise)
        above(0, temperature=temperature, inner_rate=inner_rate)
        self.coefficients: Coefficients = coefficients
        self.temperature, self.binarise, self.inner_rate = temperature, binarise, inner_rate

    @torch.no_grad()
    def blend(self, space: Space, student: Student) -> MaskedBlend:
        """Set up the task vectors behind a mask that is half open everywhere."""
        learned = self.coefficients == "learned"
        return MaskedBlend(*self.constants(space, student), self.scale, layerwise=learned, temperature=self.temperature)

    def differentiate(
        self, blend: Blend, objective: Objective, batch: Mapping[str, Tensor], step: int, steps: int
    ) -> dict[str, float]:
        """Set the gradient of x, or in the second half of learned coefficients that of λ."""
        assert isinstance(blend, MaskedBlend)
        blend.logits.grad = blend.coefficients.grad = None
        if self.coefficients == "learned" and 2 * step >= steps:
            masks = {name: mask.detach() for name, mask in self._masks(blend).items()}
            blend.coefficients.grad, entropies = objective.gradient(
                blend.tensors(masks=masks), batch, blend.coefficients
            )
            return entropies
        masks, coefficients = blend.masks(blend.uniform(self.seed, step)), None
        if self.coefficients == "learned":
            still = {name: mask.detach() for name, mask in masks.items()}
            first, batch = halves(batch, objective.world)
            gradient, _ = objective.gradient(blend.tensors(masks=still), first, blend.coefficients)
            coefficients = (blend.coefficients - self.inner_rate * gradient).detach()
        blend.logits.grad, entropies = objective.gradient(blend.tensors(coefficients, masks), batch, blend.logits)
        return entropies

    def merged(self, blend: Blend) -> dict[str, Tensor]:
        """Compute θ₀ + Σ λᵢ m ⊙ τᵢ, by name."""
        assert isinstance(blend, MaskedBlend)
        return blend.tensors(masks=self._masks(blend))

    def summary(self, blend: Blend, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Measure how open the mask is, and the coefficients where they are learned."""
        assert isinstance(blend, MaskedBlend)
        summary = {"open": {ALL: float(blend.logits.detach().sigmoid().mean())}}
        return {**summary, **super().summary(blend, names)} if self.coefficients == "learned" else summary

    def layers(self, blend: Blend, problem: Problem) -> dict[str, dict[str, float]]:
        """Measure how open the mask of each layer's weights is, and their coefficients where they are learned."""
        assert isinstance(blend, MaskedBlend)
        openness, coefficients = blend.openness(), super().layers(blend, problem)
        names = {layer.name: f"{layer.name}.weight" for layer in problem.spec.layers}
        return {
            layer: {"open": openness[name], **coefficients.get(layer, {})}
            for layer, name in names.items()
            if name in openness
        }

    def plain(self, blend: Blend, names: Sequence[str]) -> dict[str, Any]:
        """Describe how open the mask of each tensor is, and the coefficients."""
        assert isinstance(blend, MaskedBlend)
        return {**super().plain(blend, names), "open": blend.openness()}

    def _masks(self, blend: MaskedBlend) -> dict[str, Tensor]:
        """Compute the mask without chance."""
        return blend.masks(binarise=self.binarise)


def halves(batch: Mapping[str, Tensor], world: World = ALONE) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the pictures of every domain in two halves, which share the middle one of an odd number.

    Of several processes, to which the pictures were dealt out in turn, each gets its share of the halves of all; where
    there are not two pictures for each of them, each splits what it has.

    Args:
        batch: domain -> this process' pictures.
        world: The processes that share the batch, which all must ask.
    """
    counts = torch.tensor([len(pictures) for pictures in batch.values()])
    world.reduce(counts)
    first, second = {}, {}
    for (domain, pictures), count in zip(batch.items(), counts.tolist(), strict=True):
        end, start = (len(pictures) + 1) // 2, len(pictures) // 2
        if count >= 2 * world.size:
            end, start = (-((world.rank - limit) // world.size) for limit in ((count + 1) // 2, count // 2))
        first[domain], second[domain] = pictures[:end], pictures[start:]
    return first, second
