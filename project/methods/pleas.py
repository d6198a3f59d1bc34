"""PLeaS: permutation, partial merging, and least squares for every layer (arXiv 2407.02447)."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, inf
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from project.alignment import Similarity, UnitMap
from project.allocation import Budget
from project.errors import ConfigurationError, MergeError
from project.fit import KeptFits, LayerFit, SequentialFit, View, effort, fit_layer, restyled, stages, unfitted
from project.fit.memory_estimate import drawn_bytes, patch_bytes, solve_bytes, walk_bytes, widest
from project.fit.subsample import SMALLEST_POSITION_STEP
from project.methods.base import Merged, Problem
from project.methods.permutation import Permutation, Separate
from project.methods.shared.matching import By
from project.moments import LAYERS, PICTURES, Moment, layer_moment
from project.runtime import waiting
from project.runtime.memory import MemoryEstimate
from project.student import batch_norms, joint_matrix, with_joins
from project.student.build import exact_groups
from project.student.layers import weight_of
from project.symmetry import Layer, graph_of

MEASURED = ("residual_before", "residual_after", "condition", "fallbacks", "pictures", "positions")
"""What is told of each layer's fit."""


class PLeaS(Permutation):
    """Align units by permutation, keep badly matched ones separate up to the budget, solve the layers in closed form.

    Args:
        matching: How units are matched, see Permutation.
        similarity: For matching by activations: ``distance`` (the paper's) or ``correlation``.
        alpha: For matching by both: the share of the weights, see Permutation.
        separate: Which units stay separate as the budget grows: by ``gain``, from the ``front`` or the ``back``, or
            ``uniform``, see Permutation.
        step: Units of a group are separated this many at once, see Permutation.
        fit: ``sequential``: every layer on what the student itself feeds it, in execution order; one walk through
            the calibration pictures for each budget, which are kept in memory. ``joint``: every layer for itself, on
            the sources' inputs, as the paper has it; one pass over the pictures serves all budgets.
        targets: What merged units aim at: the ``own`` source of a picture's domain, or the ``mean`` of all sources on
            every picture (the paper's).
        weights: domain -> weight of each of its calibration pictures in the fit: 0 leaves a domain out; default: 1.
        norm: For the sequential fit: fit layers to what the batch norm behind them puts out (``after``), or to what
            it reads (``before``).
        compensate: For the sequential fit: whether a layer whose output is added to something makes up for what the
            student has already got wrong there.
        ridge: Pull towards the permuted average: the weight of it, relative to the mean second moment of a layer's
            inputs, where a layer has as many samples as unknowns; less where it has more. 0 for none.
        rounds: For the sequential fit: rounds in which it settles which targets a rectifier cuts off.
        logits: For the sequential fit: the last layer is fitted to the sources' probabilities of the classes (their
            ``divergence`` from the student's), or to the logits (``squares``) like any other layer.
        restyle_steps: For the sequential fit with ``own`` targets, where pictures are of none of the domains: steps of
            gradient descent on their pixels by which each source gets a version of them that suits its batch norms,
            and owns it. 0: pictures as they are, for which merged units aim at the mean of all sources.
        excess: For the sequential fit: by how much a layer's residual may exceed that of a fit to all pictures, as a
            share of it (0.005 is half a percent). Layers with samples to spare then look at some of the batches, and at
            some positions of their pictures, only: as many as two halves of a few say are needed, see
            :mod:`project.fit.subsample`. It takes four batches of each domain or more. Default: all of them.
        heads: For the joint fit with different label spaces: keep the ``original`` heads on the units they can read,
            or fit them too (``fitted``). Shared heads are always fitted.
        seed: Seed of the order in which matching by weights, or both, visits the groups.
        label: Name in tables and files; default: ``pleas``.
    """

    def __init__(
        self,
        matching: By = "activations",
        similarity: Similarity = "distance",
        alpha: float = 0.5,
        separate: Separate = "front",
        step: int | None = None,
        fit: Literal["sequential", "joint"] = "sequential",
        targets: Literal["own", "mean"] = "own",
        weights: Mapping[str, float] | None = None,
        norm: Literal["after", "before"] = "after",
        compensate: bool = True,
        ridge: float = 0.05,
        rounds: int = 2,
        logits: Literal["divergence", "squares"] = "divergence",
        restyle_steps: int = 40,
        excess: float | None = None,
        heads: Literal["original", "fitted"] = "original",
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(matching, similarity, alpha, separate, step, seed, label)
        if not ridge >= 0:
            raise ConfigurationError(f"ridge is {ridge}; allowed: 0 or more.")
        if rounds < 0:
            raise ConfigurationError(f"rounds is {rounds}; allowed: 0 or more.")
        if excess is not None and not 0 < excess < 1:
            raise ConfigurationError(f"excess is {excess}; allowed: above 0, below 1.")
        if restyle_steps < 0:
            raise ConfigurationError(f"restyle_steps is {restyle_steps}; allowed: 0 or more.")
        for name, value, allowed in (
            ("fit", fit, ("sequential", "joint")),
            ("targets", targets, ("own", "mean")),
            ("norm", norm, ("after", "before")),
            ("logits", logits, ("divergence", "squares")),
            ("heads", heads, ("original", "fitted")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
        for domain, weight in (weights or {}).items():
            if not 0 <= weight < inf:
                raise ConfigurationError(f"weights gives {domain!r} {weight}; allowed: 0 or more.")
        if fit == "joint":
            for name, given, default in (
                ("norm", norm, "after"),
                ("compensate", compensate, True),
                ("rounds", rounds, 2),
                ("logits", logits, "divergence"),
                ("restyle_steps", restyle_steps, 40),
                ("excess", excess, None),
            ):
                if given != default:
                    raise ConfigurationError(f"{name} is {given!r}; allowed: with fit 'sequential' alone.")
        self.sequential = fit == "sequential"
        self.targets = targets
        self.weights = dict(weights or {})
        self.norm = norm
        self.compensate = compensate
        self.follows_owners = targets == "own"
        self.ridge = ridge
        self.rounds = rounds
        self.logits = logits
        self.restyle_steps = restyle_steps
        self.excess = excess
        self.heads = heads
        self.needs = self.needs | {PICTURES if self.sequential else LAYERS}

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was made with, by name."""
        return {**super().arguments, "fit": "sequential" if self.sequential else "joint"}

    def check(self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str]) -> None:
        """Refuse or, with a ridge, tell of more unknowns than samples.

        Above budget 1, a merged unit may see all units of all sources, and under the sequential fit a separate one
        follows its own domain's pictures alone.
        """
        super().check(problem, pictures, budgets)
        unknown = sorted(set(self.weights) - set(pictures))
        if unknown:
            raise ConfigurationError(f"weights names {unknown[0]!r}; the domains are {', '.join(pictures)}.")
        if not any(self.weights.get(domain, 1.0) for domain in pictures):
            raise ConfigurationError("weights is 0 for every domain; at least one must count.")
        if (unowned := self._unowned(problem, pictures)) and not all(map(batch_norms, problem.sources)):
            raise ConfigurationError(
                "calibration is 'public', but the sources have no batch norms to restyle such pictures by; set "
                "restyle_steps to 0, or use pictures of the domains."
            )
        shapes = self._shapes(problem, budgets)
        apart = max(map(problem.times, budgets)) > 1 and self.sequential
        counted = {name: count for name, count in pictures.items() if self.weights.get(name, 1.0)}
        seen = sum(count * (len(problem.sources) if name in unowned else 1) for name, count in counted.items())
        fewest = min(counted.values()) if apart else seen
        unknowns = {layer: self._unknowns(layer, problem, shapes) for layer in problem.spec.layers}
        scarcity = {layer: count / layer.positions for layer, count in unknowns.items()}
        layer = max(scarcity, key=lambda layer: scarcity[layer])
        if fewest >= scarcity[layer]:
            return
        shortage = (
            f"layer {layer.name!r} may have {unknowns[layer]} unknowns a row, and "
            f"{f'the {fewest} calibration pictures of one domain' if apart else f'{fewest} calibration pictures'} "
            f"give only {fewest * layer.positions} samples"
        )
        if self.ridge == 0:
            raise ConfigurationError(f"ridge is 0, but {shortage}; use more pictures or a ridge above 0.")
        warnings.warn(
            f"{shortage}: what they leave open stays near the permuted average; {ceil(scarcity[layer])} would be "
            f"enough.",
            stacklevel=2,
        )

    def memory_estimate(
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str], batch: int
    ) -> MemoryEstimate:
        """Of the units' similarities, or of the fit that follows, whichever is more."""
        return MemoryEstimate.most(
            super().memory_estimate(problem, pictures, budgets, batch),
            self._fit_estimate(problem, pictures, budgets, batch),
        )

    def _fit_estimate(
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str], batch: int
    ) -> MemoryEstimate:
        """Of the sequential fit, the widest layer's values of all pictures, or of one batch; and what is solved."""
        layers = problem.spec.layers
        shapes = self._shapes(problem, budgets)
        if not self.sequential:
            views = 1 if self.targets == "mean" and not self.weights else len(pictures)
            fitted = [layer for layer in layers if not self._kept(layer, problem)]
            solving = max((self._joint_bytes(layer, problem, shapes, views) for layer in fitted), default=0)
            return MemoryEstimate(solving, solving)
        unowned = self._unowned(problem, pictures)
        domains = len(pictures) + len(unowned) * (len(problem.sources) - 1)
        solving = max(
            solve_bytes(self._unknowns(layer, problem, shapes), domains, _blocks(layer, problem, shapes))
            for layer in layers
        )
        total = sum(count * (len(problem.sources) if name in unowned else 1) for name, count in pictures.items())
        units = [{name: one.units for name, one in maps.items()} for maps in shapes]
        values = max(widest(problem.spec, one) for one in units)
        if solving:
            solving += max(patch_bytes(problem.spec, one, min(total, batch)) for one in units)
        found = []
        for count in (total, min(total, batch)):  # in memory, or all that waits on disk
            step = SMALLEST_POSITION_STEP
            drawn = [0 if self.excess is None else drawn_bytes(problem.spec, one, count, step) for one in units]
            found.append(walk_bytes(values, count) + max(drawn) + solving)
        return MemoryEstimate(*found)

    def _joint_bytes(self, layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]], views: int) -> int:
        """Of the joint fit of one layer: V G of every view, and what is crossed, read or solved beside it."""
        module, sources = problem.sources[0].get_submodule(layer.name), len(problem.sources)
        apart = sources * problem.spec.sizes[layer.inputs] * layer.taps + layer.bias
        kept = views * sources * problem.spec.sizes[layer.outputs] * apart
        unknowns, outputs = self._unknowns(layer, problem, shapes), max(maps[layer.outputs].units for maps in shapes)
        crossed = 4 * outputs * apart + 2 * unknowns**2  # what was asked of V G, its targets, and what is summed
        moment = layer_moment(
            module, sources * weight_of(module).shape[1], layer.sides, constant=layer.bias, device="meta"
        )
        written = 3 * apart**2 if isinstance(moment, Moment) else 0  # to be merged
        pooled = moment.bytes if self.targets == "mean" else 0
        return pooled + 8 * kept + max(8 * written, 8 * crossed, solve_bytes(unknowns, 1))

    def _shapes(self, problem: Problem, budgets: Sequence[Budget | float | str]) -> list[dict[str, UnitMap]]:
        """Unit maps of all axes of the students, none narrower than it is going to be."""
        return [with_joins(problem.spec, maps) for maps in self.shapes(problem, budgets)]

    def _unknowns(self, layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]]) -> int:
        """Most unknowns that a row of a layer may have; none where it is not fitted, or is its sources' already."""
        if self._kept(layer, problem):
            return 0
        fitted = [maps for maps in shapes if layer.outputs not in exact_groups(problem.spec, maps)]
        units = max((maps[layer.inputs].units for maps in fitted), default=0) // _blocks(layer, problem, fitted)
        return units * layer.taps + (layer.bias or self.sequential) if units else 0  # the norm behind it adds one

    def plan(self, problem: Problem) -> str | None:
        """The stages of the sequential fit: layers that do not feed each other stand together."""
        kept = unfitted(problem.spec, joint=not self.sequential)
        stay = f"{self.name} leaves at the sources' mean: {', '.join(kept)}" if kept else None
        if not self.sequential:
            return stay
        names = {layer.node: layer.name for layer in problem.spec.layers}
        found = stages(graph_of(problem.sources[0]), names)
        steps = " → ".join(" + ".join(names[node] for node in stage) for stage in found)
        told = f"{self.name} fits {len(names)} layers in {len(found)} stages: {steps}"
        return told if stay is None else f"{told}; {stay}"

    def fit_students(self, starts: list[Merged], problem: Problem) -> Iterator[Merged]:
        """Solve every layer for all budgets; the students are changed in place."""
        if not self.sequential:
            yield from self._solve(starts, problem)
            return
        data = self._owned(problem)
        yield from (self._walk(merged, problem, *data) for merged in starts)

    def _walk(
        self,
        merged: Merged,
        problem: Problem,
        owners: Mapping[str, int],
        pictures: Mapping[str, Sequence[Tensor]],
        weights: Mapping[str, float],
    ) -> Merged:
        """The sequential fit of one student."""
        walk = SequentialFit(
            merged.student,
            problem.sources,
            owners,
            pictures,
            ridge=self.ridge,
            own=self.targets == "own",
            absorb=self.norm == "after",
            compensate=self.compensate,
            rounds=self.rounds,
            divergence=self.logits == "divergence",
            weights=weights,
            excess=self.excess,
            world=problem.world,
            scratch=problem.scratch,
            **({"kept": KeptFits(problem.progress.below(merged.name))} if problem.progress else {}),
        )
        with tqdm(
            total=len(problem.spec.layers), desc=f"fitting {merged.name}", unit="layer", leave=False, disable=None
        ) as bar:
            fits = walk.run(lambda name: bar.update())
        if self.excess is not None and all(fit.pictures * fit.positions == 1 for fit in fits.values()):
            warnings.warn(
                f"excess is {self.excess}, but {merged.name} is fitted to all samples: no layer has any to spare, or a "
                f"domain has fewer than four batches to tell by (calibration_batch_size).",
                stacklevel=2,
            )
        return replace(merged, layers={name: _measured(fit) for name, fit in fits.items()}, settled=True)

    def _owned(self, problem: Problem) -> tuple[dict[str, int], dict[str, Sequence[Tensor]], dict[str, float]]:
        """Owners, pictures and weights of the domains; of what belongs to none, each source gets its own version."""
        if problem.pictures is None:
            raise MergeError("the sequential fit needs the calibration pictures; keep them, or fit jointly.")
        owners, pictures, weights = dict(problem.owners), dict(problem.pictures), dict(self.weights)
        for domain in self._unowned(problem, pictures):
            batches = pictures.pop(domain)
            for index, source in enumerate(problem.sources):
                bar = tqdm(batches, desc=f"restyling for source {index}", unit="batch", leave=False, disable=None)
                part = f"{domain}/{index}"
                changed = (restyled(source, one, self.restyle_steps, problem.preprocessing) for one in bar)
                pictures[part] = waiting(changed, problem.scratch)
                owners[part], weights[part] = index, self.weights.get(domain, 1.0)
        return owners, pictures, weights

    def _unowned(self, problem: Problem, pictures: Iterable[str]) -> list[str]:
        """Domains of calibration pictures that are to be restyled: those which are none of the problem's."""
        if not self.sequential or self.targets == "mean" or not self.restyle_steps:
            return []
        return [domain for domain in pictures if domain not in problem.labels.domains]

    def _solve(self, starts: list[Merged], problem: Problem) -> list[Merged]:
        """The joint fit of all students; its layers do not wait for each other and are dealt out to the processes."""
        world, layers = problem.world, [layer for layer in problem.spec.layers if not self._kept(layer, problem)]
        maps = {layer: [_maps(layer, merged) for merged in starts] for layer in layers}
        owners = world.deal([sum(_effort(layer, *one) for one in dict.fromkeys(maps[layer])) for layer in layers])
        found = torch.zeros(len(layers), len(starts), len(MEASURED), dtype=torch.float64)
        mine = [(number, layer) for number, layer in enumerate(layers) if owners[number] == world.rank]
        with world.together("could not fit its share of the layers"):
            for number, layer in tqdm(mine, desc=f"fitting {self.name}", unit="layer", leave=False, disable=None):
                fits = self._solved(layer, list(dict.fromkeys(maps[layer])), problem)
                for student, (merged, one) in enumerate(zip(starts, maps[layer], strict=True)):
                    merged.student.load_layer(layer.name, fits[one].matrix)
                    found[number, student] = found.new_tensor(list(_measured(fits[one]).values()))
        world.reduce(found)
        for layer, owner in zip(layers, owners, strict=True):
            for merged in starts:
                for tensor in merged.student.network.get_submodule(layer.name).parameters():
                    world.broadcast(tensor.detach(), owner)
        told: list[dict[str, dict[str, float]]] = [
            {layer.name: dict(zip(MEASURED, row, strict=True)) for layer, row in zip(layers, rows, strict=True)}
            for rows in found.transpose(0, 1).tolist()
        ]
        return [replace(merged, layers=one) for merged, one in zip(starts, told, strict=True)]

    def _solved(
        self, layer: Layer, asked: Sequence[tuple[UnitMap, UnitMap]], problem: Problem
    ) -> dict[tuple[UnitMap, UnitMap], LayerFit]:
        """The joint fit of one layer for some unit maps of its outputs and inputs."""
        matrices = joint_matrix(layer, [source.get_submodule(layer.name) for source in problem.sources])
        views, same = self._views(layer, matrices, problem), layer.inputs == problem.spec.plain_input
        return {one: fit_layer(layer, matrices, *one, views, ridge=self.ridge, same_input=same) for one in asked}

    def _kept(self, layer: Layer, problem: Problem) -> bool:
        """Whether the joint fit leaves a layer be: grouped convolutions, and heads that shall be the sources'."""
        if self.sequential:
            return False
        head = layer.outputs == problem.spec.output.name
        return layer.blocks > 1 or (head and problem.labels.mode == "different" and self.heads == "original")

    def _views(self, layer: Layer, matrices: list[Tensor], problem: Problem) -> list[View]:
        """What the domains ask of a layer: all the same, or each its own source's outputs."""
        if problem.statistics is None:
            raise MergeError("PLeaS needs statistics of the layers' inputs; gather them first.")
        if self.targets == "mean" and not self.weights:
            return [View(layer, matrices, problem.statistics.layer(layer.name))]
        owners = problem.owners if self.targets == "own" else {}
        return [
            View(layer, matrices, moment, owners.get(domain), self.weights.get(domain, 1.0))
            for domain, moment in problem.statistics.layers[layer.name].items()
        ]


def _blocks(layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]]) -> int:
    """Most blocks that a layer of a student may have: of a depthwise convolution as many as units."""
    units = max((maps[layer.inputs].units for maps in shapes), default=0)
    return max(1, units * layer.blocks // problem.spec.sizes[layer.inputs]) if layer.blocks > 1 else 1


def _measured(fit: LayerFit) -> dict[str, float]:
    """What is known of a layer's fit, for tables and plots."""
    found = (fit.before, fit.after, fit.condition, float(fit.fallbacks), fit.pictures, fit.positions)
    return dict(zip(MEASURED, found, strict=True))


def _maps(layer: Layer, merged: Merged) -> tuple[UnitMap, UnitMap]:
    """Unit maps of a layer's outputs and of its inputs."""
    return merged.student.maps[layer.outputs], merged.student.maps[layer.inputs]


def _effort(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> float:
    """What the joint fit of a layer costs, were its rows one block."""
    return effort(inputs.units * layer.taps + layer.bias, outputs.units)
