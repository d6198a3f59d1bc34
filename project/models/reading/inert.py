"""Reading pickles without importing or calling anything that they name.

A pickle is a program that makes objects: it names classes and functions, which are imported, and calls them. Here
nothing is imported. What torch and numpy write tensors and numbers by is known under its name and comes back as a
description of where values lie; everything else becomes a :class:`StandIn`, which remembers what it was given and does
nothing. No object that a pickle gets hold of can be changed by it beyond that, so that one file leaves nothing behind
for the next.
"""

import math
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

DEPTH = 200  # containers in containers, at most: no file that somebody trained has more, and Python ends near 1000
MODULES = 100_000  # modules in a module: one that holds itself has no end
FEW = 2**20  # elements that a tensor may repeat, whatever its storage holds: an expanded one is small
DTYPES = {name: one for name, one in vars(torch).items() if isinstance(one, torch.dtype)}
STORAGES = {
    "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "CharStorage": torch.int8, "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "IntStorage": torch.int32, "LongStorage": torch.int64, "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
    "QInt32Storage": torch.int32, "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8,
    "QUInt4x2Storage": torch.uint8, "QUInt2x4Storage": torch.uint8,
}  # fmt: skip


class DamagedError(Exception):
    """What a file says of itself cannot be."""


class Sealed(type):
    """A class whose attributes nothing can change."""

    def __setattr__(cls, name: str, value: object) -> None:
        """Refuse."""
        raise TypeError(f"{cls.__name__} cannot be changed")

    def __delattr__(cls, name: str) -> None:
        """Refuse."""
        raise TypeError(f"{cls.__name__} cannot be changed")


class Inert(metaclass=Sealed):
    """An object of which a pickle can only hold a reference."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Refuse what a pickle would set."""
        raise TypeError(f"a {type(self).__name__} has no state")


class StandIn(metaclass=Sealed):
    """Stands for an object of a class, or the result of a function, that a file names.

    Attributes:
        name: What the file names, with its module.
        arguments: What it was called with.
        state: What its attributes were to be, mostly a dictionary.
        items: What was appended to it.
        entries: What was set under keys.
    """

    __slots__ = ("arguments", "entries", "items", "state")
    name: ClassVar[str] = ""

    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]
    entries: dict[Any, Any]

    def __new__(cls, *arguments: Any, **keywords: Any) -> "StandIn":
        """Remember what it was called with."""
        self = object.__new__(cls)
        self.arguments, self.state, self.items, self.entries = arguments, None, [], dict(keywords)
        return self

    def __setstate__(self, state: Any) -> None:
        """Remember the state."""
        self.state = state

    def __call__(self, *arguments: Any, **keywords: Any) -> "StandIn":
        """Stand for what comes of calling it."""
        return type(self)(*arguments, **keywords)

    def append(self, item: Any) -> None:
        """Remember an item."""
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """Remember items."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """Remember an item."""
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Remember a value under its key."""
        self.entries[key] = value

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """What its attributes were to be, as far as a dictionary says so."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


class Table(dict[Any, Any], metaclass=Sealed):
    """An OrderedDict or defaultdict; attributes that a pickle would set on it are left out."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Leave out the attributes."""


class Tally(Table):
    """A Counter."""

    __slots__ = ()


