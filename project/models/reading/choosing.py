"""Which of a file's tensors are the network: under any prefix, in any writer's names, averaged or not."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from project.models.architecture import Architecture
from project.models.reading.inert import module_state
from project.models.reading.kin import OWN, self_supervision
from project.models.reading.renaming import TABLES, TORCHVISION, Renaming
from project.models.reading.stand_ins import NumpyArray, Record, Unusable
from project.models.recognise import fitting

Which = Literal["ema", "raw"]
Headless = Literal["none"]
AROUND = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Modules that others put around modules: DataParallel, torch.compile, FSDP, activation checkpoints, DeepSpeed."""
HOLDERS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state", "weights")
"""Keys under which scripts keep the state dict, or the network itself, beside what else they save."""
NOT_TAKEN = frozenset(
    f"{owner}{entry}" for owner in ("", "datamodule_") for entry in ("hyper_parameters", "hparams_name", "hparams_type")
)
"""What a checkpoint says of the arguments of those who wrote it: nobody takes them from there."""
HEADLESS = 'project.merge([{"path": FILE, "head": "none"}, ...])'
DEPTH = 4  # mappings in mappings
NETWORKS = 64  # of a file, at most, that are looked at
SHOWN = 4
AVERAGED = re.compile(r"(?:.*[._])?(?:ema|averaged|average|avg|swa|shadow)(?:[._].*)?", re.IGNORECASE)
LIGHTNING_RAW, LIGHTNING = "current_model_state.", "state_dict."  # of its WeightAveraging, which swaps them
POOLED_HEAD = ("avgpool.norm", "avgpool.linear", "fc.1", "fc.2")
"""The layers of fastai's own head, under our names."""
TIMM_BODY = "0.model."
"""Where fastai has networks of timm, their head being in 1."""
HARMLESS = re.compile(
    r"n_averaged|(?:[^.]*_)?(?:criterion|\w*loss|loss\w*|metrics?|acc\w*|confmat|auroc|precision|recall|f1)"
    r"(?:_[^.]*)?(?:\..*)?",
    re.IGNORECASE,
)
"""Names beside a network's own that are none of its layers."""
HEADS = (
    "fc", "classifier", "linear", "head", "heads", "cls_head", "class_head", "classification_head", "clf",
    "last_linear", "output", "out", "logits",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """Tensors of a file that are a network.

    Args:
        names: Our name of each, and the file's names, whose tensors it is one after the other.
        prefix: What stands before the network's names.
        writer: Whose names they are.
        averaged: Whether they are an average over training.
        architecture: Which network; None where the user has named it.
    """

    names: Mapping[str, tuple[str, ...]]
    prefix: str
    writer: str
    averaged: bool
    architecture: Architecture | None = None

    @property
    def assumed(self) -> list[str]:
        """What files do not say of such a network."""
        told = []
        if self.architecture and self.architecture.hidden and self.architecture.head == "plain":
            told.append("ReLU between the two layers of its head")
        if self.architecture and self.architecture.shortcut == "padding":
            told.append("zeros on both sides of the channels where its shortcuts widen (option A)")
        return told

    @property
    def taken(self) -> set[str]:
        """The file's names that are taken."""
        return {name for names in self.names.values() for name in names}


@dataclass(frozen=True, eq=False)
class Held:
    """All tensors of a file.

    Args:
        tree: What it holds.
        keys: Names without the modules around, with the tensors.
        places: These names, with the keys that lead there in the file, joined by dots.
    """

    tree: Any
    keys: Mapping[str, Any] = field(init=False)
    places: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tensors."""
        found = dict(_tensors(self.tree, set()))
        names = bare(found)
        object.__setattr__(self, "keys", dict(zip(names, found.values(), strict=True)))
        object.__setattr__(self, "places", dict(zip(names, found, strict=True)))

    @cached_property
    def shapes(self) -> dict[str, Tensor]:
        """The tensors, without memory; those that cannot be are left out."""
        shapes: dict[str, Tensor | None] = {}
        for name, value in self.keys.items():
            shape = _shape(value)
            try:
                shapes[name] = torch.empty(shape, device="meta") if shape is not None else None
            except (RuntimeError, TypeError, ValueError, OverflowError):  # of a size that cannot be
                continue
        return {name: shape for name, shape in shapes.items() if shape is not None}

    def recognised(self) -> list[Choice]:
        """Every group of tensors that is one of the networks that are known by their tensors, the largest first."""
        found: dict[str, Choice] = {}
        for table, prefix in self._places():
            if prefix not in found and (choice := self._read(table, prefix)):
                found[prefix] = choice
        return sorted(
            found.values(), key=lambda choice: (-len(choice.names), choice.prefix.partition(".")[0] not in HOLDERS)
        )

    def named(self, names: Collection[str]) -> list[Choice]:
        """Every group of tensors that has the names of a network, in any writer's words.

        Args:
            names: Of all tensors of the network; counters of batches may be missing.
        """
        needed = [name for name in names if not name.endswith("num_batches_tracked")]
        found: dict[str, Choice] = {}
        for table in (None, *TABLES):
            try:
                theirs = {name: (name,) if table is None else table.their_names(name) for name in names}
            except KeyError:
                continue
            cuts = {"", table.optional} if table else {""}
            for cut in cuts if needed else ():
                short = {our: tuple(name.removeprefix(cut) for name in written) for our, written in theirs.items()}
                for prefix in self._prefixes(short[needed[0]][0]):
                    if prefix in found or any(prefix + name not in self.keys for our in needed for name in short[our]):
                        continue
                    placed = {our: tuple(prefix + name for name in written) for our, written in short.items()}
                    own = {our: written for our, written in placed.items() if all(one in self.keys for one in written)}
                    if self._deeper(prefix, {name for written in placed.values() for name in written}):
                        continue
                    found[prefix] = Choice(own, prefix, table.writer if table else "", self._averaged(prefix))
            if found:
                break
        return list(found.values())

    def largest(self) -> dict[str, Any]:
        """The tensors under the key that holds most of them; empty where no weights lie deeper than the top."""
        counts: dict[str, int] = {}
        for name in self.keys:
            key, _, rest = name.partition(".")
            if rest.endswith("weight") and isinstance(self.tree, Mapping) and key in self.tree:
                counts[f"{key}."] = counts.get(f"{key}.", 0) + 1
        most = max(counts, key=lambda key: counts[key], default=None)
        if most is None:
            return {}
        return {name.removeprefix(most): one for name, one in self.keys.items() if name.startswith(most)}

    def trunks(self) -> list[Choice]:
        """Every group of tensors that is a trunk of a ResNet, without whatever head it has, in the file's order.

        Their architecture has a head that leaves the pooled values as they are: one layer without biases, as wide as
        the trunk.
        """
        found: dict[str, Choice] = {}
        for table, prefix in self._places():
            if prefix not in found and (choice := self._read(table, prefix, headless=True)) and choice.architecture:
                width = _width({our: self.shapes[theirs] for our, (theirs,) in choice.names.items()})
                whole = replace(choice.architecture, num_classes=width, head_bias=False)
                averaged = self._averaged(prefix) or "teacher" in prefix.split(".")
                found[prefix] = replace(choice, architecture=whole, averaged=averaged)
        first = list(self.places)
        return sorted(found.values(), key=lambda choice: first.index(next(iter(choice.names.values()))[0]))

    def trunk(self) -> str | None:
        """What the file holds, as a sentence, where it is a trunk without a head for classes."""
        method = self_supervision(self.shapes)
        for table, prefix in self._places():
            if not (found := self._read(table, prefix, headless=True)) or not found.architecture:
                continue
            what = f"it holds the trunk of a {found.architecture.name}"
            if method:
                return (
                    f"{what} and no head for classes: {method[1]!r} in it is of {method[0]}, which learns without; "
                    f"train a head on it first, or merge it as a trunk: {HEADLESS}"
                )
            if others := self.others(found):
                return (
                    f"{what}, and beside it {_listed(others)}, which is no head that is read; allowed: one linear "
                    f"layer, two with ReLU between them, or fastai's; if there is more to it, {OWN}; as a trunk alone: "
                    f"{HEADLESS}"
                )
            return (
                f"{what} and no head for classes, as training without classes leaves; train one on it first, or merge "
                f"it as a trunk: {HEADLESS}"
            )
        return None

    def account(self, choice: Choice) -> list[str]:
        """What is to be told of a choice, a phrase for each."""
        told = []
        if choice.writer and any(names != (choice.prefix + our,) for our, names in choice.names.items()):
            told.append(f"its names are those of {choice.writer}")
        if choice.assumed:
            told.append(f"assumed, since files do not tell: {', '.join(choice.assumed)}")
        if others := self.others(choice):
            told.append(f"passed over: {_listed(others)}")
        return told

    def others(self, choice: Choice) -> list[str]:
        """What else it holds than what is taken, as few words as tell it."""
        taken = choice.taken
        roots = {name[:end] for name in taken for end in _dots(name)}
        left: dict[str, list[str]] = {}
        for name in self.keys:
            if name not in taken:
                root = next((name[:end] for end in _dots(name) if name[:end] not in roots), name)
                left.setdefault(root, []).append(name)
        return [
            names[0] if len(names) == 1 else f"{root.removesuffix('.')} ({len(names)} tensors)"
            for root, names in left.items()
        ]

    def _prefixes(self, first: str) -> Iterator[str]:
        """What stands before a name, wherever the file has it."""
        for name in self.keys:
            if name == first or name.endswith(f".{first}"):
                yield name.removesuffix(first)

    def _places(self) -> Iterator[tuple[Renaming, str]]:
        """Where the first layers of a ResNet stand, in which names and behind which prefix; not many have a file."""
        left = NETWORKS
        for table in (*TABLES, TORCHVISION):
            for first in table.rows_of("conv1"):
                (block,) = table.their_names("layer1.0.conv1.weight")
                for prefix in self._prefixes(f"{first}.weight"):
                    inside = prefix + block in self.shapes or prefix + block.removeprefix(table.optional) in self.shapes
                    if inside and left:
                        left -= 1
                        yield table, prefix

    def _averaged(self, prefix: str) -> bool:
        if any(name.startswith(LIGHTNING_RAW) for name in self.keys):
            return prefix.startswith(LIGHTNING)
        return bool(AVERAGED.fullmatch(prefix)) or f"{prefix}n_averaged" in self.keys

    def _read(self, table: Renaming, prefix: str, headless: bool = False) -> Choice | None:
        """A network under a prefix in a writer's names; None where it is none that is known."""
        inside = {name.removeprefix(prefix): name for name in self.shapes if name.startswith(prefix)}
        pairs, others = table.pairs(inside)
        trunk = {our: (inside[theirs[0]],) for our, theirs in pairs.items() if our.partition(".")[0] != "fc"}
        if "layer1.0.conv1.weight" not in trunk:
            return None
        shapes = {our: self.shapes[theirs] for our, (theirs,) in trunk.items()}
        width = _width(shapes)
        if headless:
            shapes |= {"fc.weight": torch.empty(1, width, device="meta"), "fc.bias": torch.empty(1, device="meta")}
            architecture = fitting(shapes)
            if architecture is None or any(name.startswith("layer") for name in others):
                return None
            return Choice(trunk, prefix, table.writer, False, architecture)
        used = {name for (name,) in trunk.values()}
        parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
        words = (*table.rows_of("fc"), *HEADS)
        starts = dict.fromkeys(place + word for place in (prefix, parent) for word in words)
        if prefix.endswith(TIMM_BODY):
            starts[f"{prefix.removesuffix(TIMM_BODY)}1"] = None
        for start in starts:
            parts = {
                name: one for name, one in self.shapes.items() if name.startswith(f"{start}.") and name not in used
            }
            if not parts:
                continue
            fastai = start.removeprefix(prefix) == "1" or prefix.endswith(TIMM_BODY)
            head = _head(parts, start, width) or (_pooled_head(parts, start, width) if fastai else None)
            if head is None:
                return None
            names = trunk | {our: (theirs,) for our, theirs in head.items()}
            taken = {name for (name,) in names.values()}
            left = [short for short, name in inside.items() if name not in taken]
            architecture = fitting(shapes | {our: self.shapes[theirs] for our, theirs in head.items()})
            if architecture is None or not all(HARMLESS.fullmatch(name) for name in left):
                return None
            if self._unsupervised(prefix) or self._more(parent, taken, architecture.num_classes):
                return None
            writer = "" if table is TORCHVISION else table.writer
            return Choice(names, prefix, writer, self._averaged(prefix), architecture)
        return None

    def _deeper(self, prefix: str, taken: Collection[str]) -> bool:
        """Whether the modules of a network hold more here than the network does, so that this is a larger one."""
        tops = {name.removeprefix(prefix).partition(".")[0] for name in taken}
        counted = any(top.isdigit() for top in tops)
        for name in self.keys:
            rest = name.removeprefix(prefix)
            top = rest.partition(".")[0]
            inside = name.startswith(prefix) and name not in taken and (top in tops or (counted and top.isdigit()))
            if inside and not HARMLESS.fullmatch(rest):
                return True
        return False

    def _unsupervised(self, prefix: str) -> bool:
        """Whether what seems a head makes no classes: networks that learn without have such, too."""
        return self_supervision([prefix]) is not None or any("predictor" in name.split(".") for name in self.keys)

    def _more(self, parent: str, taken: Collection[str], classes: int) -> bool:
        """Whether beside a network stands a layer that reads its logits, so that there is more to it."""
        return any(
            f"{parent}{word}.weight" in self.shapes.keys() - taken
            and self.shapes[f"{parent}{word}.weight"].shape[1:] == (classes,)
            for word in HEADS
        )


def _listed(words: list[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def bare(names: Iterable[str]) -> list[str]:
    """Names without the modules that others put around modules, unless two would be the same then."""
    found = list(names)
    short = [".".join(part for part in name.split(".") if part not in AROUND) or name for name in found]
    return short if len(set(short)) == len(short) else found


def _tensors(value: Any, seen: set[int], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All tensors in mappings and modules, by the keys that lead there; what lies in several places, by the first."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if (state := module_state(value)) is not None:
        value = state
    if not isinstance(value, Mapping) or depth > DEPTH:
        return
    for key, one in value.items():
        if isinstance(key, str) and key not in NOT_TAKEN:
            if isinstance(one, Record | Tensor | NumpyArray | Unusable):
                yield prefix + key, one
            else:
                yield from _tensors(one, seen, f"{prefix}{key}.", depth + 1)


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Record):
        return value.size
    if isinstance(value, NumpyArray):
        return None if value.array is None else value.array.shape
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _dots(name: str) -> list[int]:
    """Ends of the parts of a name, dots included."""
    return [index + 1 for index, letter in enumerate(name) if letter == "."]


def _width(shapes: Mapping[str, Tensor]) -> int:
    """Number of channels behind the last norm of a trunk."""
    blocks = [name.split(".") for name in shapes if re.fullmatch(r"layer\d\.\d+\.bn\d\.weight", name)]
    last = max(blocks, key=lambda parts: (parts[0], int(parts[1]), parts[2]))
    return shapes[".".join(last)].numel()


def _layers(parts: Iterable[str], start: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """What stands below a name: the layers' own names -> their tensors, and these names in their order."""
    layers: dict[str, dict[str, str]] = {}
    for name in parts:
        stem, _, leaf = name.removeprefix(f"{start}.").rpartition(".")
        layers.setdefault(stem, {})[leaf] = name
    return layers, sorted(layers, key=lambda stem: (int(stem), "") if stem.isdigit() else (0, stem))


def _pooled_head(parts: Mapping[str, Tensor], start: str, width: int) -> dict[str, str] | None:
    """Own head of fastai, under our names: a norm before each of two linear layers; None for anything else."""
    layers, stems = _layers(parts, start)
    norms = [stem for stem in stems if "running_mean" in layers[stem]]
    if len(stems) != 4 or norms != stems[::2] or parts[layers[stems[0]]["running_mean"]].numel() != 2 * width:
        return None
    pairs = zip(POOLED_HEAD, stems, strict=True)
    return {f"{our}.{leaf}": name for our, stem in pairs for leaf, name in layers[stem].items()}


def _head(parts: Mapping[str, Tensor], start: str, width: int) -> dict[str, str] | None:
    """One linear layer, or two with a hidden one between them, under our names; None for anything else."""
    layers, stems = _layers(parts, start)
    linear = all(layer.keys() <= {"weight", "bias"} and "weight" in layer for layer in layers.values())
    if not linear or any(parts[layer["weight"]].ndim != 2 for layer in layers.values()):
        return None
    sizes = [parts[layers[stem]["weight"]].shape for stem in stems]
    if len(stems) == 1 and sizes[0][1] == width:
        return {f"fc.{leaf}": name for leaf, name in layers[stems[0]].items()}
    if len(stems) == 2 and sizes[0][1] == width and sizes[1][1] == sizes[0][0]:
        if all(stem.isdigit() for stem in stems) and int(stems[1]) - int(stems[0]) < 2:
            return None  # nothing between them
        return {
            f"fc.{place}.{leaf}": name
            for place, stem in zip((0, 2), stems, strict=True)
            for leaf, name in layers[stem].items()
        }
    return None
