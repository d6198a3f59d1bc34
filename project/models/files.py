"""Reading files of weights: Lightning checkpoints, plain PyTorch files and safetensors."""

import hashlib
import json
import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from project.errors import CheckpointError
from project.models.description import DESCRIPTION, ENTRY, Description
from project.models.packing import unpacked

WRAPPERS = ("network.", "module.", "model.", "_orig_mod.")  # FineTuneModule, DataParallel, custom, torch.compile


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights(Description):
    """Tensors read from a file, and what the file says about them.

    Args:
        state_dict: Tensors on the CPU, floating ones in float32, named as in the bare network.
        sha256: Hash of the file's content.
        path: The file.
        entries: What else stands in the file beside the tensors.
    """

    state_dict: dict[str, Tensor]
    sha256: str
    path: Path
    entries: Mapping[str, Any]


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights, whatever its suffix, without running code that it may hold.

    Args:
        path: A Lightning checkpoint, a PyTorch file with a state dict (bare, or under ``state_dict`` or ``model``),
            or a safetensors file. A prefix that all tensors share, such as ``module.``, is taken off.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, of another kind, or holds values not finite.
    """
    path = Path(path)
    _require_file(path)
    tensors, entries = _read(path)
    try:
        description = Description.from_entries(entries)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Weights(
        state_dict=_clean(tensors, path), sha256=file_hash(path), path=path, entries=entries, **vars(description)
    )


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        CheckpointError: If there is no such file.
    """
    path = Path(path)
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        raise CheckpointError(f"The file of weights {path} is {what}.")


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Tensors and description entries; which kind of file it is, its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # First, since the length of a safetensors header, which it begins with, may begin as a pickle does.
        if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100_000_000:
            return _read_safetensors(path)
        if start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a bare pickle from before PyTorch 1.6
            return _split(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds objects other than tensors and plain values, which are not loaded since they "
            "can run code; save its state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError, json.JSONDecodeError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {reason}.") from error
    raise CheckpointError(f"{path} is not a file of weights, neither of PyTorch nor safetensors.")


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Metadata of safetensors are strings; ours are JSON: a description, or all that a student holds."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    if ENTRY not in metadata:
        return tensors, {}
    content = json.loads(metadata[ENTRY])
    if not isinstance(content, dict) or "format" not in content:
        return tensors, {ENTRY: content}
    try:
        entries, rest = unpacked(content, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    return rest, {**entries, ENTRY: entries.get(DESCRIPTION, {})}


def _split(content: Any, path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Tensors and the rest of a loaded PyTorch file."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return content[key], content
    return content, {}


def _clean(tensors: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors in float32 and under their bare names, none of them with values that are not finite."""
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    state_dict: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a state dict: its entry {name!r} is a {type(value).__name__}.")
        tensor = value.detach()
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise CheckpointError(f"{path} holds values in {name!r} that are not finite.")
        state_dict[str(name)] = tensor
    return dict(zip(bare_names(state_dict), state_dict.values(), strict=True))


def bare_names(names: Iterable[str]) -> list[str]:
    """Names of tensors without the prefixes that all of them share and that modules around a network put there."""
    found = list(names)
    while prefix := next((p for p in WRAPPERS if found and all(name.startswith(p) for name in found)), None):
        found = [name.removeprefix(prefix) for name in found]
    return found
