"""Reading files of weights: Lightning checkpoints, plain PyTorch files and safetensors."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.errors import CheckpointError
from project.models.description import DESCRIPTION, ENTRY, Description
from project.models.reading.archive import Content, Opened, read_content
from project.models.reading.inert import DamagedError, StandIn, Unusable, module_state
from project.models.reading.packing import unpacked
from project.models.reading.sound import sound_state
from project.runtime import tell

WRAPPERS = ("network.", "module.", "model.", "_orig_mod.")  # FineTuneModule, DataParallel, custom, torch.compile
HOLDERS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state", "weights")
"""Keys under which scripts keep the state dict, or the network itself, beside what else they save."""
NAMES_SHOWN = 4
NOT_TAKEN = frozenset(
    f"{owner}{entry}" for owner in ("", "datamodule_") for entry in ("hyper_parameters", "hparams_name", "hparams_type")
)
"""What a checkpoint says of the arguments of those who wrote it: nobody takes them from there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights(Description):
    """Tensors read from a file, and what the file says about them.

    Args:
        state_dict: Tensors on the CPU, floating ones in float32, named as in the bare network. They may be the file's
            own bytes: who changes them copies them first.
        path: The file.
        entries: What else stands in the file beside the tensors.
        opened: The file, as it was when the tensors were read.
    """

    state_dict: dict[str, Tensor]
    path: Path
    entries: Mapping[str, Any]
    opened: Opened

    @property
    def sha256(self) -> str:
        """Hash of the file's content, in hexadecimal."""
        return self.opened.sha256


class Entries(Mapping[str, Any]):
    """What stands in a file beside its weights, its tensors being made when they are asked for.

    Args:
        content: The file's content, a mapping.
    """

    def __init__(self, content: Content) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        """What stands under a key."""
        return self.content.plain(self.content.tree[key])

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self.content.tree)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.content.tree)


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights, whatever its suffix, without importing or calling anything that it names.

    Objects of classes that are not torch's tensors, such as the arguments of a training script, are passed over; a
    message says of which. A whole pickled network gives its state dict.

    Args:
        path: A Lightning checkpoint, a PyTorch file with a state dict or a network (bare, or under one of ``HOLDERS``),
            or a safetensors file. A prefix that all tensors share, such as ``module.``, is taken off.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, of another kind, or holds values that no weights
            can have.
    """
    path = Path(path)
    content = read_content(path)
    tensors, entries = _split(content)
    state_dict = _clean(content, tensors)
    description = _described(path, entries)
    if content.passed:
        more = len(content.passed) - NAMES_SHOWN
        names = ", ".join(content.passed[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        tell(f"{path}: its tensors are taken; passed over, and not imported, is what it holds of {names}")
    return Weights(state_dict=state_dict, path=path, entries=entries, opened=content.opened, **vars(description))


def read_description(path: str | Path) -> Description:
    """Read what a file of weights says about itself, and no tensors; see :func:`read_weights`.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another kind.
    """
    return _described(Path(path), _split(read_content(path))[1])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to go on from or to score, without importing or calling anything that it names.

    What it says of the arguments of its writers is left out: what the user says holds.

    Args:
        path: The file.

    Returns:
        Plain values and tensors on the CPU, with memory of their own.

    Raises:
        CheckpointError: If there is no such file, it is damaged or no mapping, or holds objects in what is taken.
    """
    content = read_content(path, copied=True)
    if not isinstance(content.tree, dict):
        raise CheckpointError(f"{path} holds {_kind(content.tree)}, not a checkpoint.")
    taken = {name: content.plain(value) for name, value in content.tree.items() if name not in NOT_TAKEN}
    for name, value in taken.items():
        if (found := _foreign(value)) is not None:
            raise CheckpointError(
                f"{path} holds {found} in {name!r}; allowed in a checkpoint to go on from: tensors and plain values, "
                f"since objects are not imported from files."
            )
    return taken


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        CheckpointError: If there is no such file.
    """
    return Opened(Path(path)).sha256


def _described(path: Path, entries: Mapping[str, Any]) -> Description:
    try:
        return Description.from_entries(entries)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _split(content: Content) -> tuple[Mapping[Any, Any], Mapping[str, Any]]:
    """Tensors, as they lie in the content's tree, and the rest of a file."""
    tree, path = content.tree, content.opened.path
    if content.metadata:
        return _split_packed(content)
    try:
        if (state := module_state(tree)) is not None:
            return state, {}
        if not isinstance(tree, dict):
            raise CheckpointError(f"{path} holds {_kind(tree)}, not a state dict.")
        for key in HOLDERS:
            if isinstance(tree.get(key), dict):
                return tree[key], Entries(content)
            if (state := module_state(tree.get(key))) is not None:
                return state, Entries(content)
    except DamagedError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}.") from error
    return tree, {}


def _split_packed(content: Content) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Metadata of safetensors are strings; ours are JSON: a description, or all that a student holds."""
    tensors, path = content.tree, content.opened.path
    if ENTRY not in content.metadata:
        return tensors, {}
    try:
        packed = json.loads(content.metadata[ENTRY])
        if not isinstance(packed, dict) or "format" not in packed:
            return tensors, {ENTRY: packed}
        entries, rest = unpacked(packed, tensors)
    except (CheckpointError, ValueError, RecursionError) as error:  # ValueError: of JSON
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    return rest, {**entries, ENTRY: entries.get(DESCRIPTION, {})}


def _clean(content: Content, tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors in float32 and under their bare names, all of them such as weights can be."""
    path = content.opened.path
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    state_dict: dict[str, Tensor] = {}
    for name, held in tensors.items():
        value = held if isinstance(held, Unusable) else content.plain(held)
        if isinstance(value, Unusable):
            raise CheckpointError(f"{path} holds {name!r}, which is {value.kind}; allowed: plain tensors.")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a state dict: its entry {name!r} is {_kind(value)}.")
        state_dict[str(name)] = value
    state_dict = sound_state(state_dict, str(path), CheckpointError)
    return dict(zip(bare_names(state_dict), state_dict.values(), strict=True))


def _kind(value: object) -> str:
    """What a value is, as a sentence goes on behind ``holds``."""
    if isinstance(value, StandIn):
        return f"an object of {value.name or 'numpy'}"
    if isinstance(value, type) and issubclass(value, StandIn):
        return f"the name {value.name}"
    return f"a {type(value).__name__}"


def _foreign(value: object) -> str | None:
    """What else than plain values and tensors lies in a plain value; None if nothing."""
    if isinstance(value, Mapping):
        return next((found for part in value.items() for one in part if (found := _foreign(one))), None)
    if isinstance(value, list | tuple | set | frozenset):
        return next((found for one in value if (found := _foreign(one))), None)
    if isinstance(value, Tensor | str | bytes | bytearray | int | float | complex | torch.dtype | None):
        return None
    return f"a tensor that is {value.kind}" if isinstance(value, Unusable) else _kind(value)


def bare_names(names: Iterable[str]) -> list[str]:
    """Names of tensors without the prefixes that all of them share and that modules around a network put there."""
    found = list(names)
    while prefix := next((p for p in WRAPPERS if found and all(name.startswith(p) for name in found)), None):
        found = [name.removeprefix(prefix) for name in found]
    return found
