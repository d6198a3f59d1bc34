"""The sources in one space: parameters of one shape, unit j of one source matched with unit j of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from project.alignment import Alignment, UnitMap, unaligned
from project.errors import ConfigurationError, MergeError
from project.methods.base import Method
from project.methods.permutation import Permutation
from project.methods.problem import Evidence, Problem
from project.methods.shared.matching import By, Matching
from project.moments import Classes
from project.runtime import World
from project.student import with_joins
from project.symmetry import Layer, permute_state, permute_tensors

Align = Literal["none"] | By | Matching
"""``none``, one of the ways to match units in its usual settings, or a way with settings."""


@dataclass(frozen=True, eq=False)
class Space:
    """What arithmetic on parameters needs. Buffers take no part in it, nor do heads of different label spaces.

    Args:
        problem: The sources as they are.
        evidence: What calibration has left behind of them.
        alignment: Which of their units belong together.
    """

    problem: Problem
    evidence: Evidence
    alignment: Alignment

    @classmethod
    def of(cls, problem: Problem, evidence: Evidence, world: World, align: Align) -> "Space":
        """Match the units of the sources.

        Args:
            problem: The sources.
            evidence: With moments of their units for ``activations`` and ``both``.
            world: The processes, which are to match them alike.
            align: ``none`` matches them by number.
        """
        matching = matching_of(align)
        if matching is None:
            return cls(problem, evidence, unaligned(problem.spec, len(problem.sources)))
        return cls(problem, evidence, matching.align(problem, evidence, world))

    @staticmethod
    def shared(method: Method, align: Align) -> bool:
        """Tell whether students that a method makes at one source's size have their units where ``align`` puts them.

        Args:
            method: Where it tries several settings, all must put them there.
            align: See :meth:`of`.
        """
        return all(_places_alike(candidate, matching_of(align)) for candidate in method.candidates)

    @cached_property
    def maps(self) -> dict[str, UnitMap]:
        """Unit map of every group."""
        return {**self.problem.fixed, **{name: UnitMap.sorted(rows) for name, rows in self.alignment.members.items()}}

    @cached_property
    def _axes(self) -> dict[str, UnitMap]:
        return with_joins(self.problem.spec, self.maps)

    def _orders(self, source: int) -> dict[str, Tensor]:
        """Find which unit of a source stands in each place: group -> shape (units,)."""
        return {group.name: self.maps[group.name].members[:, source] for group in self.problem.spec.free}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters that are merged."""
        first, head = self.problem.sources[0], self.problem.spec.head.name
        apart = self.problem.labels.mode == "different"
        return tuple(name for name, _ in first.named_parameters() if not (apart and name.rpartition(".")[0] == head))

    @cached_property
    def sources(self) -> list[dict[str, Tensor]]:
        """The parameters of every source, float64."""
        sources = []
        for index, source in enumerate(self.problem.sources):
            parameters = {name: parameter.detach() for name, parameter in source.named_parameters()}
            moved = permute_state(parameters, self.problem.spec, self._orders(index))
            sources.append({name: moved[name].double() for name in self.names})
        return sources

    def buffers(self, name: str) -> list[Tensor]:
        """Bring one tensor of every source's state into this space."""
        buffers = []
        for index, source in enumerate(self.problem.sources):
            state = {name: source.state_dict()[name].detach()}
            buffers.append(permute_tensors(state, self.problem.spec, self._orders(index))[name])
        return buffers

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """The mean of the sources."""
        return {name: torch.stack([source[name] for source in self.sources]).mean(0) for name in self.names}

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """θ₀: all parameters that it has in the sources' shape; its head may be for other classes.

        Raises:
            MergeError: If there is none.
        """
        if self.problem.base is None:
            raise MergeError("base is missing; give the network that the sources were fine-tuned from, or 'mean'.")
        if self.problem.base == "mean":
            return self.mean
        parameters = dict(self.problem.base.named_parameters())
        return {
            name: parameters[name].detach().to(mean)
            for name, mean in self.mean.items()
            if name in parameters and parameters[name].shape == mean.shape
        }

    def gram(self, layer: Layer, source: int) -> Tensor:
        """Compute E[z zᵀ] of what a source reads in a layer: float64, shape (inputs · taps, inputs · taps).

        Of a grouped convolution block by block, shape (blocks, inputs of a block · taps twice).
        """
        units = self._axes[layer.inputs].members[:, source]
        return _reordered(self.evidence.statistics.input(layer.name, source), units, layer.blocks, layer.taps)

    def factor(self, layer: Layer, source: int, classes: Classes) -> Tensor:
        """Compute E[g gᵀ] of the gradients g of log p by a layer's output: float64, shape (outputs, outputs).

        Of a grouped convolution block by block, shape (blocks, outputs of a block twice).
        """
        factor = self.evidence.statistics.factor(layer.name, source, classes)
        apart = layer.outputs == self.problem.spec.output.name
        rows = torch.arange(len(factor)) if apart else self._axes[layer.outputs].members[:, source]
        return _reordered(factor, rows, layer.blocks)

    def squares(self, source: int, classes: Classes) -> dict[str, Tensor]:
        """Compute the mean square of the gradient of a source's log p, for each parameter: float64, in its shape."""
        squares = {name: self.evidence.statistics.square(name, source, classes) for name in self.names}
        return permute_tensors(squares, self.problem.spec, self._orders(source))

    @property
    def matches(self) -> Mapping[str, float]:
        """For each group, the mean similarity of its matched units; empty where nothing was matched."""
        return self.alignment.matches


def _places_alike(method: Method, matching: Matching | None) -> bool:
    if isinstance(method, Permutation):
        own: Matching | None = method.matched
    elif hasattr(method, "align"):
        own = matching_of(method.align)
    else:
        return False
    return own is matching if own is None or matching is None else own.same(matching)


def matching_of(align: Align | Mapping[str, Any]) -> Matching | None:
    """Read the way in which units are matched; None where they are by number.

    Args:
        align: Settings may come as a mapping, as a grid in a YAML file has them.

    Raises:
        ConfigurationError: If there is no such way.
    """
    if isinstance(align, Matching):
        return align
    if isinstance(align, Mapping):
        known = [setting.name for setting in fields(Matching)]
        if unowned := [name for name in align if name not in known]:
            raise ConfigurationError(f"align names {unowned[0]!r}; settings: {', '.join(known)}.")
        try:
            return Matching(**align)
        except ConfigurationError as error:
            raise ConfigurationError(f"of align, {error}") from error
    if not isinstance(align, str) or align not in ("none", *get_args(By)):
        allowed = ", ".join(map(repr, ("none", *get_args(By))))
        raise ConfigurationError(f"align is {align!r}; allowed: {allowed}, or settings such as {{'alpha': 0.3}}.")
    return None if align == "none" else Matching(align)


def _reordered(moment: Tensor, units: Tensor, blocks: int, taps: int = 1) -> Tensor:
    """Reorder the units of a moment, of several taps each; whole blocks move, and units within them."""
    width = len(units) // blocks
    homes, inside = units[::width] // width, (units % width).view(blocks, width)
    entries = (inside[..., None] * taps + torch.arange(taps)).flatten(1).to(moment.device)
    if blocks == 1:
        return moment[entries[0]][:, entries[0]]
    return moment[homes.to(moment.device)[:, None, None], entries[:, :, None], entries[:, None, :]]