class Function(Inert):
    """A function that is known to be harmless, as a pickle may call it.

    Args:
        call: The function.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self._call(*arguments)


class StorageKind(Inert):
    """A class of storages.

    Args:
        dtype: Of its elements.
    """

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage(Inert):
    """A piece of a file that holds the elements of tensors.

    Args:
        key: Its name in the file.
        dtype: Of its elements.
        count: How many there are.
        fetch: Gives the bytes that lie under a name, such as may be written to and lie where numbers of a width may.
        start: Element at which it begins, where it is a part of what lies under the name.
    """

    __slots__ = ("count", "dtype", "fetch", "key", "start")

    def __init__(
        self, key: Any, dtype: torch.dtype, count: int, fetch: Callable[[Any, int], memoryview], start: int = 0
    ) -> None:
        self.key, self.dtype, self.count, self.fetch, self.start = key, dtype, count, fetch, start

    def values(self, dtype: torch.dtype) -> Tensor:
        """Its elements, shape (count,), not copied where they lie in the file as memory would hold them.

        Args:
            dtype: What to take them for.

        Raises:
            DamagedError: If the file holds fewer bytes.
        """
        held = self.fetch(self.key, dtype.itemsize)
        first, size = self.start * self.dtype.itemsize, self.count * self.dtype.itemsize
        if first < 0 or size < 0 or first + size > len(held):
            raise DamagedError(f"storage {self.key} has {len(held)} bytes instead of {first + size}")
        part = held[first : first + size]
        count = size // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(part, dtype=dtype, count=count)


class Record(Inert):
    """A tensor that lies in a storage.

    Args:
        storage: The storage.
        offset: Its first element there.
        size: Its shape.
        stride: Elements from one index to the next.
        dtype: Of its elements.
    """

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype

    def __setstate__(self, state: object) -> None:
        """Leave out the attributes of a tensor."""

    def tensor(self) -> Tensor:
        """The tensor, on the CPU; those of one storage share its memory.

        Raises:
            DamagedError: If it does not lie in its storage.
        """
        numbers = (self.offset, *self.size, *self.stride)
        if any(type(number) is not int or number < 0 for number in numbers) or len(self.size) != len(self.stride):
            raise DamagedError(f"a tensor is said to be of shape {self.size} and stride {self.stride}")
        values = self.storage.values(self.dtype)
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if count > max(len(values), FEW) or (count and last >= len(values)):
            raise DamagedError(f"a tensor of shape {self.size} is said to lie in {len(values)} elements")
        return torch.as_strided(values, self.size, self.stride, self.offset)


class Unusable(Inert):
    """A tensor of a kind of which no weights can be.

    Args:
        kind: What it is, as in ``is sparse``.
    """

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        """Leave out the attributes of a tensor."""


class NumpyType(Inert):
    """Type of numpy numbers.

    Args:
        code: What numpy calls it, such as ``f8``; others than of numbers are not read.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code = code if isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code) else ""
        self.order = "="

    def __setstate__(self, state: object) -> None:
        """Take the order of bytes."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def read(self, raw: object, shape: Any, order: Literal["C", "F"] = "C") -> "np.ndarray[Any, Any] | None":
        """Numbers of this type; None where they are none.

        Raises:
            DamagedError: If there are not as many as the shape says.
        """
        if isinstance(raw, str):  # as Python 2 wrote bytes
            raw = raw.encode("latin1")
        if not self.code or not isinstance(raw, bytes | bytearray):
            return None
        try:
            # the buffer must hold as many; without one, a shape would make room of any size
            return np.ndarray(shape, np.dtype(self.order + self.code), buffer=raw, order=order)
        except (TypeError, ValueError) as error:
            raise DamagedError(f"numbers are said to be of shape {shape}: {error}") from error


class NumpyArray(Inert):
    """An array of numpy; ``array`` is None until its numbers are read, and where they are no numbers."""

    __slots__ = ("array",)

    def __init__(self, array: "np.ndarray[Any, Any] | None" = None) -> None:
        self.array = array

    def __setstate__(self, state: object) -> None:
        """Take the numbers."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise DamagedError("an array of numpy is said to be of what is none")
        _, shape, kind, fortran, raw = state
        if isinstance(kind, NumpyType):
            self.array = kind.read(raw, shape, "F" if fortran else "C")

    def tensor(self) -> Tensor | None:
        """The numbers as a tensor; None where there are none."""
        if self.array is None:
            return None
        native = self.array.astype(self.array.dtype.newbyteorder("="))  # a copy, which may be written to
        try:
            return torch.from_numpy(native)
        except TypeError:  # numbers that torch has not, such as of 16 bytes
            return None


def _rebuild(storage: Storage, offset: int, size: Iterable[int], stride: Iterable[int], *rest: Any) -> object:
    """What ``torch._utils._rebuild_tensor`` and ``_rebuild_tensor_v2`` are called with."""
    metadata = rest[2] if len(rest) > 2 else None
    return _record(storage, offset, size, stride, storage.dtype, metadata)


def _rebuild_v3(
    storage: Storage,
    offset: int,
    size: Iterable[int],
    stride: Iterable[int],
    _grad: object,
    _hooks: object,
    dtype: torch.dtype,
    metadata: object = None,
) -> object:
    return _record(storage, offset, size, stride, dtype, metadata)


def _record(
    storage: Storage, offset: int, size: Iterable[int], stride: Iterable[int], dtype: torch.dtype, metadata: object
) -> object:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise DamagedError("a tensor is said to lie in what is no storage")
    if metadata:
        return Unusable("a conjugate or negative view")
    return Record(storage, offset, tuple(size), tuple(stride), dtype)


def _numpy_scalar(kind: NumpyType, raw: object = b"") -> object:
    numbers = kind.read(raw, ()) if isinstance(kind, NumpyType) else None
    return StandIn() if numbers is None else numbers.item()


