"""The sources in one space: parameters of one shape, unit j of one source matched with unit j of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from project.alignment import Alignment, UnitMap, unaligned
from project.errors import ConfigurationError, MergeError
from project.methods.base import Method, Problem
from project.methods.permutation import Permutation
from project.methods.shared.matching import By, Matching
from project.moments import Classes
from project.student import with_joins
from project.symmetry import Layer, permute_state, permute_tensors

Align = Literal["none"] | By | Matching
"""``none``, one of the ways to match units in its usual settings, or a way with settings."""


@dataclass(frozen=True, eq=False)
class Space:
    """What arithmetic on parameters needs. Buffers take no part in it, nor do heads of different label spaces.

    Args:
        problem: The sources as they are.
        alignment: Which of their units belong together.
    """

    problem: Problem
    alignment: Alignment

    @classmethod
    def of(cls, problem: Problem, align: Align) -> "Space":
        """Match the units of the sources.

        Args:
            problem: The sources; with moments of their units for ``activations`` and ``both``.
            align: ``none`` matches them by number.
        """
        matching = matching_of(align)
        if matching is None:
            return cls(problem, unaligned(problem.spec, len(problem.sources)))
        return cls(problem, matching.align(problem))

    @staticmethod
    def shared(method: Method, align: Align) -> bool:
        """Whether the students that a method makes at one source's size have their units where ``align`` puts them.

        Args:
            method: Where it tries several settings, all must put them there.
            align: See :meth:`of`.
        """
        return all(_places_alike(one, matching_of(align)) for one in method.candidates)

    @cached_property
    def maps(self) -> dict[str, UnitMap]:
        """Unit map of every group."""
        return {**self.problem.fixed, **{name: UnitMap.sorted(rows) for name, rows in self.alignment.members.items()}}

    @cached_property
    def _axes(self) -> dict[str, UnitMap]:
        return with_joins(self.problem.spec, self.maps)

    def _orders(self, source: int) -> dict[str, Tensor]:
        """Which unit of a source stands in each place."""
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
        found = []
        for index, source in enumerate(self.problem.sources):
            parameters = {name: one.detach() for name, one in source.named_parameters()}
            moved = permute_state(parameters, self.problem.spec, self._orders(index))
            found.append({name: moved[name].double() for name in self.names})
        return found

    def buffers(self, name: str) -> list[Tensor]:
        """One tensor of the state of every source, as it stands in this space."""
        found = []
        for index, source in enumerate(self.problem.sources):
            state = {name: source.state_dict()[name].detach()}
            found.append(permute_tensors(state, self.problem.spec, self._orders(index))[name])
        return found

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """The mean of the sources."""
        return {name: torch.stack([one[name] for one in self.sources]).mean(0) for name in self.names}

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
        """E[z zᵀ] of what a source reads in a layer: float64, shape (inputs · taps, inputs · taps).

        Of a grouped convolution block by block, shape (blocks, inputs of a block · taps twice).
        """
        assert self.problem.statistics is not None
        units = self._axes[layer.inputs].members[:, source]
        return _reordered(self.problem.statistics.input(layer.name, source), units, layer.blocks, layer.taps)

    def factor(self, layer: Layer, source: int, classes: Classes) -> Tensor:
        """E[g gᵀ] of the gradients g of log p with respect to a layer's output: float64, shape (outputs, outputs).

        Of a grouped convolution block by block, shape (blocks, outputs of a block twice).
        """
        assert self.problem.statistics is not None
        factor = self.problem.statistics.factor(layer.name, source, classes)
        apart = layer.outputs == self.problem.spec.output.name
        rows = torch.arange(len(factor)) if apart else self._axes[layer.outputs].members[:, source]
        return _reordered(factor, rows, layer.blocks)

    def squares(self, source: int, classes: Classes) -> dict[str, Tensor]:
        """For each parameter, the mean square of the gradient of a source's log p, float64."""
        assert self.problem.statistics is not None
        found = {name: self.problem.statistics.square(name, source, classes) for name in self.names}
        return permute_tensors(found, self.problem.spec, self._orders(source))

    @property
    def matches(self) -> Mapping[str, float]:
        """For each group, the mean similarity of its matched units; empty where nothing was matched."""
        return self.alignment.matches


def _places_alike(method: Method, wanted: Matching | None) -> bool:
    if isinstance(method, Permutation):
        mine: Matching | None = method.matched
    elif hasattr(method, "align"):
        mine = matching_of(method.align)
    else:
        return False
    return mine is wanted if mine is None or wanted is None else mine.same(wanted)


def matching_of(align: Align | Mapping[str, Any]) -> Matching | None:
    """The way in which units are matched; None where they are by number.

    Args:
        align: Settings may come as a mapping, as a grid in a YAML file has them.

    Raises:
        ConfigurationError: If there is no such way.
    """
    if isinstance(align, Matching):
        return align
    if isinstance(align, Mapping):
        known = [one.name for one in fields(Matching)]
        if unowned := [name for name in align if name not in known]:
            raise ConfigurationError(f"align names {unowned[0]!r}; settings: {', '.join(known)}.")
        return Matching(**align)
    if align not in ("none", *get_args(By)):
        allowed = ", ".join(map(repr, ("none", *get_args(By))))
        raise ConfigurationError(f"align is {align!r}; allowed: {allowed}, or settings such as {{'alpha': 0.3}}.")
    return None if align == "none" else Matching(align)


def _reordered(moment: Tensor, units: Tensor, blocks: int, taps: int = 1) -> Tensor:
    """A moment with its units, of several taps each, in another order; whole blocks move, and units within them."""
    width = len(units) // blocks
    homes, inside = units[::width] // width, (units % width).view(blocks, width)
    entries = (inside[..., None] * taps + torch.arange(taps)).flatten(1).to(moment.device)
    if blocks == 1:
        return moment[entries[0]][:, entries[0]]
    return moment[homes.to(moment.device)[:, None, None], entries[:, :, None], entries[:, None, :]]
