"""Sources: trained networks that go into a merge, from whatever file they come, or from memory."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from project.errors import CheckpointError, ConfigurationError
from project.models import (
    Architecture,
    Description,
    LabelSpace,
    Named,
    Preprocessing,
    Weights,
    architecture_of,
    build_network,
    read_weights,
    written_out,
)
from project.models.custom import count_logits
from project.models.network import built_as
from project.models.reading.choosing import Headless, Which
from project.models.reading.folder import name_of_place
from project.models.reading.sound import check_varied, sound_state, unusable_kind
from project.moments import network_hash
from project.student.build import Student
from project.student.file import build_student, is_student, original_architecture
from project.symmetry import Spec, trace

WRAPPERS = (DataParallel, DistributedDataParallel)


@dataclass(frozen=True, eq=False)
class Source:
    """A trained network and what is known of it.

    Args:
        name: Short name for tables.
        network: Plain layers, in eval mode.
        description: Architecture, classes and preprocessing, as far as its file tells.
        sha256: Hash of its file; of its tensors, where it has none.
        path: Its file; None for a network in memory.
    """

    name: str
    network: nn.Module
    description: Description
    sha256: str
    path: Path | None = None

    @property
    def origin(self) -> str:
        """What messages call it: its file, else its name."""
        return f"{self.name} (in memory)" if self.path is None else str(self.path)

    @property
    def architecture(self) -> Architecture:
        """What it was built as; a merged source keeps its architecture's name though its widths differ."""
        return cast(Architecture, self.description.architecture)

    @cached_property
    def logits(self) -> int:
        """Number of logits, whatever its architecture was built with."""
        return count_logits(self.network)


def load_source(
    path: str | Path,
    name: str | None = None,
    architecture: Named | None = None,
    arguments: Mapping[str, Any] | None = None,
    which: Which | None = None,
    head: Headless | None = None,
) -> Source:
    """Read a source: a Lightning checkpoint, a state dict, a safetensors file, or a student of an earlier merge.

    Args:
        path: The file, or a folder that holds it, see :func:`~project.models.reading.folder.weights_file`.
        name: Name for tables; default: the file's stem, or the folder's name.
        architecture: The network, its name, the dotted path, class or function that builds it, or a network to copy;
            default: what the file says, else what its shapes tell.
        arguments: What to build it with; default: what the file says.
        which: Of a file that holds both, the averaged weights (``ema``, the default) or the others (``raw``).
        head: ``none`` takes the trunk alone, whose logits are its pooled values.

    Raises:
        CheckpointError: If the file cannot be read or does not fit the architecture.
        ConfigurationError: If the architecture cannot be built, or is code that the file names and the user does not.
    """
    return read_source(read_weights(path, which, head), name or name_of_place(Path(path)), architecture, arguments)


def read_source(
    weights: Weights,
    name: str | None = None,
    architecture: Named | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Source:
    """A source from what was read of its file; see :func:`load_source`."""
    name = name or weights.path.stem
    check_varied(weights.state_dict, str(weights.path), CheckpointError)
    if is_student(weights):
        student = build_student(weights, architecture, arguments)
        return Source(name, _dense(student, str(weights.path)), _described(student), weights.sha256, weights.path)
    network, weights = build_network(weights, architecture, arguments)
    description = Description(weights.architecture, weights.label_space, weights.preprocessing, weights.class_names)
    return Source(name, written_out(network), description, weights.sha256, weights.path)


def source_of(
    network: nn.Module,
    name: str,
    architecture: Named | None = None,
    arguments: Mapping[str, Any] | None = None,
    labels: LabelSpace | None = None,
    preprocessing: Preprocessing | None = None,
) -> Source:
    """A source from a network in memory, which stays as it is: the source is a frozen copy in float32 on the CPU.

    Args:
        network: Takes a batch of pictures and returns logits; in whatever mode, and on whatever device.
        name: Name for tables and messages.
        architecture: The name, dotted path, class or function that builds it; default: a name, where a build of that
            name is the same, else its class. A student remembers it, to be loaded by it.
        arguments: What it was built with, which a student remembers, too.
        labels: What its logits mean, where that is known.
        preprocessing: What its pictures must go through, where that is known.

    Raises:
        ConfigurationError: If it is no network, has tensors without values, on several devices, of another kind than
            floating point, or not finite, has hooks, or is not what ``architecture`` and ``arguments`` build.
    """
    while isinstance(network, WRAPPERS) or hasattr(network, "_orig_mod"):  # the latter of torch.compile
        network = cast(nn.Module, network.module if isinstance(network, WRAPPERS) else network._orig_mod)
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"{name} is a {type(network).__name__}; allowed: a file or an nn.Module.")
    _check_tensors(network, name)
    if isinstance(network, Student):
        description, network = _described(network), _dense(network, name)
    else:
        found = _settled(network, name, architecture, arguments)
        description = Description(found, labels, preprocessing)
    plain = written_out(_frozen_copy(network, name))
    return Source(name, plain, description, network_hash(plain))


