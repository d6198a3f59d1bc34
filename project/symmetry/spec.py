"""The permutation groups of an architecture: which axes of which tensors move together.

A group may be laid out in blocks, equal runs of units that stay together: the groups of a grouped convolution or of a
GroupNorm, the heads of attention. Its permutations map whole blocks to whole blocks and are free within each. Groups
that are ``tied`` share the order of their blocks: what a grouped convolution reads and what it writes, the queries and
keys of attention and its values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor of a state dict, tied to a group.

    Args:
        tensor: Name in the state dict.
        dim: Which axis.
        taps: Entries a unit owns on this axis; more than one where pictures are flattened before a linear layer.
        entries: Where the units' entries stand on the axis, unit after unit; None where they fill it in order.
        within: Whether the axis holds one block of units only, the block that axis 0 is in: the input axis of a
            grouped convolution.
    """

    tensor: str
    dim: int
    taps: int = 1
    entries: tuple[int, ...] | None = None
    within: bool = False


@dataclass(frozen=True)
class Group:
    """All axes that must be permuted and resized together.

    Args:
        name: Name of the first layer that writes the group (``input`` for the picture).
        size: Number of units.
        axes: The tied (tensor, axis) pairs.
        nodes: Names of the graph's values that carry the group's units, all of them and in order, on one axis, in
            execution order; :attr:`Spec.dims` says on which.
        fixed: ``input`` or ``output`` where the order of the units has a meaning outside the network, ``order`` where
            it has one inside, ``rigid`` saying which: such units are merged as they stand.
        blocks: Number of equal runs of units that a permutation keeps together.
        tied: Name that groups share whose blocks move together; None without blocks.
        whole: Whether a layer takes statistics over all units at once, or is the only head that attends by them, so
            that the units of a source can only be separated from the others' all together.
        rigid: Why the group keeps its size in a student, in words; None where it may grow.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    nodes: tuple[str, ...]
    fixed: Literal["input", "output", "order"] | None = None
    blocks: int = 1
    tied: str | None = None
    whole: bool = False
    rigid: str | None = None


@dataclass(frozen=True)
class Join:
    """Several groups on one axis, as concatenating values puts them.

    Args:
        name: The first layer that reads it, in words.
        parts: Group and place on the axis of each of its units, in the order of the groups' first places; as many
            places for each unit, one after the other, as it has there.
    """

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of places on the axis."""
        return sum(len(places) for _, places in self.parts)

    @property
    def ordered(self) -> bool:
        """Whether the groups stand one after the other, each in its own order."""
        return [place for _, places in self.parts for place in places] == list(range(self.size))


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: a matrix from input units × taps to output units.

    Args:
        name: Name of the module.
        node: Name of its call in the graph.
        inputs: Group, or join of groups, on its input axis.
        outputs: Group on its output axis.
        taps: Weights per (output unit, input unit): the kernel's size, or the flattened positions of a linear layer.
        positions: Output positions per picture at the traced picture size.
        bias: Whether it adds a constant.
        blocks: Number of blocks of a grouped convolution: each block of outputs reads its own block of inputs.
        sides: Height and width of what a convolution reads at the traced picture size; 1 × 1 for a linear layer.
    """

    name: str
    node: str
    inputs: str
    outputs: str
    taps: int
    positions: int
    bias: bool
    blocks: int = 1
    sides: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Norm:
    """A normalisation layer with a scale and a shift (and, for batch norm, a mean and a variance) a unit.

    Args:
        name: Name of the module.
        group: Group, or join of groups, that it normalises.
        entries: Parameters that a student's has for a unit.
        joint: Whether it takes its statistics over several units at once, as LayerNorm does.
    """

    name: str
    group: str
    entries: int = 2
    joint: bool = False


@dataclass(frozen=True)
class Parameter:
    """A tensor of the network's own that meets units on one axis, such as a class token or a layer scale.

    Args:
        name: Name in the state dict.
        dim: The axis that holds the units.
        group: Group, or join of groups, on it.
        entries: How many a unit owns.
    """

    name: str
    dim: int
    group: str
    entries: int = 1


@dataclass(frozen=True)
class Spec:
    """Everything that merging needs to know of an architecture, derived by tracing.

    Args:
        groups: Groups by name, in execution order of their first writer.
        layers: Layers in execution order.
        norms: Normalisation layers in execution order.
        picture: Shape (channels, height, width) of the traced picture.
        dims: For every node of a group, the axis of the value that carries the units.
        joins: Axes that several groups share, by name.
        parameters: Tensors outside layers and norms that carry units.
        products: group -> multiply-accumulates on one picture that attention spends on each of its units.
        loose: Tensors outside layers and norms that meet no units in particular.
    """

    groups: Mapping[str, Group]
    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    picture: tuple[int, int, int]
    dims: Mapping[str, int] = field(default_factory=dict)
    joins: Mapping[str, Join] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    products: Mapping[str, int] = field(default_factory=dict)
    loose: tuple[str, ...] = ()

    @property
    def free(self) -> tuple[Group, ...]:
        """The permutation groups: groups whose units may be renamed without changing the function."""
        return tuple(group for group in self.groups.values() if group.fixed is None)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of every group and join, by name."""
        groups = {name: group.size for name, group in self.groups.items()}
        return groups | {name: join.size for name, join in self.joins.items()}

    def parts(self, axis: str) -> tuple[str, ...]:
        """The groups on an axis: the group of that name, or those of the join."""
        return tuple(name for name, _ in self.joins[axis].parts) if axis in self.joins else (axis,)

    def normalised(self, group: Group) -> bool:
        """Whether a norm takes statistics over several of the group's units at once."""
        return any(norm.joint and group.name in self.parts(norm.group) for norm in self.norms)

    def reads(self, axis: Axis) -> bool:
        """Whether a layer sums over the axis, as over its inputs; else what is on it belongs to the units."""
        return axis.dim == 1 and any(axis.tensor == f"{layer.name}.weight" for layer in self.layers)

    def behind(self, axis: str) -> tuple[str, ...]:
        """The groups on an axis and those tied to them, on whose units its values depend as well."""
        return tuple(other.name for name in self.parts(axis) for other in self.tied(self.groups[name]))

    def tied(self, group: Group) -> tuple[Group, ...]:
        """The groups whose blocks move with this one's, itself among them."""
        if group.tied is None:
            return (group,)
        return tuple(other for other in self.groups.values() if other.tied == group.tied)

    @property
    def input(self) -> Group:
        """The group of the picture's channels."""
        return next(group for group in self.groups.values() if group.fixed == "input")

    @property
    def plain_input(self) -> str | None:
        """Name of the picture's group, if all sources read the picture as it is; None where they change it first."""
        name = self.input.name
        changed = {norm.group for norm in self.norms} | {layer.outputs for layer in self.layers}
        return None if name in changed else name

    @property
    def output(self) -> Group:
        """The group of the logits."""
        return next(group for group in self.groups.values() if group.fixed == "output")

    @property
    def head(self) -> Layer:
        """The layer that puts out the logits."""
        return next(layer for layer in self.layers if layer.outputs == self.output.name)
