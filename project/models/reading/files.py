"""Reading files of weights: Lightning checkpoints, plain PyTorch files and safetensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.errors import CheckpointError, one_of
from project.models.description import DESCRIPTION, ENTRY, Description
from project.models.reading.archive import Content, Opened, read_content, shown
from project.models.reading.choosing import HOLDERS, NOT_TAKEN, Choice, Headless, Held, Which, bare
from project.models.reading.classes import named
from project.models.reading.config import Said, said_beside, said_by_training
from project.models.reading.folder import weights_file
from project.models.reading.inert import module_state
from project.models.reading.packing import unpacked
from project.models.reading.sound import sound_state
from project.models.reading.stand_ins import DamagedError, StandIn, Unusable
from project.runtime import tell
from project.runtime.json_text import json_value

WRAPPERS = ("network.", "module.", "model.", "_orig_mod.")  # FineTuneModule, DataParallel, custom, torch.compile
NAMES_SHOWN = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights(Description):
    """Tensors read from a file, and what the file says about them.

    Args:
        state_dict: Tensors on the CPU, floating ones in float32, named as in the bare network. They may be the file's
            own bytes: who changes them copies them first.
        path: The file.
        entries: What else stands in the file beside the tensors.
        opened: The file, as it was when the tensors were read.
        content: What it holds, and ``held`` all tensors in it, where they may be taken in another way.
        which: Whether the user wants the averaged weights or the others.
        names: The file's names of the tensors, by ours, where a network was recognised.
        said: What a config.json beside it says, or the arguments of a training in it.
        headless: Whether it is a trunk, whose head here leaves the pooled values as they are.
    """

    state_dict: dict[str, Tensor]
    path: Path
    entries: Mapping[str, Any]
    opened: Opened
    content: Content | None = None
    held: Held | None = None
    which: Which | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: Said | None = None
    headless: bool = False

    @cached_property
    def remark(self) -> str:
        """What the file is, where its tensors are those of no network that is known by them; empty if nothing tells."""
        return (self.held.trunk() or "") if self.held is not None and not self.names else ""

    def fitted(self, names: Iterable[str], told: bool = True) -> "Weights":
        """The tensors that have the names of a network, wherever in the file; all where none have.

        Args:
            names: Of all tensors of the network, as :func:`bare_names` has them.
            told: Whether a message says what is taken and what is passed over.

        Raises:
            CheckpointError: If there are several kinds, and the user wants one that is not there.
        """
        names = list(names)
        counted = {name for name in names if not name.endswith("num_batches_tracked")}
        if (
            self.headless
            or self.held is None
            or self.content is None
            or not names
            or counted <= self.names.keys() <= set(names)
        ):
            return self
        found = self.held.named(names)
        if set(names) == self.state_dict.keys() and len(found) < 2 and self.which is None:
            return self
        if choice := _chosen(self.held, found, self.which, self.path, (), told):
            return replace(self, state_dict=_clean(self.content, _values(self.held, choice)), names=choice.names)
        return self

    @property
    def sha256(self) -> str:
        """Hash of the file's content, in hexadecimal."""
        return self.opened.sha256


class Parts(tuple[Any, ...]):
    """What a file holds of one tensor, one part after the other."""

    __slots__ = ()


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


