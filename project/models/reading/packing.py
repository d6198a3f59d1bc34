"""Plain values and tensors in one safetensors file: JSON in its metadata, in which every tensor has its place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from project.errors import CheckpointError
from project.runtime.saving import atomic_path

REFERENCE = "$tensor"  # {"$tensor": NAME} stands in the JSON where the tensor of that name belongs


def write_packed(key: str, entries: Mapping[str, Any], state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        key: Name of the one entry of its metadata.
        entries: Plain values, in mappings and lists, and tensors at any depth of them. The name of a tensor is its way
            there, such as ``unit_maps/conv1``. Mappings come back with strings as keys, tuples as lists.
        state_dict: Tensors to be kept under their own names.
        path: Where the file is to be.

    Raises:
        CheckpointError: If a value is neither plain nor a tensor.
        StorageError: If there is no room for it, or the disk fails.
    """
    tensors = dict(state_dict)
    try:
        text = json.dumps({name: _packed(value, name, tensors) for name, value in entries.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    seen: set[int] = set()
    with atomic_path(path, len(text) + sum(tensor.nbytes for tensor in tensors.values())) as draft:
        save_file({name: alone(tensor, seen) for name, tensor in tensors.items()}, draft, metadata={key: text})


def unpacked(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_packed` was given.

    Args:
        entries: The JSON, read.
        tensors: All tensors of the file.

    Returns:
        The entries with their tensors, and the tensors that stand nowhere in them.

    Raises:
        CheckpointError: If a tensor is missing.
    """
    placed: set[str] = set()
    found = {name: _unpacked(value, tensors, placed) for name, value in entries.items()}
    return found, {name: tensor for name, tensor in tensors.items() if name not in placed}


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {REFERENCE: name}
    if isinstance(value, Mapping):
        if REFERENCE in value:
            raise ValueError(f"{name} has the key {REFERENCE!r}, which stands for tensors")
        return {str(key): _packed(one, f"{name}/{key}", tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(one, f"{name}/{index}", tensors) for index, one in enumerate(value)]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor], placed: set[str]) -> Any:
    if isinstance(value, dict) and REFERENCE in value:
        name = value[REFERENCE]
        if not isinstance(name, str) or name not in tensors:
            raise CheckpointError(f"the tensor {name!r} is missing.")
        placed.add(name)
        return tensors[name]
    if isinstance(value, dict):
        return {key: _unpacked(one, tensors, placed) for key, one in value.items()}
    return [_unpacked(one, tensors, placed) for one in value] if isinstance(value, list) else value


def alone(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor on the CPU with memory that is all its own, as safetensors asks.

    Args:
        tensor: The tensor, copied only where it must be.
        seen: Where memory lies that others have; this tensor's is added.
    """
    tensor = tensor.detach().cpu()
    storage = tensor.untyped_storage()
    if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
        tensor = tensor.contiguous().clone()
        storage = tensor.untyped_storage()
    seen.add(storage.data_ptr())
    return tensor
