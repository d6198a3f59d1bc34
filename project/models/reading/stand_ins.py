"""What stands for the objects that a file names: where values lie in it, and stand-ins that remember and do nothing."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

FEW = 2**20  # elements that a tensor may repeat, whatever its storage holds: an expanded one is small


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