def read_weights(path: str | Path, which: Which | None = None, head: Headless | None = None) -> Weights:
    """Read a file of weights, whatever its suffix, without importing or calling anything that it names.

    Objects of classes that are not torch's tensors, such as the arguments of a training script, are passed over; a
    message says of which. A whole pickled network gives its state dict. The largest group of tensors under one prefix
    that is a known network is taken, under our names, whoever wrote it; a message says what was passed over. Modules
    that others put around modules, such as ``module.`` and ``_orig_mod.``, go wherever they stand in a name.

    Args:
        path: A Lightning checkpoint, a PyTorch file with a state dict or a network (bare, or in mappings), a
            safetensors file, or a folder that holds one, see :func:`~project.models.reading.folder.weights_file`.
        which: Of a file with several, the averaged weights (``ema``) or the others (``raw``); by default the averaged.
        head: ``none`` takes the trunk of a ResNet alone, whatever head it has or lacks, with one that leaves the pooled
            values as they are.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, of another kind, or holds values that no weights
            can have, or not those that are asked for.
    """
    path = weights_file(Path(path))
    if head is not None:
        one_of(Headless, head=head)
    if which is not None:
        one_of(Which, weights=which)
    content = read_content(path)
    tensors, entries = _split(content)
    description, said = _described(path, entries, content.tree)
    objects = []
    if content.passed:
        more = len(content.passed) - NAMES_SHOWN
        names = ", ".join(content.passed[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        objects.append(f"passed over, and not imported, is what it holds of {names}")
    held: Held | None = None
    choice: Choice | None = None
    if "unit_maps" not in entries and (description.architecture is None or head is not None):
        try:
            held = Held(content.tree)
        except DamagedError as error:
            raise CheckpointError(f"{path} is truncated or damaged: {error}.") from error
        choice = _chosen(held, held.recognised() if head is None else held.trunks(), which, path, objects)
    if head is not None:
        if held is None or choice is None:
            raise CheckpointError(f"head is 'none', but {path} holds no trunk of a ResNet.")
        return _trunk(content, held, choice, Weights(
            state_dict={}, path=path, entries=entries, opened=content.opened, content=content, held=held, which=which,
            names=choice.names, headless=True, preprocessing=description.preprocessing,
        ))  # fmt: skip
    if choice is None and objects:
        tell(f"{path}: its tensors are taken; {objects[0]}")
    if held is not None and choice is not None:
        tensors = _values(held, choice)
    elif held is not None and tensors is content.tree and any(isinstance(one, dict) for one in tensors.values()):
        tensors = held.largest() or tensors
    state_dict = _clean(content, tensors)
    return Weights(
        state_dict=state_dict, path=path, entries=entries, opened=content.opened, content=content, held=held,
        which=which, names=choice.names if choice else {}, said=said, **vars(description),
    )  # fmt: skip


def _trunk(content: Content, held: Held, choice: Choice, weights: Weights) -> Weights:
    """A trunk with a head that leaves the pooled values as they are."""
    assert choice.architecture is not None
    state = _clean(content, _values(held, choice))
    return replace(weights, state_dict={**state, "fc.weight": torch.eye(choice.architecture.num_classes)})


def _chosen(
    held: Held, found: list[Choice], which: Which | None, path: Path, objects: Iterable[str], telling: bool = True
) -> Choice | None:
    """The averaged weights or the others, as asked for; and a line on what is taken and what is not."""
    if not found:
        return None
    averaged, raw = ([one for one in found if one.averaged is kind] for kind in (True, False))
    taken = {"ema": averaged, "raw": raw, None: averaged or raw}[which]
    if not taken:
        has = "averaged ones alone" if which == "raw" else "none that are averaged"
        raise CheckpointError(f"weights is {which!r}, but {path} holds {has}.")
    choice = taken[0]
    told = [*held.account(choice), *objects]
    if averaged and raw:
        kind, other = ("averaged", "raw") if choice.averaged else ("raw", "ema")
        told.insert(0, f"of its two sets the {kind} weights are taken; weights: {other} takes the others")
    if told and telling:
        where = f" under {choice.prefix.removesuffix('.')!r}" if choice.prefix else ""
        tell(f"{path}: its tensors{where} are taken; {'; '.join(told)}")
    return choice


def _values(held: Held, choice: Choice) -> dict[str, Any]:
    """The tensors of a choice, as they lie in the file."""
    return {our: Parts(held.keys[name] for name in names) for our, names in choice.names.items()}


def read_description(path: str | Path) -> Description:
    """Read what a file of weights says about itself, and no tensors; see :func:`read_weights`.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another kind.
    """
    path = weights_file(Path(path))
    content = read_content(path)
    return _described(path, _split(content)[1], content.tree)[0]


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
        raise CheckpointError(f"{path} holds {kind_of(content.tree)}, not a checkpoint.")
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


def _described(path: Path, entries: Mapping[str, Any], tree: Any) -> tuple[Description, Said | None]:
    """What a file says of itself, and where it does not, what stands beside it or its training says."""
    try:
        found = named(Description.from_entries(entries), tree)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if found.architecture is not None:
        return found, None
    said = said_beside(path) or said_by_training(path, tree)
    if said is None:
        return found, None
    known = replace(
        found,
        preprocessing=found.preprocessing or said.preprocessing,
        class_names=(found.class_names or said.class_names) if found.label_space is None else None,
    )
    return known, said


def _split(content: Content) -> tuple[Mapping[Any, Any], Mapping[str, Any]]:
    """Tensors, as they lie in the content's tree, and the rest of a file."""
    tree, path = content.tree, content.opened.path
    if content.metadata:
        return _split_packed(content)
    try:
        if (state := module_state(tree)) is not None:
            return state, {}
        if not isinstance(tree, dict):
            raise CheckpointError(f"{path} holds {kind_of(tree)}, not a state dict.")
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
        packed = json_value(content.metadata[ENTRY])
        if not isinstance(packed, dict) or "format" not in packed:
            return tensors, {ENTRY: packed}
        entries, rest = unpacked(packed, tensors)
    except (CheckpointError, ValueError) as error:  # ValueError: of JSON
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    return rest, {**entries, ENTRY: entries.get(DESCRIPTION, {})}


def _clean(content: Content, tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors in float32 and under their bare names, all of them such as weights can be."""
    path = content.opened.path
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    state_dict: dict[str, Tensor] = {}
    for name, held in tensors.items():
        value = _joined(content, held) if isinstance(held, Parts) else content.plain(held)
        if isinstance(value, Unusable):
            raise CheckpointError(f"{path} holds {name!r}, which is {value.kind}; allowed: plain tensors.")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a state dict: its entry {name!r} is {kind_of(value)}.")
        state_dict[str(name)] = value
    state_dict = sound_state(state_dict, str(path), CheckpointError)
    return dict(zip(bare_names(state_dict), state_dict.values(), strict=True))


def _joined(content: Content, parts: Parts) -> Any:
    """One tensor of those that it was written as."""
    values = [content.plain(part) for part in parts]
    if len(values) > 1 and all(isinstance(value, Tensor) and value.ndim for value in values):
        return torch.cat(values)
    return values[0]


def kind_of(value: object) -> str:
    """What a value is, as a sentence goes on behind ``holds``."""
    if isinstance(value, StandIn):
        return f"an object of {shown(value.name or 'numpy')}"
    if isinstance(value, type) and issubclass(value, StandIn):
        return f"the name {shown(value.name)}"
    return f"a {type(value).__name__}"


def _foreign(value: object) -> str | None:
    """What else than plain values and tensors lies in a plain value; None if nothing."""
    if isinstance(value, Mapping):
        return next((found for part in value.items() for one in part if (found := _foreign(one))), None)
    if isinstance(value, list | tuple | set | frozenset):
        return next((found for one in value if (found := _foreign(one))), None)
    if isinstance(value, Tensor | str | bytes | bytearray | int | float | complex | torch.dtype | None):
        return None
    return f"a tensor that is {value.kind}" if isinstance(value, Unusable) else kind_of(value)


def bare_names(names: Iterable[str]) -> list[str]:
    """Names of tensors without modules that others put around modules, and without prefixes that all of them share."""
    found = bare(names)
    while prefix := next((p for p in WRAPPERS if found and all(name.startswith(p) for name in found)), None):
        found = [name.removeprefix(prefix) for name in found]
    return found
