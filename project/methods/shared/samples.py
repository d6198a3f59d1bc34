"""How many unknowns the rows of a layer have, and whether there are samples enough to settle them."""

import warnings
from collections.abc import Mapping, Sequence
from math import ceil

from project.alignment import UnitMap
from project.errors import ConfigurationError
from project.methods.problem import Problem
from project.student.build import exact_groups
from project.symmetry import Layer


def most_unknowns(layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]], *, constant: bool) -> int:
    """Count the most unknowns that a row of a layer may have; 0 where it is its sources' already.

    Args:
        layer: The layer.
        problem: The sources.
        shapes: For each student, the unit maps of all axes, none narrower than it is going to be.
        constant: Whether each row has a constant.
    """
    fitted = [maps for maps in shapes if layer.outputs not in exact_groups(problem.spec, maps)]
    units = max((maps[layer.inputs].units for maps in fitted), default=0) // most_blocks(layer, problem, fitted)
    return units * layer.taps + constant if units else 0


def most_blocks(layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]]) -> int:
    """Count the most blocks that a layer of a student may have: of a depthwise convolution as many as units.

    Args:
        layer: The layer.
        problem: The sources.
        shapes: For each student, the unit maps of all axes.
    """
    units = max((maps[layer.inputs].units for maps in shapes), default=0)
    return max(1, units * layer.blocks // problem.spec.sizes[layer.inputs]) if layer.blocks > 1 else 1


def check_samples(unknowns: Mapping[Layer, int], count: int, words: str, ridge: float) -> None:
    """Refuse or, with a ridge, tell of more unknowns than samples, in the layer that lacks most.

    Args:
        unknowns: layer -> most unknowns of a row.
        count: Number of pictures that a row is fitted to.
        words: What these pictures are, with their number.
        ridge: Pull towards the start point.

    Raises:
        ConfigurationError: Without a ridge, with the layer and both numbers.
    """
    scarcity = {layer: needed / layer.positions for layer, needed in unknowns.items()}
    layer = max(scarcity, key=lambda layer: scarcity[layer])
    if count >= scarcity[layer]:
        return
    shortage = (
        f"layer {layer.name!r} may have {unknowns[layer]} unknowns a row, and {words} give only "
        f"{count * layer.positions} samples"
    )
    if ridge == 0:
        raise ConfigurationError(f"ridge is 0, but {shortage}; use more pictures or a ridge above 0.")
    warnings.warn(
        f"{shortage}: what they leave open stays near the permuted average; {ceil(scarcity[layer])} would be enough.",
        stacklevel=2,
    )
