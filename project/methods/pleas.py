"""PLeaS: permutation, partial merging, and least squares for every layer (arXiv 2407.02447)."""

from dataclasses import replace
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from project.errors import ConfigurationError, MergeError
from project.alignment import Similarity
from project.methods.base import Merged, Problem
from project.methods.permutation import Permutation
from project.moments import LAYERS
from project.student import View, fit_layer, joint_matrix, view
from project.symmetry import Layer


class PLeaS(Permutation):
    """Align units by permutation, keep badly matched ones separate up to the budget, solve the layers in closed form.

    Every convolution and linear layer is fitted on its own: on the sources' (merged) inputs, towards the sources'
    (merged) outputs, exactly, from second moments that one pass over the calibration pictures gathers for all budgets.

    Args:
        matching: How units are matched, see Permutation.
        similarity: For matching by activations: ``distance`` (the paper's) or ``correlation``.
        separate: Which groups stay separate as the budget grows: from the ``back`` of the network or the ``front``.
        ridge: Pull towards the permuted average, relative to the mean second moment of a layer's inputs; 0 for none.
        targets: What merged units aim at: the ``mean`` of all sources on every picture (the paper's), or the ``own``
            source of a picture's domain.
        heads: With different label spaces, keep the ``original`` heads on the units they can read, or fit them too
            (``fitted``). A shared head is an ordinary layer and always fitted.
        seed: Seed of the order in which weight matching visits the groups.
        label: Name in tables and files; default: ``pleas``.
    """

    def __init__(
        self,
        matching: Literal["activations", "weights"] = "activations",
        similarity: Similarity = "distance",
        separate: Literal["back", "front"] = "back",
        ridge: float = 1e-2,
        targets: Literal["mean", "own"] = "mean",
        heads: Literal["original", "fitted"] = "original",
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(matching, similarity, separate, seed, label)
        if not ridge >= 0:
            raise ConfigurationError(f"ridge is {ridge}; allowed: 0 or more.")
        if targets not in ("mean", "own"):
            raise ConfigurationError(f"targets is {targets!r}; allowed: 'mean', 'own'.")
        if heads not in ("original", "fitted"):
            raise ConfigurationError(f"heads is {heads!r}; allowed: 'original', 'fitted'.")
        self.ridge = ridge
        self.targets = targets
        self.heads = heads
        self.needs = self.needs | {LAYERS}

    def check(self, problem: Problem, pictures: int) -> None:
        """Without ridge, refuse a layer with more unknowns than samples."""
        if self.ridge > 0:
            return
        for layer in (layer for layer in problem.spec.layers if not self._kept(layer, problem)):
            unknowns = problem.spec.sizes[layer.inputs] * layer.taps + layer.bias
            samples = pictures * layer.positions
            if samples < unknowns:
                raise ConfigurationError(
                    f"ridge is 0, but layer {layer.name!r} has {unknowns} unknowns a row and {pictures} calibration "
                    f"pictures give only {samples} samples; use more pictures or a ridge above 0."
                )

    def fit(self, starts: list[Merged], problem: Problem) -> list[Merged]:
        """Solve every layer for all budgets; the students are changed in place."""
        fits: list[dict[str, dict[str, float]]] = [{} for _ in starts]
        for layer in tqdm(problem.spec.layers, desc=f"fitting {self.name}", unit="layer", leave=False, disable=None):
            if self._kept(layer, problem):
                continue
            matrices = joint_matrix(layer, [source.get_submodule(layer.name) for source in problem.sources])
            views = self._views(layer, matrices, problem)
            for merged, found in zip(starts, fits, strict=True):
                outputs, inputs = merged.student.maps[layer.outputs], merged.student.maps[layer.inputs]
                fit = fit_layer(
                    layer, matrices, outputs, inputs, views, ridge=self.ridge, same_input=layer.inputs == problem.spec.input.name
                )
                merged.student.load_layer(layer.name, fit.matrix)
                found[layer.name] = {
                    "residual_before": fit.before,
                    "residual_after": fit.after,
                    "condition": fit.condition,
                    "fallbacks": float(fit.fallbacks),
                }
        return [replace(merged, layers=found) for merged, found in zip(starts, fits, strict=True)]

    def _kept(self, layer: Layer, problem: Problem) -> bool:
        head = layer.outputs == problem.spec.output.name
        return head and problem.labels.mode == "different" and self.heads == "original"

    def _views(self, layer: Layer, matrices: list[Tensor], problem: Problem) -> list[View]:
        """What the domains ask of a layer: all the same, or each its own source's outputs."""
        if problem.statistics is None:
            raise MergeError("PLeaS needs statistics of the layers' inputs; gather them first.")
        if self.targets == "mean":
            return [view(layer, matrices, problem.statistics.layer(layer.name))]
        moments = problem.statistics.layers[layer.name]
        return [view(layer, matrices, moment, problem.owners.get(domain)) for domain, moment in moments.items()]
