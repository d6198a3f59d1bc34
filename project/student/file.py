"""Student files: one file that rebuilds the student without its sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.errors import CheckpointError, ConfigurationError, MergeError, PleasError
from project.models import Architecture, Named, Weights, read_weights, written_out
from project.models.architecture import plain_arguments
from project.models.custom import dotted_path
from project.models.description import DESCRIPTION, ENTRY, Description
from project.models.network import load_weights, name_of, on_cpu, sized_like, untrained_network
from project.models.preprocessing import LARGEST_SIDE
from project.models.reading.packing import write_packed
from project.runtime.saving import atomic_save, check_target
from project.student.build import Student, blank_network, check_finite
from project.student.masked import MaskedStudent
from project.student.mixture import MixtureStudent
from project.symmetry import Spec, trace

FORMAT = "pleas-student"
VERSION = 2
VERSIONS = (1, VERSION)
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
KINDS: dict[str, type[MaskedStudent] | type[MixtureStudent]] = {"masked": MaskedStudent, "mixture": MixtureStudent}


def save_student(student: Student, path: str | Path) -> None:
    """Write a student to a file, atomically, that is read without running code.

    Args:
        student: Of an architecture with a name, or of a class that its file is to name.
        path: The file: ``.ckpt``, ``.pt`` and ``.pth`` are PyTorch's, which ``torch.load(weights_only=True)`` reads;
            anything else is safetensors, with all that is no tensor as JSON under ``pleas`` in its metadata.

    Raises:
        CheckpointError: If nothing tells what the student's network was before it was merged, or the student holds
            values that are not finite.
        ConfigurationError: If the path is a folder, or below a file.
    """
    path = Path(path)
    check_target(path, f"path is {path}")
    try:
        entries = student_entries(student)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    tensors = {name: tensor.detach().cpu() for name, tensor in student.network.state_dict().items()}
    if path.suffix in TORCH_SUFFIXES:
        atomic_save({**entries, "state_dict": tensors}, path)
    else:
        described = {DESCRIPTION if name == ENTRY else name: value for name, value in entries.items()}
        write_packed(ENTRY, described, tensors, path)


def student_entries(student: Student) -> dict[str, Any]:
    """What a file must hold beside the network's tensors to be a student: plain values and tensors.

    Raises:
        CheckpointError: If nothing tells what the student's network was before it was merged, or the student holds
            values that are not finite.
    """
    try:
        check_finite(student)
    except MergeError as error:
        raise CheckpointError(f"the student's {error}") from error
    entries = {
        "format": FORMAT,
        "version": VERSION,
        **Description(original_architecture(student), student.labels, student.preprocessing).to_entries(),
        "unit_maps": {name: units.members for name, units in student.group_maps.items()},
        "picture": list(student.spec.picture),
        "lineage": student.lineage,
    }
    if student.zipped:
        entries["zipped"] = True
    entries |= kind_entries(student)
    if student.gate is not None:
        entries["gate"] = {name: tensor.detach().cpu() for name, tensor in student.gate.state_dict().items()}
    if student.own_heads is not None:
        own = {name: tensor.detach().cpu() for name, tensor in student.own_heads.state_dict().items()}
        entries["own_heads"] = {"domains": list(student.own_domains), "guesses": student.guesses, **own}
    return entries


def original_architecture(student: Student) -> Architecture:
    """What a student's network was before it was merged: its architecture, else the class that its network still has.

    Raises:
        CheckpointError: If it has neither.
    """
    if student.architecture is not None:
        return student.architecture
    if isinstance(student.network, fx.GraphModule):
        raise CheckpointError(
            "its network was put together anew and does not tell its class; say what the sources were, "
            "student.architecture = project.models.Architecture(NAME, LOGITS), NAME a dotted path to what builds them."
        )
    return Architecture(dotted_path(student.network), student.labels.width)


def kind_entries(student: Student) -> dict[str, Any]:
    """What a student that is more than a plain network must hold beside its network's tensors, under its kind."""
    return {name: student.entries for name, kind in KINDS.items() if isinstance(student, kind)}


