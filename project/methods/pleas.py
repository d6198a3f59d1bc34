"""PLeaS: permutation, partial merging, and least squares for every layer (arXiv 2407.02447)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from project.alignment import Similarity
from project.errors import ConfigurationError, MergeError
from project.methods.base import Merged, Problem
from project.methods.permutation import Permutation, Separate
from project.moments import LAYERS, PICTURES
from project.student import Budget, LayerFit, SequentialFit, View, fit_layer, joint_matrix, view
from project.student.memory import free_bytes, walk_bytes
from project.symmetry import Layer


class PLeaS(Permutation):
    """Align units by permutation, keep badly matched ones separate up to the budget, solve the layers in closed form.

    Args:
        matching: How units are matched, see Permutation.
        similarity: For matching by activations: ``distance`` (the paper's) or ``correlation``.
        separate: Which units stay separate as the budget grows: by ``gain``, from the ``front`` or the ``back``, or
            ``uniform``, see Permutation.
        step: Units of a group are separated this many at once, see Permutation.
        fit: ``sequential``: every layer on what the student itself feeds it, in execution order; one walk through
            the calibration pictures for each budget, which are kept in memory. ``joint``: every layer for itself, on
            the sources' inputs, as the paper has it; one pass over the pictures serves all budgets.
        targets: What merged units aim at: the ``own`` source of a picture's domain, or the ``mean`` of all sources on
            every picture (the paper's).
        ridge: Pull towards the permuted average: the weight of it, relative to the mean second moment of a layer's
            inputs, where a layer has as many samples as unknowns; less where it has more. 0 for none.
        rounds: For the sequential fit: rounds in which it settles which targets a rectifier cuts off.
        heads: For the joint fit with different label spaces: keep the ``original`` heads on the units they can read,
            or fit them too (``fitted``). Shared heads are always fitted.
        seed: Seed of the order in which weight matching visits the groups.
        label: Name in tables and files; default: ``pleas``.
    """

    def __init__(
        self,
        matching: Literal["activations", "weights"] = "activations",
        similarity: Similarity = "distance",
        separate: Separate = "back",
        step: int = 1,
        fit: Literal["sequential", "joint"] = "sequential",
        targets: Literal["own", "mean"] = "own",
        ridge: float = 0.05,
        rounds: int = 2,
        heads: Literal["original", "fitted"] = "original",
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(matching, similarity, separate, step, seed, label)
        if not ridge >= 0:
            raise ConfigurationError(f"ridge is {ridge}; allowed: 0 or more.")
        if rounds < 0:
            raise ConfigurationError(f"rounds is {rounds}; allowed: 0 or more.")
        for name, value, allowed in (
            ("fit", fit, ("sequential", "joint")),
            ("targets", targets, ("own", "mean")),
            ("heads", heads, ("original", "fitted")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
        self.sequential = fit == "sequential"
        self.targets = targets
        self.follows_owners = targets == "own"
        self.ridge = ridge
        self.rounds = rounds
        self.heads = heads
        self.needs = self.needs | {PICTURES if self.sequential else LAYERS}

    def check(self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str]) -> None:
        """Refuse what will not fit into memory and, without ridge, more unknowns than samples.

        Above budget 1, a merged unit may see all units of all sources, and under the sequential fit a separate one
        follows its own domain's pictures alone.
        """
        partial = max(map(problem.times, budgets)) > 1
        widest = len(problem.sources) if partial else 1  # any group may be separated
        if self.sequential:
            needed, free = walk_bytes(problem.spec, sum(pictures.values()), widest), free_bytes()
            if needed > free:
                raise ConfigurationError(
                    f"calibration_pictures comes to {sum(pictures.values())} pictures, for which the sequential fit "
                    f"would hold about {needed / 2**30:.1f} GiB of activations, but {free / 2**30:.1f} GiB are free; "
                    f"use fewer pictures, or fit 'joint'."
                )
        if self.ridge > 0:
            return
        fewest = min(pictures.values()) if partial and self.sequential else sum(pictures.values())
        for layer in (layer for layer in problem.spec.layers if not self._kept(layer, problem)):
            units = problem.spec.sizes[layer.inputs] * widest
            constant = layer.bias or self.sequential  # the norm behind a layer adds one
            unknowns, samples = units * layer.taps + constant, fewest * layer.positions
            if samples < unknowns:
                raise ConfigurationError(
                    f"ridge is 0, but layer {layer.name!r} may have {unknowns} unknowns a row, and {fewest} "
                    f"calibration pictures give only {samples} samples; use more pictures or a ridge above 0."
                )

    def fit(self, starts: list[Merged], problem: Problem) -> list[Merged]:
        """Solve every layer for all budgets; the students are changed in place."""
        return [self._walk(merged, problem) for merged in starts] if self.sequential else self._solve(starts, problem)

    def _walk(self, merged: Merged, problem: Problem) -> Merged:
        """The sequential fit of one student."""
        if problem.pictures is None:
            raise MergeError("the sequential fit needs the calibration pictures; keep them, or fit jointly.")
        walk = SequentialFit(
            merged.student,
            problem.sources,
            problem.owners,
            problem.pictures,
            ridge=self.ridge,
            own=self.targets == "own",
            rounds=self.rounds,
            reduce=problem.reduce,
        )
        with tqdm(
            total=len(problem.spec.layers), desc=f"fitting {merged.name}", unit="layer", leave=False, disable=None
        ) as bar:
            fits = walk.run(lambda name: bar.update())
        return replace(merged, layers={name: _measured(fit) for name, fit in fits.items()}, settled=True)

    def _solve(self, starts: list[Merged], problem: Problem) -> list[Merged]:
        """The joint fit of all students."""
        fits: list[dict[str, dict[str, float]]] = [{} for _ in starts]
        for layer in tqdm(problem.spec.layers, desc=f"fitting {self.name}", unit="layer", leave=False, disable=None):
            if self._kept(layer, problem):
                continue
            matrices = joint_matrix(layer, [source.get_submodule(layer.name) for source in problem.sources])
            views = self._views(layer, matrices, problem)
            same = layer.inputs == problem.spec.plain_input
            for merged, found in zip(starts, fits, strict=True):
                outputs, inputs = merged.student.maps[layer.outputs], merged.student.maps[layer.inputs]
                fit = fit_layer(layer, matrices, outputs, inputs, views, ridge=self.ridge, same_input=same)
                merged.student.load_layer(layer.name, fit.matrix)
                found[layer.name] = _measured(fit)
        return [replace(merged, layers=found) for merged, found in zip(starts, fits, strict=True)]

    def _kept(self, layer: Layer, problem: Problem) -> bool:
        head = layer.outputs == problem.spec.output.name
        return head and not self.sequential and problem.labels.mode == "different" and self.heads == "original"

    def _views(self, layer: Layer, matrices: list[Tensor], problem: Problem) -> list[View]:
        """What the domains ask of a layer: all the same, or each its own source's outputs."""
        if problem.statistics is None:
            raise MergeError("PLeaS needs statistics of the layers' inputs; gather them first.")
        if self.targets == "mean":
            return [view(layer, matrices, problem.statistics.layer(layer.name))]
        moments = problem.statistics.layers[layer.name]
        return [view(layer, matrices, moment, problem.owners.get(domain)) for domain, moment in moments.items()]


def _measured(fit: LayerFit) -> dict[str, float]:
    """What is known of a layer's fit, for tables and plots."""
    return {
        "residual_before": fit.before,
        "residual_after": fit.after,
        "condition": fit.condition,
        "fallbacks": float(fit.fallbacks),
    }
