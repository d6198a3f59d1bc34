"""A student network from an architecture and its unit maps."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import nominal_macs, stored_bytes
from project.errors import MergeError
from project.models import Architecture, LabelSpace, MultiHead, Preprocessing
from project.models.probe import run_with_features
from project.student.joins import with_joins
from project.student.layers import dense_layer, load_matrix, student_layer
from project.student.norms import load_norm, student_norm
from project.student.start import joint_matrix, start_matrix
from project.symmetry import Spec, note_picture, remembered

Change = Callable[[Any], Any]
"""Makes the module, or the parameter, that replaces another."""


class Student(MultiHead):
    """A merged network that knows what it is made of.

    Args:
        network: The network itself; logits of all heads stand side by side, as the label space says.
        spec: Groups of the architecture.
        maps: Unit map of every group; those of axes that several groups share follow from them.
        architecture: What the network was before its widths changed; None for a module that has no name.
        labels: What the output columns mean.
        preprocessing: What its pictures must go through.
        lineage: Plain values that say where it comes from.
    """

    zipped = False
    """Whether its units may stand for several of one source, of which its unit maps then tell the number alone."""
    plain = True
    """Whether it is one network for all pictures, which can be refined and merged again."""

    def __init__(
        self,
        network: nn.Module,
        spec: Spec,
        maps: Mapping[str, UnitMap],
        labels: LabelSpace,
        architecture: Architecture | None = None,
        preprocessing: Preprocessing | None = None,
        lineage: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(labels)
        self.network = network
        self.spec = spec
        self.maps = with_joins(spec, maps)
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.lineage = dict(lineage or {})

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute the logits of all heads.

        Args:
            pictures: Shape (batch, 3, height, width).

        Returns:
            Shape (batch, columns of the label space).
        """
        return cast(Tensor, self.network(pictures))

    def outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of all heads, (batch, columns of the label space), and the features that they read."""
        return run_with_features(self.network, self.spec.head.name, pictures)

    @property
    def held(self) -> int:
        """Number of parameters held."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def bytes(self) -> int:
        """Of all parameters and buffers; a gate and heads beside it are left out, as it is everywhere."""
        return stored_bytes(
            {name: t for name, t in self.state_dict().items() if not name.startswith(("gate.", "own_heads."))}
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers on one picture, by the unit maps."""
        return nominal_macs(self.spec, self.maps)

    @property
    def features(self) -> int:
        """Number of features that the heads read, and a gate."""
        return self.maps[self.spec.head.inputs].units * self.spec.head.taps

    @torch.no_grad()
    def load_layer(self, name: str, matrix: Tensor) -> None:
        """Write one layer's weights.

        Args:
            name: Name of the layer.
            matrix: Shape (outputs, inputs · taps (+ 1 for the constant)).
        """
        layer = next(layer for layer in self.spec.layers if layer.name == name)
        weight, bias = (matrix[:, :-1], matrix[:, -1]) if layer.bias else (matrix, None)
        load_matrix(self.network.get_submodule(name), weight, bias)

    @property
    def group_maps(self) -> dict[str, UnitMap]:
        """Unit maps of the groups alone, from which all others follow."""
        return {name: self.maps[name] for name in self.spec.groups}

    @property
    def exact_norms(self) -> frozenset[str]:
        """Norms whose inputs are exactly those of one source: nothing before them is merged."""
        exact = exact_groups(self.spec, self.maps)
        return frozenset(norm.name for norm in self.spec.norms if exact.issuperset(self.spec.behind(norm.group)))

    def dense(self) -> nn.Module:
        """Make a plain network of the same function, zeros written out, which can be traced and merged again."""
        return _replaced(self.network, {layer.name: dense_layer for layer in self.spec.layers})


def exact_groups(spec: Spec, maps: Mapping[str, UnitMap]) -> frozenset[str]:
    """Find the groups in which every student unit does exactly what its one source's unit does, at the start point.

    Args:
        spec: Groups of the sources.
        maps: Unit map of every group.
    """
    single = {name: bool((maps[name].present.sum(1) == 1).all()) for name in spec.groups}
    exact = dict.fromkeys(spec.groups, True)
    for layer in spec.layers:
        known = all(exact[name] and (single[name] or name == spec.plain_input) for name in spec.behind(layer.inputs))
        for group in spec.parts(layer.outputs):
            exact[group] = exact[group] and known and single[group]
    return frozenset(name for name, holds in exact.items() if holds and name != spec.input.name)


def check_finite(student: Student) -> None:
    """Refuse a student that holds values which are not finite.

    Raises:
        MergeError: With the tensor, whose name says which layer it belongs to.
    """
    gate = {} if student.gate is None else {f"gate.{name}": one for name, one in student.gate.state_dict().items()}
    for name, tensor in {**student.state_dict(), **gate}.items():
        if tensor.is_floating_point() and tensor.numel():
            least, most = map(float, torch.aminmax(tensor.detach()))
            if not -math.inf < least <= most < math.inf:
                raise MergeError(f"{name.removeprefix('network.')!r} holds values that are not finite.")


def blank_network(network: nn.Module, spec: Spec, maps: Mapping[str, UnitMap]) -> nn.Module:
    """Copy a network with every layer and norm resized to its unit maps; its values are not set.

    Args:
        network: One source, or its architecture built anew; left unchanged.
        spec: Its spec.
        maps: Unit map of every group.
    """
    changes: dict[str, Change] = {}
    maps = with_joins(spec, maps)
    for layer in spec.layers:
        outputs, inputs = maps[layer.outputs], maps[layer.inputs]
        changes[layer.name] = partial(student_layer, outputs=outputs, inputs=inputs, taps=layer.taps)
    for norm in spec.norms:
        changes[norm.name] = partial(student_norm, units=maps[norm.group])
    result = _replaced(network, changes, copy.deepcopy)  # a module that never runs must not be shared with a source
    note_picture(result, spec.picture)
    for module in result.modules():
        module.__dict__ |= {name: {} for name in remembered(module)}
    for table in spec.parameters:
        shape = list(network.get_parameter(table.name).shape)
        shape[table.dim] = maps[table.group].units
        _set_parameter(result, table.name, network.get_parameter(table.name).new_empty(shape))
    return result


def _set_parameter(network: nn.Module, name: str, values: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, nn.Parameter(values))


def _replaced(network: nn.Module, changes: Mapping[str, Change], others: Change = lambda module: module) -> nn.Module:
    """Copy a module tree with some modules replaced.

    Args:
        network: Left as it is.
        changes: Path of a module -> what makes its replacement from it.
        others: What makes the other modules without replaced ones below them, and parameters; by default they are
            shared.
    """
    result = network.__class__.__new__(network.__class__)
    own = {name: None if weight is None else others(weight) for name, weight in network._parameters.items()}
    result.__dict__ = {**network.__dict__, "_modules": dict(network._modules), "_parameters": own}
    for name, child in network._modules.items():
        if child is None:
            continue
        if name in changes:
            result._modules[name] = changes[name](child)
            continue
        below = {
            path.removeprefix(f"{name}."): change for path, change in changes.items() if path.startswith(f"{name}.")
        }
        result._modules[name] = _replaced(child, below, others) if below else others(child)
    return result


@torch.no_grad()
def start_student(
    sources: Sequence[nn.Module],
    spec: Spec,
    maps: Mapping[str, UnitMap],
    labels: LabelSpace,
    architecture: Architecture | None = None,
    preprocessing: Preprocessing | None = None,
) -> Student:
    """Make the student before any fit: every layer at its start point W⁰, every norm at the mean of its sources.

    Args:
        sources: The sources, plain networks of one spec.
        spec: Their spec.
        maps: Unit map of every group.
        labels: What the logits mean.
        architecture: Their architecture.
        preprocessing: Their preprocessing.
    """
    network = blank_network(sources[0], spec, maps).to(next(sources[0].parameters()).device)
    student = Student(network, spec, maps, labels, architecture, preprocessing).eval()
    axes = student.maps
    for layer in spec.layers:
        matrices = joint_matrix(layer, [source.get_submodule(layer.name) for source in sources])
        student.load_layer(layer.name, start_matrix(layer, matrices, axes[layer.outputs], axes[layer.inputs]))
    for norm in spec.norms:
        modules = [source.get_submodule(norm.name) for source in sources]
        load_norm(network.get_submodule(norm.name), modules, axes[norm.group])
    for table in spec.parameters:
        tensors = [source.get_parameter(table.name).movedim(table.dim, 0).double() for source in sources]
        merged = axes[table.group].pull(torch.cat(tensors), axes[table.group].mean)
        network.get_parameter(table.name).copy_(merged.movedim(0, table.dim))
    for name in spec.loose:
        tensors = [source.get_parameter(name).double() for source in sources]
        network.get_parameter(name).copy_(torch.stack(tensors).mean(0))
    return student