def _settled(
    network: nn.Module, name: str, architecture: Named | None, arguments: Mapping[str, Any] | None
) -> Architecture:
    """What a network in memory is, as the user says, if it is that."""
    if architecture is None or isinstance(architecture, nn.Module):
        if arguments is None:
            return architecture_of(network)
        architecture = type(network)
    return built_as(network, name, architecture, arguments)


def _check_tensors(network: nn.Module, name: str) -> None:
    """Refuse a network whose tensors cannot be merged, or that does more than its modules say."""
    tensors: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    if not tensors:
        raise ConfigurationError(f"{name} is a {type(network).__name__} without weights.")
    for tensor_name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ConfigurationError(f"{name} holds {tensor_name!r}, which has no shape yet; run it on a picture once.")
        if kind := unusable_kind(tensor):
            raise ConfigurationError(f"{name} holds {tensor_name!r}, which is {kind}; allowed: plain tensors.")
    devices = {str(tensor.device): tensor_name for tensor_name, tensor in tensors.items()}
    if len(devices) > 1:
        where = ", ".join(f"{tensor_name} on {device}" for device, tensor_name in devices.items())
        raise ConfigurationError(f"{name} is on several devices ({where}); move it to one.")
    for tensor_name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigurationError(f"{name} holds {tensor_name!r} of type {kind}; allowed: floating point.")
    sound_state(tensors, name, ConfigurationError)
    check_varied(tensors, name, ConfigurationError)
    for module_name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            where = f"layer {module_name!r}" if module_name else "itself"
            raise ConfigurationError(f"{name} has forward hooks on {where}, which no student would have; remove them.")


def _frozen_copy(network: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode, in float32 and on the CPU, that takes no gradients."""
    copies: dict[int, Any] = {id(one): nn.Parameter(_plain(one), requires_grad=False) for one in network.parameters()}
    copies |= {id(one): _plain(one) for one in network.buffers()}
    try:
        return copy.deepcopy(network, copies).eval()
    except Exception as error:  # whatever the user's attributes may raise
        raise ConfigurationError(f"{name} cannot be copied: {error}.") from error


def _plain(tensor: Tensor) -> Tensor:
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()


def _described(student: Student) -> Description:
    return Description(original_architecture(student), student.labels, student.preprocessing)


def _dense(student: Student, origin: str) -> nn.Module:
    try:
        return student.dense().eval()
    except CheckpointError as error:
        raise CheckpointError(f"{origin} cannot be a source: {error}") from error


def common_spec(sources: Sequence[Source], picture: tuple[int, int, int]) -> Spec:
    """The spec that all sources share; only the number of their logits may differ.

    Raises:
        ConfigurationError: Where two sources are not of the same architecture and widths.
    """
    specs = [trace(source.network, picture) for source in sources]
    first = specs[0]
    for source, spec in zip(sources[1:], specs[1:], strict=True):
        mine = {name: size for name, size in first.sizes.items() if name != first.output.name}
        theirs = {name: size for name, size in spec.sizes.items() if name != spec.output.name}
        same = (first.layers, first.norms, first.parameters) == (spec.layers, spec.norms, spec.parameters)
        if same and mine == theirs:
            continue
        raise ConfigurationError(
            f"sources must be of one architecture, but {sources[0].origin} is {_describe(sources[0], first)} "
            f"and {source.origin} is {_describe(source, spec)}."
        )
    return first


def _describe(source: Source, spec: Spec) -> str:
    widths = [group.size for group in spec.free]
    return f"{source.architecture.name} ({len(spec.layers)} layers, widths {min(widths)} to {max(widths)})"