def _numpy_buffer(raw: object, kind: NumpyType, shape: Any, order: Literal["C", "F"] = "C") -> object:
    return NumpyArray(kind.read(raw, shape, order) if isinstance(kind, NumpyType) else None)


def _from_type(function: object, _type: object, arguments: tuple[Any, ...], _state: object = None) -> object:
    """What ``torch._tensor._rebuild_from_type_v2`` is called with: a tensor of whatever class is a tensor."""
    return function(*arguments) if isinstance(function, Function) else Unusable("of a class of its own")


def _reconstructed(kind: object, *_: object) -> object:
    return kind() if isinstance(kind, type) and issubclass(kind, StandIn) else StandIn()


def _made(kind: Callable[..., Any], *taken: type) -> Function:
    """What a pickle may make of values of some types, and of no others: a number would be a size."""

    def make(*arguments: Any) -> Any:
        for argument in arguments:
            if not isinstance(argument, taken):
                raise DamagedError(f"a container is said to be made of a {type(argument).__name__}")
        return kind(*arguments)

    return Function(make)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding in ("latin1", "latin-1", "iso-8859-1") else "utf-8")


def _same(value: Any, *_: object) -> Any:
    return value


def _unusable(kind: str) -> Function:
    return Function(lambda *_: Unusable(kind))


def _known() -> dict[tuple[str, str], Function]:
    """All that a file may name and more than a stand-in comes of, by module and name."""
    table = _made(Table, dict, list, tuple)
    many = (list, tuple, set, frozenset, dict)
    known = {
        ("collections", "OrderedDict"): table,
        ("collections", "defaultdict"): Function(lambda _factory=None, *given: Table(*given)),
        ("collections", "Counter"): _made(Tally, *many),
        ("_codecs", "encode"): Function(_encoded),
        ("builtins", "set"): _made(set, *many),
        ("builtins", "frozenset"): _made(frozenset, *many),
        ("builtins", "bytearray"): _made(_bytes, bytes, bytearray, str),
        ("builtins", "complex"): _made(complex, int, float),
        ("copyreg", "_reconstructor"): Function(_reconstructed),
        ("torch", "Size"): _made(tuple, list, tuple),
        ("torch", "device"): Function(lambda *given: ":".join(map(str, given))),
        ("torch.serialization", "_get_layout"): Function(str),
        ("torch._utils", "_rebuild_tensor"): Function(_rebuild),
        ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild),
        ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_v3),
        ("torch._utils", "_rebuild_parameter"): Function(_same),
        ("torch._utils", "_rebuild_parameter_with_state"): Function(_same),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): Function(_same),
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): Function(_same),
        ("torch._utils", "_rebuild_xla_tensor"): Function(_same),
        ("torch._utils", "_rebuild_sparse_tensor"): _unusable("sparse"),
        ("torch._utils", "_rebuild_sparse_csr_tensor"): _unusable("sparse"),
        ("torch._utils", "_rebuild_qtensor"): _unusable("quantised"),
        ("torch._utils", "_rebuild_nested_tensor"): _unusable("nested"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unusable("on the meta device, without values"),
        ("torch._utils", "_rebuild_wrapper_subclass"): _unusable("of a class of its own, such as a distributed tensor"),
        ("torch._tensor", "_rebuild_from_type"): Function(_from_type),
        ("torch._tensor", "_rebuild_from_type_v2"): Function(_from_type),
        ("torch.tensor", "_rebuild_from_type"): Function(_from_type),
        ("numpy", "dtype"): Function(NumpyType),
        ("numpy", "ndarray"): Function(lambda *_: NumpyArray()),
    }
    for module in ("numpy._core", "numpy.core"):
        known[f"{module}.multiarray", "scalar"] = Function(_numpy_scalar)
        known[f"{module}.multiarray", "_reconstruct"] = Function(lambda *_: NumpyArray())
        known[f"{module}.numeric", "_frombuffer"] = Function(_numpy_buffer)
    return known


def _bytes(raw: bytes | bytearray | str = b"", *_: str) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else bytes(raw)


KNOWN = _known()
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2, whose names older protocols keep


