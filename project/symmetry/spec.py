"""The permutation groups of an architecture: which axes of which tensors move together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor of a state dict, tied to a group.

    Args:
        tensor: Name in the state dict.
        dim: Which axis.
        taps: Consecutive entries a unit owns on this axis; more than one where pictures are flattened before a
            linear layer.
    """

    tensor: str
    dim: int
    taps: int = 1


@dataclass(frozen=True)
class Group:
    """All axes that must be permuted and resized together.

    Args:
        name: Name of the first layer that writes the group (``input`` for the picture).
        size: Number of units.
        axes: The tied (tensor, axis) pairs.
        nodes: Names of the graph's values that carry the group's units on axis 1, in execution order.
        fixed: ``input`` or ``output`` where the order of the units has a meaning outside the network.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    nodes: tuple[str, ...]
    fixed: Literal["input", "output"] | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: a matrix from input units × taps to output units.

    Args:
        name: Name of the module.
        node: Name of its call in the graph.
        inputs: Group on its input axis.
        outputs: Group on its output axis.
        taps: Weights per (output unit, input unit): the kernel's size, or the flattened positions of a linear layer.
        positions: Output positions per picture at the traced picture size.
        bias: Whether it adds a constant.
    """

    name: str
    node: str
    inputs: str
    outputs: str
    taps: int
    positions: int
    bias: bool


@dataclass(frozen=True)
class Norm:
    """A normalisation layer with one scale, shift, mean and variance per unit of its group."""

    name: str
    group: str


@dataclass(frozen=True)
class Spec:
    """Everything that merging needs to know of an architecture, derived by tracing.

    Args:
        groups: Groups by name, in execution order of their first writer.
        layers: Layers in execution order.
        norms: Normalisation layers in execution order.
        picture: Shape (channels, height, width) of the traced picture.
    """

    groups: Mapping[str, Group]
    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    picture: tuple[int, int, int]

    @property
    def free(self) -> tuple[Group, ...]:
        """The permutation groups: groups whose units may be renamed without changing the function."""
        return tuple(group for group in self.groups.values() if group.fixed is None)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of every group, by name."""
        return {name: group.size for name, group in self.groups.items()}

    @property
    def input(self) -> Group:
        """The group of the picture's channels."""
        return next(group for group in self.groups.values() if group.fixed == "input")

    @property
    def plain_input(self) -> str | None:
        """Name of the picture's group, if all sources read the picture as it is; None where norms stand before."""
        name = self.input.name
        return None if any(norm.group == name for norm in self.norms) else name

    @property
    def output(self) -> Group:
        """The group of the logits."""
        return next(group for group in self.groups.values() if group.fixed == "output")

    @property
    def head(self) -> Layer:
        """The layer that puts out the logits."""
        return next(layer for layer in self.layers if layer.outputs == self.output.name)
