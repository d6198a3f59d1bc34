"""Reading pickles without importing or calling anything that they name.

A pickle is a program that makes objects: it names classes and functions, which are imported, and calls them. Here
nothing is imported. What torch and numpy write tensors and numbers by is known under its name and comes back as a
description of where values lie; everything else becomes a stand-in, which remembers what it was given and does nothing.
No object that a pickle gets hold of can be changed by it beyond that, so that one file leaves nothing behind for the
next.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, TypeGuard, cast

import torch

from project.models.reading.stand_ins import (
    DamagedError,
    Function,
    NumpyArray,
    NumpyType,
    Record,
    Sealed,
    StandIn,
    Storage,
    StorageKind,
    Table,
    Tally,
    Unusable,
)

DEPTH = 200  # containers in containers, at most: no file that somebody trained has more, and Python ends near 1000
MODULES = 100_000  # modules in a module: one that holds itself has no end
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
        prefix, module = left.pop()
        attributes = module.attributes
        passing = attributes.get("_non_persistent_buffers_set", ())
        own = {**attributes["_parameters"], **attributes["_buffers"]}
        found |= {f"{prefix}{name}": one for name, one in own.items() if one is not None and name not in passing}
        inner = [(f"{prefix}{name}.", one) for name, one in attributes["_modules"].items() if _is_module(one)]
        left += reversed(inner)
        if not left:
            return found
    raise DamagedError(f"it holds more than {MODULES} modules")


def _is_module(value: object) -> TypeGuard[StandIn]:
    return isinstance(value, StandIn) and all(
        isinstance(value.attributes.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
    )
