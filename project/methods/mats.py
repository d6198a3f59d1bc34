"""MaTS: merging as a linear system for every tensor, solved by conjugate gradients (arXiv 2312.04339)."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from project.allocation import Budget
from project.errors import ConfigurationError, MergeError, at_least, between, flags, nearest, one_of, whole
from project.fit.memory_estimate import picture_bytes
from project.methods.base import Method, Preparation
from project.methods.problem import PictureCounts, Problem, Run
from project.methods.shared import Arithmetic
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arguments import check_labels
from project.methods.shared.arithmetic import Combined, write
from project.methods.shared.conjugate import ConjugateGradients
from project.methods.shared.curves import Curves
from project.methods.shared.divergence import divergence
from project.methods.shared.systems import Elementwise, Gram, Kronecker, System, merged_layers
from project.methods.task_arithmetic import TaskArithmetic
from project.methods.ties import TIES
from project.moments import DIAGONAL, FACTORS, INPUTS, PICTURES, Classes, fisher_need
from project.runtime import World
from project.student import Student, batches_of_all, renormalise

Estimate = Literal["average", "diagonal", "gram", "kfac"]
STARTS = {"taskarithmetic": TaskArithmetic, "ties": TIES}
GIVEN = ("average", "zero", "base")
"""Start points that no other method makes, whatever methods are called."""


class MaTS(Arithmetic):
    """Solve (Σ Cᵢ) θ = Σ Cᵢ θᵢ for every tensor, where Cᵢ says which directions matter to source i.

    The solution minimises Σ ‖θ − θᵢ‖² in the norms of the Cᵢ. Few iterations stay near the start point, which is
    part of the method: both are worth trying. With weights W as (outputs × inputs · taps):

    - ``average``: Cᵢ = I.
    - ``diagonal``: the diagonal Fisher information, of every parameter.
    - ``gram``: Cᵢ W = W Aᵢ, Aᵢ = E[z zᵀ] of what source i reads there (RegMean's).
    - ``kfac``: Cᵢ W = Gᵢ W Aᵢ, Gᵢ = E[g gᵀ] of the gradients g of log p with respect to what the layer puts out, each
      position of a convolution a sample.

    Each block of a grouped or depthwise convolution has its Aᵢ and Gᵢ. Biases and norms have none: under ``gram`` and
    ``kfac`` they become the mean of the sources.

    Args:
        estimate: Which Cᵢ.
        classes: For ``diagonal`` and ``kfac``, gradients of which classes: ``sampled`` from the source's probabilities,
            ``exact`` over all of them (as many backward passes as there are classes), or the pictures' ``labels``.
        start: Start point: ``average``, ``zero``, ``base``, the name of a method that is listed before this one and
            makes a plain network of one source's size, tuned or not, or else ``taskarithmetic`` or ``ties`` in their
            default settings.
        iterations: Most steps for a tensor.
        tolerance: A tensor is done where the norm of its residual is at most this times that of Σ Cᵢ θᵢ.
        damping: Added to the diagonal of every Cᵢ, relative to the mean of their diagonals.
        off_diagonal: Factor of what is off the diagonal of each Aᵢ and Gᵢ.
        precondition: Whether to divide by the diagonal of Σ Cᵢ (Jacobi).
        watch: Every so many iterations, the student is run as it then stands, its batch norms re-estimated, on the
            calibration pictures, which are kept in memory: how far its probabilities are from those of each
            domain's own source (KL divergence, the mean of the domains' means). 0: never.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``mats``.
    """

    def __init__(
        self,
        estimate: Estimate = "kfac",
        classes: Classes = "sampled",
        start: str = "average",
        iterations: int = 100,
        tolerance: float = 1e-5,
        damping: float = 0.0,
        off_diagonal: float = 1.0,
        precondition: bool = False,
        watch: int = 0,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        one_of(Estimate, estimate=estimate)
        one_of(Classes, classes=classes)
        if not isinstance(start, str):
            raise ConfigurationError(
                f"start is {start!r}; allowed: the name of a method, or one of {', '.join(GIVEN)}."
            )
        flags(precondition=precondition)
        whole(0, iterations=iterations, watch=watch)
        at_least(0, tolerance=tolerance, damping=damping)
        between(0, 1, off_diagonal=off_diagonal)
        self.estimate: Estimate = estimate
        self.classes: Classes = classes
        self.start, self.follows = start, frozenset((start,)) - set(GIVEN)
        self.iterations, self.tolerance, self.damping = iterations, tolerance, damping
        self.off_diagonal, self.precondition, self.watch = off_diagonal, precondition, watch
        self.labelled = classes == "labels" and estimate in ("diagonal", "kfac")
        moments = {
            "average": (),
            "diagonal": (fisher_need(DIAGONAL, classes),),
            "gram": (INPUTS,),
            "kfac": (INPUTS, fisher_need(FACTORS, classes)),
        }
        self.needs = self.needs | frozenset(moments[estimate]) | ({PICTURES} if watch else frozenset())

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse a start point that nobody makes, that needs a base that is not given, or whose units lie elsewhere."""
        if self.start not in (*GIVEN, *STARTS, *planned):
            known = dict.fromkeys((*GIVEN, *STARTS, *planned))
            raise ConfigurationError(
                f"start of method {self.name} is {self.start!r}{nearest(self.start, known)}; allowed: "
                f"{', '.join(map(repr, known))}; of methods listed before it, those that make one plain network of one "
                f"source's size, PLeaS and Permutation by budget 1."
            )
        preparation = super().prepare(problem, pictures, budgets, planned)
        other = planned.get(self.start) if self.follows else None
        if other is not None and not Space.shared(other, self.align):
            raise ConfigurationError(
                f"start of method {self.name} is {self.start!r}, whose units are matched in another way than by align "
                f"{self.align!r}; give both the same."
            )
        if self.labelled:
            check_labels(self.classes, problem, pictures.domains)
        systems = self._system_bytes(problem)
        watched = picture_bytes(problem.spec, sum(pictures.local.values())) if self.watch else 0
        return preparation.adding(systems + watched, systems)

    def _system_bytes(self, problem: Problem) -> int:
        """Count the bytes of the largest layer's system, or of all where the student is watched."""
        if self.estimate not in ("gram", "kfac"):
            return 0
        spec = problem.spec
        sides = [(layer.taps * spec.sizes[layer.inputs], spec.sizes[layer.outputs]) for layer in spec.layers]
        blocks = [layer.blocks for layer in spec.layers]
        held = [8 * (x**2 + y**2) // count for (x, y), count in zip(sides, blocks, strict=True)]
        copies = len(problem.sources) if self.estimate == "kfac" else 1
        reading = 3 if self.estimate == "gram" else 2  # what is read beside those that are held
        return copies * (sum(held) if self.watch else max(held)) + reading * max(held)

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """Need θ₀ where the start point is made of it."""
        return self.start == "base" or (self.start in STARTS and self.start not in planned)

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """Solve every tensor's system: one after the other, or, to watch the student, all of them step by step."""
        start = self._start(space, student, run)
        parameters, layers = dict(space.mean), {}
        curves = Curves()
        with tqdm(desc=f"solving {self.name}", unit="tensor", leave=False, disable=None) as bar:
            for together in self._batches(space):
                solvers = [(system, self._solver(system, start)) for system in together]
                for step in range(self.iterations + 1):
                    for system, solver in solvers:
                        curves.note(system, solver, step)
                    if self.watch and step % self.watch == 0:
                        write(student, {**parameters, **_solutions(space, solvers)})
                        settled = deepcopy(student)
                        renormalise(settled, lambda: batches_of_all(space.evidence.pictures), run.world, run.room)
                        curves.divergence[step] = divergence(settled, space.problem, space.evidence.pictures, run.world)
                    if step == self.iterations or not self._step([solver for _, solver in solvers], run.world):
                        break
                parameters |= _solutions(space, solvers)
                for system, solver in solvers:
                    if system.name in self._layer_names(space):
                        layers[system.name] = curves.summary(system, solver)
                    bar.update()
        return Combined(parameters, layers, curves.plain())

    def _step(self, solvers: Sequence[ConjugateGradients], world: World) -> bool:
        """Take a step in all systems; return whether any was left to take, which all processes hear from the first.

        They watch the student together, so that none may stop before the others for the sake of a last bit.
        """
        left = torch.tensor(int(any([solver.step() for solver in solvers])))
        if self.watch:
            world.broadcast(left, 0)
        return bool(left)

    def _layer_names(self, space: Space) -> set[str]:
        return {layer.name for layer in space.problem.spec.layers}

    def _batches(self, space: Space) -> Iterator[list[System]]:
        """Yield the systems that are solved side by side; those of one batch are in memory together."""
        systems = (system for system in self._systems(space) if not system.settled)
        if self.watch:
            yield list(systems)
        else:
            yield from ([system] for system in systems)

    def _systems(self, space: Space) -> Iterator[System]:
        if self.estimate == "gram":
            for layer in merged_layers(space):
                yield Gram.of(space, layer, off_diagonal=self.off_diagonal, damping=self.damping)
        elif self.estimate == "kfac":
            for layer in merged_layers(space):
                yield Kronecker.of(space, layer, self.classes, off_diagonal=self.off_diagonal, damping=self.damping)
        else:
            known = None
            if self.estimate == "diagonal":
                known = [space.squares(index, self.classes) for index in range(len(space.sources))]
            layers = {f"{name}.weight": name for name in self._layer_names(space)}
            for name in space.names:
                sources = [source[name] for source in space.sources]
                weights = [one[name] for one in known] if known else [torch.ones_like(one) for one in sources]
                yield Elementwise(layers.get(name, name), sources, weights, self.damping)

    def _solver(self, system: System, start: Mapping[str, Tensor]) -> ConjugateGradients:
        begin = start[_tensor(system, start)].reshape(system.mean.shape)
        return ConjugateGradients(
            system.apply,
            system.right,
            begin,
            residual=system.residual(begin),
            tolerance=self.tolerance,
            diagonal=system.diagonal if self.precondition else None,
        )

    def _start(self, space: Space, student: Student, run: Run) -> dict[str, Tensor]:
        """Find the start point; of a tensor that it lacks, the mean of the sources."""
        if self.start == "average":
            return space.mean
        if self.start == "zero":
            return {name: torch.zeros_like(mean) for name, mean in space.mean.items()}
        if self.start == "base":
            return {**space.mean, **space.base}
        if self.start not in run.made:
            return {**space.mean, **STARTS[self.start](label=self.start).combine(space, student, run).parameters}
        other = run.made[self.start]
        if any(not torch.equal(other.maps[name].members, units.members) for name, units in space.maps.items()):
            raise MergeError(
                f"start of method {self.name} is {self.start!r}, whose units are matched in another way; give both the "
                f"same align."
            )
        return {name: other.network.get_parameter(name).detach().to(mean) for name, mean in space.mean.items()}


def _tensor(system: System, names: Mapping[str, Tensor]) -> str:
    """Name a system's tensor: that of a layer stands for its weight."""
    return system.name if system.name in names else f"{system.name}.weight"


def _solutions(space: Space, solvers: Sequence[tuple[System, ConjugateGradients]]) -> dict[str, Tensor]:
    """Collect the tensors as they stand."""
    names = {_tensor(system, space.mean): solver.solution for system, solver in solvers}
    return {name: values.view_as(space.mean[name]) for name, values in names.items()}
