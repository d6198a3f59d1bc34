"""From labelled axes to groups: units that appear on the same axes are of one group."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from project.errors import TraceError
from project.symmetry.graph import code_of
from project.symmetry.spec import Axis, Group, Join, Layer, Norm, Parameter, Spec
from project.symmetry.units import Units, Value


@dataclass(frozen=True)
class FoundAxis:
    """An axis of a tensor and the atom on each of its entries."""

    tensor: str
    dim: int
    labels: Tensor
    within: bool = False


@dataclass(frozen=True)
class FoundLayer:
    """A layer and the atoms it reads and writes; taps are None where they follow from the labels."""

    name: str
    node: fx.Node
    read: Tensor
    written: Tensor
    taps: int | None
    positions: int
    bias: bool
    blocks: int
    sides: tuple[int, int]


@dataclass(frozen=True)
class Tie:
    """Blocks, one a row, that a layer keeps together; the rows of all tensors belong to each other."""

    layer: str
    node: fx.Node
    members: tuple[Tensor, ...]


@dataclass
class Records:
    """What a walk through a graph has found.

    Attributes:
        units: All atoms.
        values: Labels of the graph's values.
        pieces: Labels of values that are several tensors; None for one without units.
        parameters: Labels of the network's own tensors.
        constants: Values that hang on buffers alone: the first one's name, and what they are, where that is known.
        ordered: Atoms whose order has a meaning, and which.
        source, logits: Atoms of the picture's channels and of the logits.
    """

    picture: tuple[int, int, int]
    batch: int
    units: Units = field(default_factory=Units)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    pieces: dict[fx.Node, list[Value | None]] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[fx.Node, tuple[str, Tensor | None]] = field(default_factory=dict)
    axes: list[FoundAxis] = field(default_factory=list)
    layers: list[FoundLayer] = field(default_factory=list)
    norms: list[tuple[str, Tensor, tuple[int, bool]]] = field(default_factory=list)
    products: list[tuple[Tensor, int]] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    whole: list[Tensor] = field(default_factory=list)
    rigid: list[tuple[Tensor, str]] = field(default_factory=list)
    ordered: list[tuple[Tensor, str]] = field(default_factory=list)
    source: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    logits: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def shape(self, node: fx.Node) -> torch.Size:
        """Shape of a value."""
        shape: torch.Size = node.meta["shape"]
        return shape

    def value(self, node: fx.Node) -> Value:
        """A value with what has been united since it was computed."""
        value = self.values[node]
        self.values[node] = value = self.units.value(value.labels, free=value.free)
        return value

    def classes(self, atoms: Tensor) -> Tensor:
        """The different classes of some atoms."""
        different: Tensor = torch.unique(self.units.find(atoms))
        return different

    def writer(self, atom: int) -> int:
        """Number of the layer that has made an atom."""
        return sum(start <= atom for start, _ in self.units.writers)

    def along(self, node: fx.Node, value: Value, dim: int, where: str) -> Tensor:
        """Atoms on one axis of a value, the same at all positions from now on.

        Raises:
            TraceError: Where the value's units stand on other axes alone.
        """
        size, labels = self.shape(node)[dim], value.labels
        if size > 1 and labels.shape[dim] == 1:
            raise TraceError(
                f"layer {where!r} is a layer on axis {dim} of a value whose units stand on axis "
                f"{', '.join(map(str, value.varying)) or 'none'}{code_of(node)}."
            )
        rows = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        self.units.unite(rows[:, :1], rows)
        return self.units.find(rows[:, 0])

    def reads(self, node: fx.Node, value: Value, dim: int, where: str) -> Tensor:
        """Atoms on an axis of the one value that a layer reads."""
        return self.along(node.all_input_nodes[0], value, dim, where)

    def tie(self, layer: str, node: fx.Node, *members: Tensor) -> None:
        """Keep blocks together."""
        self.ties.append(Tie(layer, node, members))


def collect(found: Records) -> Spec:
    """The spec of what was found.

    Raises:
        TraceError: Where the logits are tied to the picture, or a group is laid out in two ways.
    """
    groups = _Groups(found)
    groups.structure()
    joins = _Joins(groups)
    layers = []
    for one in found.layers:
        inputs, taps = joins.name(one.read, one.name)
        outputs, _ = joins.name(one.written, one.name)
        layers.append(
            Layer(
                one.name,
                one.node.name,
                inputs,
                outputs,
                one.taps or taps,
                one.positions,
                one.bias,
                one.blocks,
                one.sides,
            )
        )
    norms = tuple(Norm(name, joins.name(read, name)[0], *kind) for name, read, kind in found.norms)

    def entries(one: FoundAxis) -> int:
        return found.parameters[one.tensor].numel() // len(one.labels)

    parameters = tuple(
        Parameter(one.tensor, one.dim, joins.name(one.labels, one.tensor)[0], entries(one)) for one in groups.tables
    )
    products = {joins.name(read, "attention")[0]: count for read, count in found.products}
    dims = groups.carry()
    loose = tuple(sorted(set(found.parameters) - {one.name for one in parameters}))
    groups.stiffen(joins.joins, layers, loose)
    return Spec(
        groups.groups, tuple(layers), norms, found.picture, dims, joins.joins, parameters, products, loose
    )  # fmt: skip


class _Groups:
    """Units by the axes on which they appear."""

    def __init__(self, found: Records) -> None:
        self.found = found
        self.tables = list(_parameter_axes(found))
        self.axes = [replace(a, labels=found.units.find(a.labels)) for a in (*found.axes, *self.tables)]
        count = len(found.units.parent)
        self.group_of = torch.full((count,), -1)
        self.unit_of = torch.full((count,), -1)
        self.groups: dict[str, Group] = {}
        self.names: list[str] = []
        for index, (classes, axes) in enumerate(self._sorted()):
            self.group_of[classes] = index
            self.unit_of[classes] = torch.arange(len(classes))
            self._add(index, classes, axes)
        self._check_fixed()

    def _sorted(self) -> list[tuple[Tensor, list[FoundAxis]]]:
        """Classes and axes of every group, groups and units in the order in which layers write them first."""
        units = self.found.units
        ends = [start for start, _ in units.writers[1:]] + [len(units.parent)]
        written = torch.cat([torch.arange(s, e) for (s, w), e in zip(units.writers, ends, strict=True) if w])
        roots = units.find(written)
        self.first: dict[int, int] = {}
        for atom, root in zip(written.tolist(), roots.tolist(), strict=True):
            self.first.setdefault(root, atom)
        signatures: dict[int, list[tuple[int, int]]] = {root: [] for root in self.first}
        for index, axis in enumerate(self.axes):
            for root, count in zip(*(t.tolist() for t in torch.unique(axis.labels, return_counts=True)), strict=True):
                signatures[root].append((index, count))
        fixed: dict[int, str] = {}
        for name, atoms in (("input", self.found.source), ("output", self.found.logits)):
            for root in units.find(atoms).tolist():
                if fixed.setdefault(root, name) != name:
                    raise TraceError("the logits are tied to the picture's channels; a layer must stand between them.")
        for atoms, _ in self.found.ordered:
            for root in self.found.classes(atoms.flatten()).tolist():
                fixed.setdefault(root, "order")
        self.fixed = fixed
        grouped: dict[object, list[int]] = {}
        for root in sorted(self.first, key=self.first.__getitem__):
            if not signatures[root] and root not in fixed:
                continue  # no tensor holds it: heads of attention, say, which move with what they attend by
            kept, own = fixed.get(root), tuple(signatures[root])
            grouped.setdefault(kept if kept in ("input", "output") else (kept, own), []).append(root)
        return [
            (torch.tensor(roots), [self.axes[i] for i in sorted({i for root in roots for i, _ in signatures[root]})])
            for roots in grouped.values()
        ]

    def _add(self, index: int, classes: Tensor, found: list[FoundAxis]) -> None:
        writer = self._writer(self.first[int(classes[0])])
        fixed = self.fixed.get(int(classes[0]))
        taken = sum(name == writer or name.startswith(f"{writer}#") for name in self.names)
        name = f"{writer}#{taken + 1}" if taken else writer
        axes = []
        for axis in found:
            places = self.places(axis.labels, index)
            entries = None if places == list(range(len(axis.labels))) else tuple(places)
            axes.append(Axis(axis.tensor, axis.dim, len(places) // len(classes), entries, axis.within))
        self.names.append(name)
        self.groups[name] = Group(name, len(classes), tuple(axes), (), fixed)  # type: ignore[arg-type]

    def places(self, labels: Tensor, index: int) -> list[int]:
        """Where the units of a group stand on an axis, unit after unit."""
        places = (self.group_of[labels] == index).nonzero()[:, 0]
        found: list[int] = places[self.unit_of[labels[places]].argsort(stable=True)].tolist()
        return found

    def _writer(self, atom: int) -> str:
        return [writer for start, writer in self.found.units.writers if start <= atom][-1] or ""

    def _check_fixed(self) -> None:
        for group in self.groups.values():
            for axis in group.axes if group.fixed in ("input", "output") else ():
                held = len(axis.entries) if axis.entries is not None else 0
                if axis.entries is not None and held != group.size * axis.taps:
                    raise TraceError(f"only some of the {group.fixed}'s units are on {axis.tensor!r}; unknown here.")

    def structure(self) -> None:
        """Blocks, which of them are tied, and what is normalised as a whole."""
        tied: list[set[str | tuple[int, ...]]] = []
        for tie in self.found.ties:
            names = {self._tied(tie, member) for member in tie.members}
            touching = [one for one in tied if one & names]
            tied = [one for one in tied if not one & names] + [names.union(*touching)]
        for names in tied:
            held = [name for name in self.groups if name in names]
            for name in held:
                self.groups[name] = replace(self.groups[name], tied=held[0])
        for labels in self.found.whole:
            for index in torch.unique(self.group_of[self.found.units.find(labels)]).tolist():
                name = self.names[index] if index >= 0 else ""
                if name:
                    self.groups[name] = replace(self.groups[name], whole=True)

    def _tied(self, tie: Tie, member: Tensor) -> str | tuple[int, ...]:
        """The group that a tie holds, or units of none, through which other ties hold it too."""
        labels = self.found.units.find(member)
        if int(self.group_of[labels].max()) >= 0:
            return self._blocked(tie, member)
        return tuple(labels.flatten().tolist())

    def _blocked(self, tie: Tie, member: Tensor) -> str:
        """Lay a group out in blocks."""
        labels = self.found.units.find(member)
        indices = torch.unique(self.group_of[labels]).tolist()
        group = self.groups[self.names[indices[0]]]
        if len(indices) > 1 or self.unit_of[labels].flatten().tolist() != list(range(group.size)):
            raise TraceError(
                f"layer {tie.layer!r} divides units of {' and '.join(repr(self.names[i]) for i in indices)} into "
                f"{len(member)} blocks that do not follow their order{code_of(tie.node)}; unknown here."
            )
        if group.blocks not in (1, len(member)):
            raise TraceError(
                f"layer {tie.layer!r} divides units of {group.name!r} into {len(member)} blocks, another layer into "
                f"{group.blocks}{code_of(tie.node)}; blocks within blocks are unknown here."
            )
        self.groups[group.name] = replace(group, blocks=len(member))
        return group.name

    def stiffen(self, joins: dict[str, Join], layers: list[Layer], loose: tuple[str, ...]) -> None:
        """Note which groups cannot grow, and why."""
        reasons: dict[str, str] = {}
        for labels, reason in [*self.found.rigid, *self.found.ordered]:
            indices = torch.unique(self.group_of[self.found.units.find(labels)]).tolist()
            reasons |= {self.names[index]: reason for index in indices if index >= 0}
        for join in joins.values():
            writer = next((layer.name for layer in layers if layer.outputs == join.name), None)
            for name, _ in join.parts:
                if writer is not None:
                    reasons[name] = f"layer {writer!r} writes units of several groups"
                elif not join.ordered:
                    reasons[name] = f"{join.name} mixes the order of its units"
                elif self.groups[name].whole:
                    reasons[name] = "it is normalised together with other groups"
        if loose:
            reasons = dict.fromkeys(self.groups, f"parameter {loose[0]!r} belongs to no unit")
        for name, reason in reasons.items():
            label = self.groups[name].tied
            for other in [one for one in self.groups.values() if one.name == name or (label and one.tied == label)]:
                self.groups[other.name] = replace(other, rigid=reason)

    def carry(self) -> dict[str, int]:
        """Note the values that carry the units of one group; returns the axis of each."""
        dims: dict[str, int] = {}
        nodes: dict[str, list[str]] = {name: [] for name in self.groups}
        for node, value in self.found.values.items():
            labels = self.found.units.value(value.labels).labels
            varying = [dim for dim, size in enumerate(labels.shape) if size > 1]
            if value.free or len(varying) > 1:
                continue
            flat = labels.flatten()
            index = int(self.group_of[flat[0]])
            if index < 0 or bool((self.group_of[flat] != index).any()):
                continue
            name = self.names[index]
            if self.unit_of[flat].tolist() == list(range(self.groups[name].size)):
                rank = labels.dim()
                dims[node.name] = varying[0] if varying else (1 if rank == 4 else rank - 1)
                nodes[name].append(node.name)
        for name, found in nodes.items():
            self.groups[name] = replace(self.groups[name], nodes=tuple(found))
        return dims


class _Joins:
    """Names for what stands on an axis: a group, or several."""

    def __init__(self, groups: _Groups) -> None:
        self.groups = groups
        self.joins: dict[str, Join] = {}
        self._known: dict[object, str] = {}

    def name(self, labels: Tensor, reader: str) -> tuple[str, int]:
        """Name of the group or join on an axis, and the entries of each place there, as flattening makes them.

        Raises:
            TraceError: Where nothing has written units of the axis.
        """
        labels = self.groups.found.units.find(labels)
        indices = dict.fromkeys(self.groups.group_of[labels].tolist())
        if -1 in indices:
            raise TraceError(f"layer {reader!r} reads units that no layer has written; unknown here.")
        places = {self.groups.names[i]: self.groups.places(labels, i) for i in indices}
        taps = {len(found) // self.groups.groups[name].size for name, found in places.items()}
        wide = taps.pop() if len(taps) == 1 else 1
        if any(found != [one - one % wide + i % wide for i, one in enumerate(found)] for found in places.values()):
            wide = 1  # not one run of entries a unit: they stand apart on the axis
        units = {name: tuple(found[i] // wide for i in range(0, len(found), wide)) for name, found in places.items()}
        first = next(iter(units))
        if len(units) == 1 and units[first] == tuple(range(self.groups.groups[first].size)):
            return first, wide
        key = tuple(units.items())
        if key not in self._known:
            self._known[key] = f"what {reader} reads"
            self.joins[self._known[key]] = Join(self._known[key], key)
        return self._known[key], wide


def _parameter_axes(found: Records) -> Iterator[FoundAxis]:
    """Axes of the network's own tensors on which units of layers stand."""
    written = torch.zeros(len(found.units.parent), dtype=torch.bool)
    ends = [start for start, _ in found.units.writers[1:]] + [len(found.units.parent)]
    for (start, writer), end in zip(found.units.writers, ends, strict=True):
        if writer is not None:
            written[found.units.find(torch.arange(start, end))] = True
    for name, labels in found.parameters.items():
        labels = found.units.value(labels).labels
        varying = [dim for dim, size in enumerate(labels.shape) if size > 1]
        if not bool(written[labels].any()):
            continue
        if len(varying) > 1 or not bool(written[labels].all()):
            raise TraceError(f"parameter {name!r} holds units on several axes; unknown here.")
        dim = varying[0] if varying else 0
        yield FoundAxis(name, dim, labels.flatten())