def of_its_kind(student: Student, entries: Mapping[str, Any]) -> Student:
    """A plain student as the kind that some entries tell of, if any; its network's tensors must be loaded afterwards.

    Args:
        student: Of the same unit maps.
        entries: With what :func:`kind_entries` gave.
    """
    for name, kind in KINDS.items():
        if name in entries:
            return kind.of(student, entries[name])
    return student


def is_student(weights: Weights) -> bool:
    """Whether what was read from a file is a student."""
    return weights.entries.get("format") == FORMAT


def load_student(
    path: str | Path, architecture: Named | None = None, arguments: Mapping[str, Any] | None = None
) -> Student:
    """Rebuild a student from its file.

    Args:
        path: A file written by :func:`save_student`.
        architecture: For a student of a network of your own: the dotted path, the class or the function that its file
            names, or a network to copy. A file alone never chooses which code runs.
        arguments: Keyword arguments of the class or function; default: those that the file holds.

    Returns:
        The student in eval mode: call it on a batch of pictures for logits; ``labels`` names its columns.

    Raises:
        CheckpointError: If the file is missing, damaged or no student.
        ConfigurationError: If its network is your own code, and ``architecture`` does not name it.
    """
    return build_student(read_weights(path), architecture, arguments)


def build_student(
    weights: Weights, architecture: Named | None = None, arguments: Mapping[str, Any] | None = None
) -> Student:
    """Rebuild a student from what was read of its file; see :func:`load_student`."""
    content, path = weights.entries, weights.path
    if not is_student(weights):
        raise CheckpointError(f"{path} holds weights, but no student; students are written by 'pleas merge'.")
    if content.get("version") not in VERSIONS:
        readable = " and ".join(map(str, VERSIONS))
        raise CheckpointError(
            f"{path} is a student of version {content.get('version')}; this release reads {readable}."
        )
    labels = weights.label_space
    if weights.architecture is None or labels is None:
        raise CheckpointError(f"{path} is a student without architecture or classes.")
    try:
        plain, built = _plain_network(weights, weights.architecture, architecture, arguments)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is a student whose {error}") from error
    try:
        maps = {name: UnitMap.sorted(members) for name, members in content["unit_maps"].items()}
        lineage = content["lineage"]
        if not isinstance(lineage, dict):
            raise CheckpointError(f"lineage is a {type(lineage).__name__}; allowed: a mapping.")
        picture = _picture(content["picture"])
        with sized_like(weights.state_dict):
            network, spec = _resized(plain, maps, picture, built.custom and "zipped" not in content)
    except (PleasError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is a student with an entry that is missing or does not fit its architecture: {error}"
        ) from error
    if (rows := maps[spec.output.name].units) != labels.width and "masked" not in content:
        raise CheckpointError(f"{path} is a student of {rows} logits, but of {labels.width} classes.")
    student = Student(network, spec, maps, labels, built, weights.preprocessing, lineage).eval()
    student.zipped = "zipped" in content
    if "masked" in content:
        _check_masks(student, content["masked"], str(path))
    try:
        with sized_like(weights.state_dict):
            student = of_its_kind(student, content)
    except PleasError as error:
        raise CheckpointError(f"{path} is a student that cannot be put together: {error}") from error
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: order, memory
        raise CheckpointError(f"{path} is a student with layers that are not its architecture's: {error!r}.") from error
    load_weights(student.network, weights)
    if "own_heads" in content:
        _load_own_heads(student, content["own_heads"], str(path))
    if "gate" in content:
        _load_gate(student, content["gate"], str(path))
    return student


def _plain_network(
    weights: Weights, known: Architecture, architecture: Named | None, arguments: Mapping[str, Any] | None
) -> tuple[nn.Module, Architecture]:
    """The network that a student was made of, before its widths changed; what the file says must be what the user says.

    Raises:
        ConfigurationError: If it is not, or is code that the user has not named.
    """
    if known.custom:
        return untrained_network(weights, architecture, arguments)
    if architecture is not None and (named := name_of(architecture)) != known.name:
        raise ConfigurationError(f"{weights.path} is a student of {known.name}, but architecture is {named}.")
    if arguments is not None and (given := plain_arguments(arguments)) != (known.arguments or {}):
        raise ConfigurationError(
            f"arguments is {given}, but {weights.path} is a student of {known.name} with {dict(known.arguments or {})}."
        )
    return untrained_network(weights)