def _then(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    """One step of a pickle after another."""

    def both(unpickler: Any) -> None:
        first(unpickler)
        second(unpickler)

    return both


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle; it is Python's own in Python, since the one in C takes what memory a file asks for.

    Args:
        file: With ``read`` and ``readline``; left behind the pickle's end.
        persistent: Gives what stands under an identifier.
        nested: Reads a file of torch's that lies in a pickle as bytes.
        passed: Receives the names of classes and functions that are not known.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: Any,
        persistent: Callable[[Any], object],
        nested: Callable[[bytes], object],
        passed: dict[str, type[StandIn]],
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.persistent, self.nested, self.passed = persistent, nested, passed
        self._depths: dict[int, tuple[tuple[Any, ...], int]] = {}  # with the tuples, so that no number is given twice

    def find_class(self, module: str, name: str) -> Any:
        """What a file names: something inert, always."""
        module = RENAMED.get(module, module)
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return StorageKind(STORAGES[name])
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return Function(self.nested)
        full = f"{module}.{name}"
        if full not in self.passed:
            made = Sealed(name, (StandIn,), {"__slots__": (), "name": full})
            self.passed[full] = cast(type[StandIn], made)
        return self.passed[full]

    def persistent_load(self, pid: Any) -> Any:
        """What stands under an identifier."""
        return self.persistent(pid)

    def _bytearray(self) -> None:
        """Read a bytearray as bytes, of which the file cannot hold more than it has; Python would make room first."""
        self.load_binbytes8()  # type: ignore[attr-defined]

    def _tuple(self) -> None:
        """Make a tuple; as a key, one in another and so on for long enough would end the process."""
        made = self.stack[-1]  # type: ignore[attr-defined]
        depth = 1 + max((self._depths[id(one)][1] for one in made if id(one) in self._depths), default=0)
        if depth > DEPTH:
            raise DamagedError(f"containers lie in each other more than {DEPTH} deep")
        self._depths[id(made)] = made, depth

    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[_code[0]] = _then(dispatch[_code[0]], _tuple)


def unpickle(
    file: Any,
    persistent: Callable[[Any], object],
    nested: Callable[[bytes], object],
    passed: dict[str, type[StandIn]],
) -> Any:
    """Read one pickle; see :class:`InertUnpickler`.

    Raises:
        DamagedError: If it is none.
    """
    try:
        return InertUnpickler(file, persistent, nested, passed).load()
    except DamagedError:
        raise
    except Exception as error:  # whatever a machine does that is given nonsense to run
        raise DamagedError(str(error) or type(error).__name__) from error


def plain(value: Any) -> Any:
    """What an unpickled value holds: plain containers and values, tensors, and stand-ins as they are.

    Args:
        value: From :func:`unpickle`.

    Raises:
        DamagedError: If a tensor does not lie in its storage, or a container lies in itself or too deep in others.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, made: dict[int, Any]) -> Any:
    if isinstance(value, Record):
        return value.tensor()
    if isinstance(value, NumpyArray):
        numbers = value.tensor()
        return StandIn() if numbers is None else numbers
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if id(value) in made:  # what is referred to many times is made once
        if made[id(value)] is made:
            raise DamagedError("a container lies in itself")
        return made[id(value)]
    if depth > DEPTH:
        raise DamagedError(f"containers lie in each other more than {DEPTH} deep")
    made[id(value)] = made
    found: Any
    if isinstance(value, dict):
        filled = {_plain(key, depth + 1, made): _plain(one, depth + 1, made) for key, one in value.items()}
        found = Counter(filled) if isinstance(value, Tally) else filled
    else:
        found = type(value)(_plain(one, depth + 1, made) for one in value)
    made[id(value)] = found
    return found


def module_state(value: object) -> dict[str, Any] | None:
    """The tensors of a pickled ``nn.Module``, as its state dict would name them; None where it is none.

    Args:
        value: From :func:`unpickle`; its tensors stay as they are there.

    Raises:
        DamagedError: If it holds more modules than any network.
    """
    if not _is_module(value):
        return None
    found: dict[str, Any] = {}
    left: list[tuple[str, StandIn]] = [("", value)]
    for _ in range(MODULES):
        prefix, module = left.pop(0)
        attributes = module.attributes
        passing = attributes.get("_non_persistent_buffers_set", ())
        own = {**attributes["_parameters"], **attributes["_buffers"]}
        found |= {f"{prefix}{name}": one for name, one in own.items() if one is not None and name not in passing}
        inner = [(f"{prefix}{name}.", one) for name, one in attributes["_modules"].items() if _is_module(one)]
        left = inner + left
        if not left:
            return found
    raise DamagedError(f"it holds more than {MODULES} modules")


def _is_module(value: object) -> TypeGuard[StandIn]:
    return isinstance(value, StandIn) and all(
        isinstance(value.attributes.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
    )
