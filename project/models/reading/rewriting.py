"""A file of weights once more with other values: in the form, under the keys and in the types that it was read in."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from project.errors import CheckpointError
from project.models.description import ENTRY, Description
from project.models.reading.archive import shown
from project.models.reading.choosing import DEPTH, Held
from project.models.reading.files import Weights, kind_of
from project.models.reading.inert import module_state
from project.models.reading.packing import alone
from project.models.reading.stand_ins import Record
from project.runtime.saving import atomic_path, tensor_bytes

Names = Mapping[str, tuple[str, ...]]
TRAINING = re.compile(
    r"opt|(?:.*_)?optim(?:izers?)?(?:_.*)?|(?:.*_)?(?:lr_?)?schedulers?(?:_.*)?|(?:.*_)?scaler(?:_.*)?|amp|callbacks|loops"
    r"|(?:.*_)?rng(?:_.*)?|message_hub",
    re.IGNORECASE,
)
"""Keys at the top of a checkpoint under which training keeps what belongs to one course of it."""
PLAIN = bool | int | float | complex | str | bytes | bytearray | torch.dtype | None
NOTHING = object()
"""Stands for a value that cannot be written."""


class Form:
    """What a file of weights is made of, and which of its tensors are a network.

    Args:
        weights: What was read of it, the network's tensors under the names that they have here.

    Attributes:
        left_out: What of the file a new one has not, a phrase for each.

    Raises:
        CheckpointError: If no names in it lead to the network's tensors.
    """

    def __init__(self, weights: Weights) -> None:
        assert weights.content is not None
        self.weights, self.content = weights, weights.content
        self.held = weights.held if weights.held is not None else Held(self.content.tree)
        self.sets = self._sets()
        self.left_out: list[str] = []
        if not self.sets:
            raise CheckpointError(f"{weights.path} holds a network under keys that are no names; save its state dict.")

    def _sets(self) -> list[Names]:
        """Where the file has the network: once, or beside it once more as an average over training."""
        own = self.weights.state_dict
        known = [one for one in self.held.recognised() if one.names.keys() == own.keys()] or self.held.named(own)
        found = [names for names in (self.weights.names, *(one.names for one in known)) if names]
        return list({tuple(names.values()): names for names in found}.values())

    @property
    def safetensors(self) -> bool:
        """Whether it is a file of safetensors."""
        return self.content.form == "safetensors"

    def write(self, tensors: Mapping[str, Tensor], path: Path, description: Description | None = None) -> list[str]:
        """Write the file with other values for its network, whole or not at all.

        Everything else is as in the file, in plain containers, so that ``torch.load(weights_only=True)`` reads it; but
        for what belongs to one course of training, and objects of classes that are not torch's.

        Args:
            tensors: Under the names of the weights' tensors, and in their shapes; they are brought to the file's types.
            path: Where it is to be.
            description: What to say of the network, where the file says it in our way.

        Returns:
            What of the file the new one has not, a phrase for each.

        Raises:
            CheckpointError: If the file's type cannot hold a value.
            StorageError: If there is no room for it, or the disk fails.
        """
        tree = self._mapping(self.content.tree, "", dict(self._values(tensors)), {})
        entry = description.to_entries()[ENTRY] if description is not None else None
        if self.safetensors:
            metadata = dict(self.content.metadata)
            if entry is not None and ENTRY in metadata:
                metadata[ENTRY] = json.dumps(entry)
            seen: set[int] = set()
            flat = {name: alone(tensor, seen) for name, tensor in tree.items()}
            with atomic_path(path, tensor_bytes(flat)) as draft:
                save_file(flat, draft, metadata=metadata or None)
        else:
            if entry is not None and ENTRY in tree:
                tree[ENTRY] = entry
            with atomic_path(path, tensor_bytes(tree)) as draft, draft.open("xb") as file:
                torch.save(tree, file, _use_new_zipfile_serialization=self.content.form == "archive")
        return list(dict.fromkeys(self.left_out))

    def _values(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The values under all of the file's names, in its shapes and types."""
        for names in self.sets:
            for our, theirs in names.items():
                before = [self.content.plain(self.held.keys[name]) for name in theirs]
                parts = torch.split(tensors[our], [len(one) for one in before]) if len(before) > 1 else [tensors[our]]
                for name, old, new in zip(theirs, before, parts, strict=True):
                    value = torch.empty(old.shape, dtype=old.dtype).copy_(new)
                    if value.is_floating_point() and not bool(value.isfinite().all()):
                        kind = str(old.dtype).removeprefix("torch.")
                        raise CheckpointError(
                            f"{self.weights.path} has {name!r} in {kind}, which cannot hold the new values."
                        )
                    yield self.held.places[name], value

    def _mapping(
        self, value: Any, prefix: str, values: Mapping[str, Tensor], made: dict[int, Any], depth: int = 0
    ) -> dict[Any, Any]:
        """A mapping or module of the file as a dictionary with the new values; what lies in several places is one."""
        if id(value) in made:
            found: dict[Any, Any] = made[id(value)]
            return found
        made[id(value)] = found = {}
        state = module_state(value)
        if state is not None:
            self._leave(prefix.removesuffix(".") or "the network itself", f"{kind_of(value)}, but for its state dict")
        for key, one in (value if state is None else state).items():
            name = f"{prefix}{key}"
            if isinstance(key, str) and name in values:
                found[key] = values[name]
            elif not depth and not isinstance(one, Record | Tensor) and TRAINING.fullmatch(str(key)):
                self._leave(name, "of one course of training")
            elif module_state(one) == {}:  # a loss, say
                self._leave(name, kind_of(one))
            elif isinstance(key, str) and depth <= DEPTH and _holds(one):
                found[key] = self._mapping(one, f"{name}.", values, made, depth + 1)
            elif not isinstance(key, PLAIN):
                self._leave(name, f"under a key that is {kind_of(key)}")
            elif (kept := self._kept(self.content.plain(one), name)) is not NOTHING:
                found[key] = kept
        return found

    def _kept(self, value: Any, name: str) -> Any:
        """A plain value with memory of its own; a mark where it is none."""
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, Tensor):
            return value.clone(memory_format=torch.contiguous_format)
        if isinstance(value, dict):
            kept = {
                key: self._kept(one, ".".join((name, str(key)))) for key, one in value.items() if isinstance(key, PLAIN)
            }
            return {key: one for key, one in kept.items() if one is not NOTHING}
        if isinstance(value, list | tuple | set | frozenset):
            items = [self._kept(one, name) for one in value]
            kind = next((kind for kind in (list, tuple) if isinstance(value, kind)), set)
            return NOTHING if any(one is NOTHING for one in items) else kind(items)
        self._leave(name, kind_of(value))
        return NOTHING

    def _leave(self, name: str, why: str) -> None:
        self.left_out.append(f"{shown(name)} ({why})")


def _holds(value: Any) -> bool:
    """Whether a value is what tensors may lie in."""
    return isinstance(value, Mapping) or module_state(value) is not None
