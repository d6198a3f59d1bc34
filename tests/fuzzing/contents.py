"""What can be wrong inside a file: its bytes, its tensors, and the plain values beside them.

Everything is drawn from a ``random.Random``, so that a seed replays it, whoever draws that: a case or hypothesis.
Nothing here can harm: what names a class names one that merely leaves a trace where somebody imports it.
"""

import copy
import json
import math
import pickle
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence
from io import BytesIO
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2.5, -0.0, 1e-300, 1e300, math.nan, math.inf, 10**9, 2**63, 10**30, -(10**30),
    "", " ", "0", "x", "conv1", "../../x", "/", "nan", "None", "x" * 3000, "line\nline", "\x00", "\u202e", "ü", [],
    {}, [None], [[]], [1, 2], ["x"], {"x": 1}, {"": {}}, {"$tensor": "conv1.weight"}, {"$tensor": 3},
    {"class_path": "x"},
)  # fmt: skip
"""Values that stand where another was expected."""

TRACE = "beside"
"""A module that leaves a file of its name behind where it is imported."""


# ---- bytes -----------------------------------------------------------------------------------------------------------


def damaged(random: Random, content: bytes) -> tuple[bytes, str]:
    """Some other bytes, and in words what was done."""
    size = max(len(content), 1)
    start = random.randrange(size)
    length = random.choice((1, 7, 64, 4096))
    end = start + length
    noise = bytes(random.randrange(256) for _ in range(min(length, 64)))
    what, found = random.choice(
        (
            (f"cut off at byte {start}", content[:start]),
            (f"without its last {length} bytes", content[:-length]),
            (f"without its first {length} bytes", content[length:]),
            (f"without bytes {start} to {end}", content[:start] + content[end:]),
            (f"zeros in bytes {start} to {end}", content[:start] + bytes(length) + content[end:]),
            (f"{len(noise)} other bytes at {start}", content[:start] + noise + content[start + len(noise) :]),
            (f"{len(noise)} more bytes at {start}", content[:start] + noise + content[start:]),
            (f"bytes {start} to {end} twice", content[:end] + content[start:]),
            (f"{len(noise)} more bytes at its end", content + noise),
            ("itself once more at its end", content + content),
            ("one bit of its head turned", _turned(random, content, 0, 600)),
            ("one bit of its tail turned", _turned(random, content, size - 600, size)),
            ("one bit turned", _turned(random, content, 0, size)),
            ("five bits turned", _turned(random, content, 0, size, 5)),
            ("all zeros", bytes(len(content))),
            ("empty", b""),
            ("noise", noise * (size // len(noise) + 1)),
            ("its lines in Windows' form", content.replace(b"\n", b"\r\n")),
        )
    )
    return (found, what) if found != content else (content + b"\x00", "a zero at its end")


def _turned(random: Random, content: bytes, start: int, end: int, count: int = 1) -> bytes:
    spoilt = bytearray(content)
    start, end = max(start, 0), min(end, len(content))
    for _ in range(count if end > start else 0):
        spoilt[random.randrange(start, end)] ^= 1 << random.randrange(8)
    return bytes(spoilt)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def spoilt_tensor(random: Random, tensor: Tensor) -> tuple[Any, str, bool]:
    """Something in a tensor's place; in words what; and whether no network can hold it in a floating parameter."""
    flat = tensor.detach().clone().float()
    one = random.randrange(max(flat.numel(), 1))

    def holding(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        changed = flat.to(dtype).flatten()
        changed[one : one + 1] = value
        return changed.view(tensor.shape)

    kinds: list[tuple[str, Callable[[], Any], bool]] = [
        ("int64", lambda: flat.long(), True),
        ("uint8", lambda: flat.to(torch.uint8), True),
        ("bool", lambda: flat.bool(), True),
        ("complex64", lambda: flat.to(torch.complex64), True),
        ("float64", lambda: flat.double(), False),
        ("float16", lambda: flat.half(), False),
        ("bfloat16", lambda: flat.bfloat16(), False),
        ("float8", lambda: flat.to(torch.float8_e4m3fn), False),
        ("sparse", lambda: flat.to_sparse(), True),
        ("sparse by rows", lambda: flat.reshape(len(flat), -1).to_sparse_csr() if flat.dim() > 1 else flat, False),
        ("quantised", lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8), True),
        ("of the meta device", lambda: flat.to("meta"), True),
        ("nested", lambda: torch.nested.nested_tensor([flat.flatten()]), True),
        ("a nan in it", lambda: holding(math.nan), True),
        ("inf in it", lambda: holding(math.inf), True),
        ("-inf in it", lambda: holding(-math.inf), True),
        ("1e300 in it", lambda: holding(1e300, torch.float64), True),
        ("3e38 in it", lambda: holding(3e38), False),
        ("1e30 in it", lambda: holding(1e30), False),
        ("-1e10 in it", lambda: holding(-1e10), False),
        ("times 1e20", lambda: flat * 1e20, False),
        ("times 1e-30", lambda: flat * 1e-30, False),
        ("all zero", lambda: torch.zeros_like(flat), False),
        ("all one", lambda: torch.ones_like(flat), False),
        ("negative", lambda: -flat.abs() - 1, False),
        ("one row less", lambda: flat[1:] if flat.dim() else flat[None], True),
        ("doubled", lambda: torch.cat([flat, flat]) if flat.dim() else flat[None], True),
        ("flattened and longer", lambda: torch.cat([flat.flatten(), flat.new_zeros(1)]), True),
        ("one dimension more", lambda: flat[None], True),
        ("without numbers", lambda: flat.new_empty(0), True),
        ("a single number", lambda: torch.tensor(1.0), True),
        ("a view of one number", lambda: flat.new_ones(1).expand(tensor.shape), False),
        ("laid out backwards", lambda: flat.t().contiguous().t() if flat.dim() == 2 else flat, False),
        ("no tensor but None", lambda: None, True),
        ("no tensor but a number", lambda: 3.5, True),
        ("no tensor but a list", lambda: flat.flatten()[:3].tolist(), True),
        ("no tensor but text", lambda: "weights", True),
        ("no tensor but a mapping", lambda: {"data": flat}, True),
    ]
    what, make, impossible = random.choice(kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kinds are new to torch, others outdated
        return make(), what, impossible


NAMES = (
    "",
    " ",
    "../../x",
    "conv1.weight ",
    "Conv1.weight",
    "weight",
    "a" * 3000,
    "layer\nname",
    "näme",
    "0",
    "fc",
    "x.",
)


def spoilt_state(random: Random, state: Mapping[str, Tensor]) -> tuple[dict[Any, Any], str, bool]:
    """Other tensors than a network's; in words what; and whether no network of its kind can be made of them."""
    found: dict[Any, Any] = dict(state)
    floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
    counters = [name for name in state if name not in floating]
    variances = [name for name in state if name.endswith("running_var")]
    name = random.choice(floating)
    what = random.choice(
        ("tensor",) * 10 + ("variance", "counter", "lost", "more", "other name", "two", "none", "keys")
    )
    if what == "variance" and variances:
        name, value = random.choice(variances), random.choice((-1.0, -1e-3, -1e30))
        found[name] = state[name].clone()
        found[name][random.randrange(len(found[name]))] = value
        return found, f"{name} holds {value}", True
    if what == "counter" and counters:
        name = random.choice(counters)
        value = random.choice((-1, 2**62, 1.5, math.nan, [1, 2], True))
        found[name] = torch.tensor(value)
        return found, f"{name} is {value}", False
    if what == "lost":
        del found[name]
        return found, f"{name} is not there", True
    if what == "more":
        name = random.choice(NAMES)
        found[name] = torch.ones(3)
        return found, f"{name!r} is there too", False
    if what == "other name":
        other = random.choice(NAMES)
        found = {other if one == name else one: tensor for one, tensor in found.items()}
        return found, f"{name} is called {other!r}", True
    if what == "two":
        one, other = random.sample(floating, 2)
        found[one], found[other] = found[other], found[one]
        return found, f"{one} and {other} have changed places", False
    if what == "none":
        return {}, "no tensors", True
    if what == "keys":
        found = {index if random.random() < 0.5 else (name, index): t for index, (name, t) in enumerate(found.items())}
        return found, "names that are no text", True
    found[name], told, impossible = spoilt_tensor(random, state[name])
    return found, f"{name} is {told}", impossible


# ---- plain values ----------------------------------------------------------------------------------------------------


def spoilt_plain(random: Random, content: Any) -> tuple[Any, str]:
    """Plain values of which one is another, is lost, stands twice or has another name; and in words what."""
    content = copy.deepcopy(content)
    places = [place for place in _places(content, ()) if place[1]]
    if not places:
        return random.choice(ODD), "another value"
    # By depth first, so that long lists deep inside do not take all of it.
    depth = random.choice(sorted({len(path) for _, path in places}))
    holder, path = random.choice([place for place in places if len(place[1]) == depth])
    key, where = path[-1], "/".join(map(str, path))
    what = random.choice(("other", "other", "other", "lost", "twice", "name", "near"))
    if what == "lost":
        del holder[key]
        return content, f"{where} is lost"
    if what == "twice" and isinstance(holder, MutableSequence):
        holder.insert(key, holder[key])
        return content, f"{where} stands twice"
    if what == "name" and isinstance(holder, MutableMapping):
        name = random.choice(("", "x", f"{key}x", f"{key}"[:-1], str(key).upper(), "__class__"))
        holder[name] = holder.pop(key)
        return content, f"{where} is called {name!r}"
    value = holder[key]
    if what == "near" and isinstance(value, int | float):
        value = random.choice((-value, value + 1, value - 1, value / 2, value * 1000, str(value), [value], bool(value)))
    elif what == "near" and isinstance(value, str):
        value = random.choice((value + "x", value[:-1], value.upper(), [value], value + "\n", value * 50))
    elif what == "near" and isinstance(value, Mapping | list):
        value = random.choice(([], {}, [value], {"x": value}, list(value), None))
    else:
        value = random.choice(ODD)
    holder[key] = value
    return content, f"{where} is {shown(value)}"


def _places(content: Any, path: tuple[Any, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every place of plain values: what holds it, and the way there."""
    found: list[tuple[Any, tuple[Any, ...]]] = []
    if isinstance(content, MutableMapping):
        inner = list(content.items())
    elif isinstance(content, MutableSequence):
        inner = list(enumerate(content))
    else:
        return found
    for key, value in inner:
        found += [(content, (*path, key)), *_places(value, (*path, key))]
    return found


def shown(value: Any) -> str:
    """A value in a recipe."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)} characters)"


# ---- containers ------------------------------------------------------------------------------------------------------


def foreign(random: Random, state: Mapping[str, Tensor]) -> tuple[bytes, str, bool]:
    """A file of another form than ours; in words which; and whether there is no network in it."""
    plain = dict(state)
    first = next(iter(plain.values()))
    kinds: list[tuple[str, Callable[[], bytes], bool]] = [
        ("a list of tensors", lambda: _torch(list(plain.values())), True),
        ("a tensor", lambda: _torch(first), True),
        ("a number", lambda: _torch(3), True),
        ("None", lambda: _torch(None), True),
        ("text", lambda: _torch("weights"), True),
        ("an empty mapping", lambda: _torch({}), True),
        ("weights two levels down", lambda: _torch({"ema": {"inner": plain}}), False),
        ("weights in a list", lambda: _torch({"state_dict": [plain]}), False),
        ("a state dict that is a number", lambda: _torch({"state_dict": 3}), True),
        ("a model without tensors", lambda: _torch({"model": {}}), True),
        ("weights beside other values", lambda: _torch({"model": plain, "epoch": 3, "best": 0.5, "args": None}),
        False), ("the form before PyTorch 1.6", lambda: _torch(plain, _use_new_zipfile_serialization=False), False),
        ("a bare pickle", lambda: pickle.dumps({"a": [1, 2]}), True),
        ("a pickle of a class", lambda: _of_a_class(plain, alone=True), False),
        ("weights beside a class", lambda: _of_a_class(plain), False),
        ("deep lists", lambda: _torch(_deep(random.choice((50, 900, 5000)))), True),
        ("an archive that is empty", lambda: _zip({}), True),
        ("an archive of texts", lambda: _zip({"readme.txt": b"text"}), True),
        ("an archive with a path that leads out", lambda: _zip({"../../out/data.pkl": b"\x80\x02}."}), True),
        ("an archive without tensors' data", lambda: _without(_torch(plain), "data/"), True),
        ("an archive without a pickle", lambda: _without(_torch(plain), "data.pkl"), True),
        ("an archive that is packed", lambda: _packed(_torch(plain)), False),
        ("a text", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", True),
        ("a page", lambda: b"<!DOCTYPE html><html><body>Not found</body></html>", True),
        ("JSON", lambda: json.dumps({name: tensor.flatten()[:2].tolist() for name, tensor in plain.items()}).encode(),
         True),
        ("a picture's head", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), True),
        ("gzip's head", lambda: b"\x1f\x8b\x08\x00" + bytes(100), True),
        ("safetensors", lambda: save(plain), False),
        ("safetensors without tensors", lambda: save({}), True),
        ("safetensors with a head of 2⁶³ bytes", lambda: struct.pack("<Q", 2**63) + b"{}", True),
        ("safetensors with a head longer than the file", lambda: struct.pack("<Q", 1000) + b"{}", True),
        ("safetensors with another head", lambda: _headed(random, save(plain)), False),
    ]  # fmt: skip
    what, make, empty = random.choice(kinds)
    return make(), what, empty


def _torch(content: Any, **options: Any) -> bytes:
    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _deep(levels: int) -> Any:
    found: Any = 1
    limit = sys.getrecursionlimit()
    for _ in range(min(levels, limit // 4)):
        found = [found]
    return found


def _of_a_class(state: Mapping[str, Tensor], alone: bool = False) -> bytes:
    """A pickle that names a class of the module of :data:`TRACE`, which is not there to be asked for it now."""
    module = types.ModuleType(TRACE)
    module.Kind = type("Kind", (), {"__module__": TRACE, "__qualname__": "Kind"})  # type: ignore[attr-defined]
    sys.modules[TRACE] = module
    try:
        one = module.Kind()
        return _torch(one if alone else {"state_dict": dict(state), "hyper_parameters": one})
    finally:
        del sys.modules[TRACE]


def _zip(entries: Mapping[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time, which a seed does not fix
    return file.getvalue()


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _without(content: bytes, part: str) -> bytes:
    return _zip({name: one for name, one in _entries(content).items() if part not in name})


def _packed(content: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in _entries(content).items():
            archive.writestr(zipfile.ZipInfo(name), one, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _headed(random: Random, content: bytes) -> bytes:
    """A safetensors file whose list of tensors says something else."""
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    spoilt, _ = spoilt_plain(random, head)
    text = json.dumps(spoilt).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


# ---- safetensors with values beside the tensors ----------------------------------------------------------------------


def parts(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return dict(sorted(metadata.items())), dict(sorted(load(content).items()))  # whose order is another every time


def spoilt_student(random: Random, content: bytes) -> tuple[bytes, str]:
    """A student's file with other values, other unit maps or other tensors; and in words what."""
    metadata, tensors = parts(content)
    what = random.choice(("values", "values", "values", "integers", "tensors", "metadata"))
    if what == "values":
        values, told = spoilt_plain(random, json.loads(metadata["pleas"]))
        return save(tensors, {"pleas": json.dumps(values)}), told
    if what == "metadata":
        text = random.choice(("", "{", "[]", "3", "null", '{"a": 1e999}', "[" * 100_000, "9" * 10_000, "\ufffd"))
        return save(tensors, {"pleas": text}), f"its JSON is {shown(text)}"
    integers = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if what == "integers" and integers:
        name = random.choice(integers)
        tensors[name], told = _spoilt_integers(random, tensors[name])
    else:
        name = random.choice([name for name in tensors if name not in integers])
        tensors[name], told = _storable(random, tensors[name])[:2]
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata), f"{name} is {told}"


def _spoilt_integers(random: Random, tensor: Tensor) -> tuple[Tensor, str]:
    if not tensor.numel():
        return torch.zeros(3), "three zeros"
    spoilt, one = tensor.clone().flatten(), random.randrange(tensor.numel())
    what = random.choice((-1, -2, 10**6, 2**62, "another's", "real", "less", "flat", "bool"))
    if isinstance(what, int):
        spoilt[one] = min(what, torch.iinfo(tensor.dtype).max) if tensor.dtype != torch.bool else bool(what)
        return spoilt.view(tensor.shape), f"{what} in one place"
    if what == "another's":
        spoilt[one] = spoilt[one - 1]
        return spoilt.view(tensor.shape), "the same in two places"
    if what == "less":
        return tensor[:-1] if tensor.dim() else tensor[None], "a row less"
    others = {"real": tensor.double(), "flat": tensor.flatten(), "bool": tensor.bool()}
    return others[what], what


def _storable(random: Random, tensor: Tensor) -> tuple[Tensor, str, bool]:
    """A spoilt tensor that safetensors can hold."""
    while True:
        found, told, impossible = spoilt_tensor(random, tensor)
        if (
            isinstance(found, Tensor)
            and found.layout == torch.strided
            and not found.is_meta
            and not found.is_nested
            and not found.is_quantized
        ):
            return found, told, impossible


def spoilt_statistics(random: Random, content: bytes) -> tuple[bytes, str, bool]:
    """A file of statistics with other values or tensors; in words what; and whether that cannot be."""
    metadata, tensors = parts(content)
    what = random.choice(("count", "count", "pictures", "values", "values", "plain", "tensor", "tensor", "lost"))
    if what == "count":
        moments = json.loads(metadata["moments"])
        name = random.choice(list(moments))
        count = random.choice((-5, 0, 1, 10**9, 2**70, 1.5, "12", None, True, math.nan, [3]))
        moments[name]["count"] = count
        impossible = not isinstance(count, int) or isinstance(count, bool) or count <= 0
        return save(tensors, metadata | {"moments": json.dumps(moments)}), f"the count of {name} is {count}", impossible
    if what == "pictures":
        pictures = json.loads(metadata["pictures"])
        name, count = random.choice(list(pictures)), random.choice((-5, 0, 1.5, "12", None, math.nan, 10**9))
        pictures[name] = count
        return save(tensors, metadata | {"pictures": json.dumps(pictures)}), f"pictures of {name}: {count}", True
    if what == "values":
        key = random.choice(("stamp", "pictures", "moments"))
        values, told = spoilt_plain(random, json.loads(metadata[key]))
        return save(tensors, metadata | {key: json.dumps(values)}), f"{key}: {told}", False
    if what == "plain":
        key, text = random.choice(list(metadata)), random.choice(("", "{", "[]", "3", "null", "[" * 100_000, "2"))
        return save(tensors, metadata | {key: text}), f"{key} is {shown(text)}", False
    name = random.choice(list(tensors))
    if what == "lost":
        del tensors[name]
        return save(tensors, metadata), f"{name} is lost", True
    tensors[name], told, impossible = _storable(random, tensors[name])
    return save({n: t.contiguous() for n, t in tensors.items()}, metadata), f"{name} is {told}", impossible