def _picture(given: Any) -> tuple[int, int, int]:
    """The shape of a picture, as a file says it."""
    shape = tuple(given)
    if len(shape) != 3 or any(type(side) is not int or not 1 <= side <= LARGEST_SIDE for side in shape):
        raise CheckpointError(f"picture is {given}; allowed: channels, height and width, up to {LARGEST_SIDE}.")
    return shape


def _check_masks(student: Student, masked: dict[str, Any], path: str) -> None:
    """Refuse what a file holds of the networks of all sources, where it does not fit the student."""
    count, state = student.maps[student.spec.input.name].sources, student.network.state_dict()
    try:
        size = sum(state[name].numel() for name in masked["names"])
        expected = {"vector": (size,), "masks": (count, -(-size // 8)), "scales": (count,)}
        fits = {name: tuple(masked[name].shape) for name in expected} == expected
        fits &= all(values.shape == (count, *state[name].shape) for name, values in masked["kept"].items())
        fits &= all(0 <= owner < count for owner in masked["owners"].values())
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is a student with masks of which something is missing: {error!r}.") from error
    if not fits:
        raise CheckpointError(f"{path} is a student with masks that do not fit its {count} sources.")


def _load_gate(student: Student, gate: dict[str, Tensor], path: str) -> None:
    """Give a student its gate, if it is one for its heads and what they read."""
    count = len(student.own_domains or student.labels.heads)
    expected = {"weight": (count, student.features), "bias": (count,)}
    if {name: tuple(tensor.shape) for name, tensor in gate.items()} != expected:
        raise CheckpointError(f"{path} is a student with a gate that does not fit its {count} heads.")
    student.set_gate(**gate)


def _load_own_heads(student: Student, own: Mapping[str, Any], path: str) -> None:
    """Give a student its domains' own heads, if they are of its domains, its classes, and what its heads read."""
    try:
        domains, guesses, weight, bias = tuple(own["domains"]), own["guesses"], own["weight"], own["bias"]
        rows = len(domains) * student.labels.width
        fits = weight.shape == (rows, student.features) and bias.shape == (rows,) and type(guesses) is bool
        fits = fits and student.labels.mode == "shared" and set(domains) <= set(student.labels.domains)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is a student with heads of domains that are incomplete: {error!r}.") from error
    if not fits or len(set(domains)) < max(2, len(domains)):
        raise CheckpointError(f"{path} is a student with heads of domains that do not fit its classes and features.")
    heads = torch.cat([weight, bias[:, None]], 1).view(len(domains), -1, student.features + 1)
    student.set_own_heads(domains, heads, guesses)


def _resized(
    plain: nn.Module, maps: dict[str, UnitMap], picture: tuple[int, int, int], whole: bool
) -> tuple[nn.Module, Spec]:
    """The network in its student's widths, its values not set; and the spec of the one before.

    Args:
        plain: The network before it was merged.
        maps: Unit map of every group.
        picture: Shape of the pictures.
        whole: Whether the unit maps must hold all units of the network, whose arguments the user may have mistaken.

    Raises:
        CheckpointError: If the unit maps are of sources with other widths.
    """
    plain = written_out(plain)
    device = next(iter(plain.state_dict().values())).device
    spec = trace(plain, picture)
    with torch.device(device), torch.random.fork_rng(devices=[]):
        for group in spec.free:
            units = int(maps[group.name].members.max()) + 1
            if whole and units < group.size:  # sources that are students themselves may have more
                raise CheckpointError(
                    f"its sources have {units} units in {group.name!r}, where the architecture has {group.size}."
                )
        network = blank_network(plain, spec, maps)
    return on_cpu(network), spec
