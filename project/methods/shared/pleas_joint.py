"""The joint fit of PLeaS: every layer for itself, on the sources' inputs; layers are dealt out to the processes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from project.alignment import UnitMap
from project.fit import LayerFit, Measurements, View, effort, fit_layer
from project.methods.base import Merged
from project.methods.problem import Problem
from project.moments import Statistics
from project.runtime import World
from project.student import joint_matrix
from project.symmetry import Layer

Targets = Literal["own", "mean"]
Heads = Literal["original", "fitted"]
Maps = tuple[UnitMap, UnitMap]
"""Unit maps of a layer's outputs and of its inputs."""


def left_alone(layer: Layer, problem: Problem, heads: Heads) -> bool:
    """Tell whether the joint fit leaves a layer be: grouped convolutions, and heads that shall be the sources'.

    Args:
        layer: The layer.
        problem: The sources.
        heads: Whether heads of different label spaces stay the sources' own.
    """
    head = layer.outputs == problem.spec.output.name
    return layer.blocks > 1 or (head and problem.labels.mode == "different" and heads == "original")


@dataclass(frozen=True, eq=False)
class JointFit:
    """The joint fit of all students of a merge.

    Args:
        problem: The sources.
        statistics: With moments of the layers' inputs.
        targets: What merged units aim at: the ``own`` source of a picture's domain, or the ``mean`` of all.
        weights: domain -> weight of each of its pictures; default: 1.
        heads: Whether heads of different label spaces stay the sources' own.
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
    """

    problem: Problem
    statistics: Statistics
    targets: Targets
    weights: Mapping[str, float]
    heads: Heads
    ridge: float

    def run(self, starts: Sequence[Merged], world: World, name: str) -> list[Merged]:
        """Fit all students, in place; layers do not wait for each other and are dealt out to the processes.

        Args:
            starts: The students at their start points.
            world: The processes.
            name: Of the method, for the progress bar.

        Returns:
            The same students with the measurements of their layers.
        """
        layers = [layer for layer in self.problem.spec.layers if not left_alone(layer, self.problem, self.heads)]
        maps = {layer: [_maps(layer, merged) for merged in starts] for layer in layers}
        owners = world.deal([sum(_effort(layer, *pair) for pair in dict.fromkeys(maps[layer])) for layer in layers])
        counted, domains = len(fields(Measurements)), self._parts
        rows = torch.zeros(len(layers), len(starts), counted + len(domains), dtype=torch.float64)
        local = [(number, layer) for number, layer in enumerate(layers) if owners[number] == world.rank]
        with world.together("could not fit its share of the layers"):
            for number, layer in tqdm(local, desc=f"fitting {name}", unit="layer", leave=False, disable=None):
                fits = self._solve(layer, list(dict.fromkeys(maps[layer])))
                for student, (merged, pair) in enumerate(zip(starts, maps[layer], strict=True)):
                    merged.student.load_layer(layer.name, fits[pair].matrix)
                    found = [*fits[pair].measurements.to_row(), *(fits[pair].domains if domains else ())]
                    rows[number, student] = torch.tensor(found, dtype=torch.float64)
        world.reduce(rows)
        for layer, owner in zip(layers, owners, strict=True):
            for merged in starts:
                for tensor in merged.student.network.get_submodule(layer.name).parameters():
                    world.broadcast(tensor.detach(), owner)
        return [
            replace(
                merged,
                layers={
                    layer.name: asdict(Measurements.from_row(row[:counted].tolist()))
                    for layer, row in zip(layers, rows[:, student], strict=True)
                },
                domain_residuals={
                    domain: {
                        layer.name: float(value)
                        for layer, value in zip(layers, rows[:, student, counted + place], strict=True)
                        if not value.isnan()
                    }
                    for place, domain in enumerate(domains)
                },
            )
            for student, merged in enumerate(starts)
        ]

    def _solve(self, layer: Layer, pairs: Sequence[Maps]) -> dict[Maps, LayerFit]:
        """Solve one layer for some unit maps."""
        matrices = joint_matrix(layer, [source.get_submodule(layer.name) for source in self.problem.sources])
        views, same = self._views(layer, matrices), layer.inputs == self.problem.spec.plain_input
        return {pair: fit_layer(layer, matrices, *pair, views, ridge=self.ridge, same_input=same) for pair in pairs}

    @property
    def _parts(self) -> list[str]:
        """The domains whose moments are apart; none where all ask for the same, whose moments were added up."""
        together = self.targets == "mean" and not self.weights
        return [] if together else list(next(iter(self.statistics.layers.values()), {}))

    def _views(self, layer: Layer, matrices: list[Tensor]) -> list[View]:
        """Collect what the domains ask of a layer: all the same, or each its own source's outputs."""
        if not self._parts:
            return [View(layer, matrices, self.statistics.layer(layer.name))]
        owners = self.problem.owners if self.targets == "own" else {}
        return [
            View(layer, matrices, moment, owners.get(domain), self.weights.get(domain, 1.0))
            for domain, moment in self.statistics.layers[layer.name].items()
        ]


def _maps(layer: Layer, merged: Merged) -> Maps:
    return merged.student.maps[layer.outputs], merged.student.maps[layer.inputs]


def _effort(layer: Layer, outputs: UnitMap, inputs: UnitMap) -> float:
    """Estimate what the joint fit of a layer costs, were its rows one block."""
    return effort(inputs.units * layer.taps + layer.bias, outputs.units)
