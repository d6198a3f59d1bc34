"""The forms that files of weights have: torch's archives, its older files, safetensors."""

import hashlib
import io
import mmap
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from project.errors import CheckpointError
from project.models.reading.foreign import archive_that_is_none, file_that_is_none
from project.models.reading.inert import module_state, plain, unpickle
from project.models.reading.stand_ins import DamagedError, Record, StandIn, Storage, StorageKind
from project.runtime.opening import open_file

MAGIC = 0x1950A86A20F9469CFC6C  # first number of files from before torch 1.6
PROTOCOL = 1001
LONGEST = 80  # characters of a name in a message
HEADER = 30  # bytes of a zip file's header before a name
Form = Literal["archive", "older", "safetensors"]
"""Torch's archives; what torch wrote before 1.6, and other pickles; safetensors."""
TENSORS = re.compile(r"torch\.(.+\.)?(\w*Tensor|Parameter|Buffer)")  # classes of tensors, whatever they do beside


class Opened:
    """A file in memory as the system maps it, which its reader looks at as often as it likes.

    Args:
        path: The file.
        what: What messages call it.

    Raises:
        CheckpointError: If it is no file, cannot be read, or is empty.
    """

    def __init__(self, path: Path, what: str = "The file of weights") -> None:
        self.path = path
        with open_file(path, what) as file:
            try:
                # copied where somebody writes to it, so that the file itself stays as it is
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:  # ValueError: empty
                raise CheckpointError(f"{path} is not a file of weights: it is empty.") from error

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its content, in hexadecimal."""
        return hashlib.sha256(self.bytes).hexdigest()


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds; see :func:`project.models.reading.inert.plain`.

    Args:
        opened: The file.
        tree: What it holds, tensors as records of where they lie; of safetensors name -> tensor.
        metadata: Strings that stand beside the tensors of safetensors.
        passed: Names of classes and functions that the file names and that were not looked for.
        form: How it is packed.
    """

    opened: Opened
    tree: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    form: Form = "archive"

    def plain(self, value: Any) -> Any:
        """A part of the tree with its tensors, on the CPU: they are the file's own bytes, not a copy.

        Raises:
            CheckpointError: If a tensor does not lie where it is said to, or the archive's checksum of it is another.
        """
        try:
            return plain(value)
        except DamagedError as error:
            raise CheckpointError(f"{self.opened.path} is truncated or damaged: {error}.") from error


def read_content(path: str | Path, copied: bool = False) -> Content:
    """Read a file of weights, whatever its suffix and form, without importing or calling anything that it names.

    Args:
        path: The file.
        copied: Whether tensors shall have memory of their own, for those who go on using them.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another kind: the message says of which, and
            what to do.
    """
    path = Path(path)
    opened = Opened(path)
    start = opened.bytes[:256]
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 100_000_000:
        return _safetensors(opened)
    if what := file_that_is_none(start):
        raise CheckpointError(f"{path} is {what.format(path=path)}.")
    reader = Reader(opened.bytes, copied)
    try:
        if start.startswith(b"PK\x03\x04"):
            tree = _archive(reader, path)
        elif start[257:262] == b"ustar" or opened.bytes[257:262] == b"ustar":
            tree = _tar(reader, path)
        elif start.startswith(b"\x80"):
            tree = _pickles(reader)
        else:
            raise CheckpointError(f"{path} is not a file of weights, neither of PyTorch nor safetensors.")
        tree = _around(tree)
    except DamagedError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}.") from error
    passed = (shown(name) for name in reader.passed if not TENSORS.fullmatch(name))
    form: Form = "archive" if start.startswith(b"PK") else "older"
    return Content(opened, tree, passed=tuple(sorted(passed)), form=form)


def _around(tree: Any) -> Any:
    """The attributes of an object that holds a network, such as fastai's Learner, as a mapping; all else as it is."""
    if not isinstance(tree, StandIn) or module_state(tree) is not None:
        return tree
    return dict(tree.attributes) if any(module_state(one) is not None for one in tree.attributes.values()) else tree


def shown(name: str) -> str:
    """A name that a file holds, fit for a line of text, whatever it holds."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"


class Reader:
    """What the forms have in common: bytes, from which pickles and storages are read.

    Args:
        data: The bytes of a file, or of one in a pickle.
        copied: Whether storages are copied.
        nested: How many files this one lies in.
    """

    def __init__(self, data: mmap.mmap | bytes, copied: bool = False, nested: int = 0) -> None:
        self.data, self.copied, self.nested = data, copied, nested
        self.view = memoryview(data)
        self.passed: dict[str, type[StandIn]] = {}
        self.places: dict[Any, Callable[[], memoryview]] = {}
        self.fetched: dict[Any, memoryview] = {}

    def unpickle(self, file: Any, persistent: Callable[[Any], object]) -> Any:
        """Read one pickle; see :func:`~project.models.reading.inert.unpickle`."""
        return unpickle(file, persistent, self.inner, self.passed)

    def number(self, file: Any, persistent: Callable[[Any], object]) -> int:
        """Read a pickle of one number, not negative."""
        found = self.unpickle(file, persistent)
        if type(found) is not int or found < 0:
            raise DamagedError(f"where a number belongs stands {type(found).__name__}")
        return found

    def inner(self, data: bytes) -> object:
        """Read a file that lies in a pickle, as tensors do which were not written by ``torch.save``."""
        if self.nested > 1 or not isinstance(data, bytes):
            raise DamagedError("files lie in each other, or a file is no bytes")
        reader = Reader(data, self.copied, self.nested + 1)
        reader.passed = self.passed
        return _archive(reader, None) if data.startswith(b"PK\x03\x04") else _pickles(reader)

    def fetch(self, key: Any, width: int = 1) -> memoryview:
        """The bytes of a storage, the same memory whenever they are asked for.

        Args:
            key: Its name.
            width: Bytes of the numbers that they are to be read as: memory has these at multiples of it alone, while a
                file may have them anywhere.
        """
        if key not in self.fetched:
            if key not in self.places:
                raise DamagedError(f"storage {key} is missing")
            self.fetched[key] = self.places[key]()
            if self.copied:
                self.fetched[key] = memoryview(bytearray(self.fetched[key]))
        found = self.fetched[key]
        if found.readonly or (len(found) and np.frombuffer(found, np.uint8).ctypes.data % width):
            self.fetched[key] = memoryview(bytearray(found))
        return self.fetched[key]

    def part(self, start: int, size: int) -> memoryview:
        """Bytes of the file.

        Raises:
            DamagedError: If it ends before them.
        """
        if start < 0 or size < 0 or start + size > len(self.view):
            raise DamagedError(f"it ends at byte {len(self.view)}, before {start + size}")
        return self.view[start : start + size]

    def storage(self, identifier: Any) -> Storage:
        """A storage, from what a pickle refers to it by.

        Raises:
            DamagedError: If that is something else.
        """
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise DamagedError("it refers to something that is no storage")
        _, kind, key, _, count, *view = identifier
        if not isinstance(kind, StorageKind) or type(count) is not int or not isinstance(key, str | int):
            raise DamagedError("it refers to a storage of no kind or size")
        start = 0
        if view and view[0] is not None:
            _, start, count = view[0]
        return Storage(key, kind.dtype, count, self.fetch, start)


def _nothing(identifier: Any) -> object:
    raise DamagedError("it refers to something that is not in it")


def _archive(reader: Reader, path: Path | None) -> Any:
    """A zip archive, as torch writes them since 1.6."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(reader.data) if isinstance(reader.data, bytes) else _file(reader.data))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error) as error:
        raise DamagedError(str(error) or type(error).__name__) from error
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else ""
    if f"{folder}constants.pkl" in records or f"{folder}archive_format" in records or not folder:
        if path is None:
            raise DamagedError("a file in it holds no tensors")
        raise CheckpointError(archive_that_is_none(records, path))
    if sum(info.file_size for info in records.values()) > len(reader.view):
        raise DamagedError("its parts are larger than itself; they are compressed, or lie in each other")
    checked = records[pickles[0]].CRC != 0  # torch can be told to write none, and writes zeros then

    def content(name: str) -> memoryview:
        info = records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise DamagedError(f"{name} is compressed or encrypted, which torch never writes; unpack and store it")
        header = reader.part(info.header_offset, HEADER)
        start = info.header_offset + HEADER + sum(struct.unpack("<HH", header[26:30]))
        found = reader.part(start, info.file_size)
        if checked and zlib.crc32(found) != info.CRC:
            raise DamagedError(f"the checksum of {name} is another than was written")
        return found

    order = bytes(content(f"{folder}byteorder")).decode("latin1") if f"{folder}byteorder" in records else "little"
    swapped = order != sys.byteorder

    def place(name: str, size: int) -> Callable[[], memoryview]:
        return lambda: _swapped(content(name), size) if swapped else content(name)

    def persistent(identifier: Any) -> object:
        storage = reader.storage(identifier)
        name = f"{folder}data/{storage.key}"
        if name in records:
            reader.places[storage.key] = place(name, storage.dtype.itemsize)
        return storage

    return reader.unpickle(io.BytesIO(content(pickles[0])), persistent)


def _file(data: mmap.mmap) -> Any:
    """The file that was mapped, for those who read it by asking for bytes."""
    data.seek(0)
    return data


def _swapped(data: memoryview, size: int) -> memoryview:
    """Numbers in the other order of bytes."""
    return memoryview(bytearray(np.frombuffer(data, f"u{size}").byteswap().tobytes())) if size > 1 else data


def _pickles(reader: Reader) -> Any:
    """Pickles one after another and the storages behind them, as torch wrote before 1.6; or one pickle of anybody's."""
    file: Any = io.BytesIO(reader.data) if isinstance(reader.data, bytes) else _file(reader.data)
    known: dict[Any, Storage] = {}

    def persistent(identifier: Any) -> object:
        if isinstance(identifier, tuple) and identifier[:1] == ("module",) and len(identifier) > 1:
            return identifier[1]
        storage = reader.storage(identifier)
        whole = identifier[4]
        if storage.key not in known or known[storage.key].count < whole:
            known[storage.key] = Storage(storage.key, storage.dtype, whole, reader.fetch)
        return storage

    first = reader.unpickle(file, persistent)
    if first != MAGIC or isinstance(first, StandIn):
        return first
    if reader.number(file, persistent) != PROTOCOL:
        raise DamagedError("it is of a version of torch's files that there is not")
    system = reader.unpickle(file, persistent)
    tree, keys = reader.unpickle(file, persistent), reader.unpickle(file, persistent)
    if not isinstance(system, dict) or not isinstance(keys, list):
        raise DamagedError("its list of storages is missing")
    little = system.get("little_endian", True) is True
    position = file.tell()
    for key in keys:
        storage = known.get(key)
        (count,) = struct.unpack("<q" if little else ">q", reader.part(position, 8))
        if storage is None or count != storage.count:
            raise DamagedError(f"storage {key} is said to have another size")
        size = count * storage.dtype.itemsize
        reader.places[key] = _lying(reader, position + 8, size, storage.dtype.itemsize, little)
        position += 8 + size
    reader.part(position, 0)
    return tree


def _lying(reader: Reader, start: int, size: int, width: int, little: bool) -> Callable[[], memoryview]:
    """Bytes that lie somewhere in a file."""
    found = reader.part(start, size)
    return lambda: found if little == (sys.byteorder == "little") else _swapped(found, width)


def _tar(reader: Reader, path: Path) -> Any:
    """A tar archive of storages, tensors and a pickle, as torch wrote before 0.2."""
    file: Any = _file(reader.data)  # type: ignore[arg-type]
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            places = {member.name: member.offset_data for member in archive.getmembers() if member.isreg()}
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DamagedError(str(error) or type(error).__name__) from error
    if not {"storages", "tensors", "pickle"} <= places.keys():
        held = ", ".join(list(places)[:3]) or "nothing"
        raise CheckpointError(f"{path} is a tar archive (in it: {held}); unpack it: tar -xf {path}.")
    storages: dict[Any, Storage] = {}
    tensors: dict[Any, Record] = {}
    try:
        file.seek(places["storages"])
        for _ in range(reader.number(file, _nothing)):
            key, _, kind = reader.unpickle(file, _nothing)
            (count,) = struct.unpack("<q", file.read(8))
            size = count * kind.dtype.itemsize
            reader.places[key] = _lying(reader, file.tell(), size, kind.dtype.itemsize, True)
            storages[key] = Storage(key, kind.dtype, count, reader.fetch)
            file.seek(size, io.SEEK_CUR)
        for key, root, start, count in reader.unpickle(file, _nothing):
            storages[key] = Storage(root, storages[root].dtype, count, reader.fetch, start)
        file.seek(places["tensors"])
        for _ in range(reader.number(file, _nothing)):
            key, storage, _ = reader.unpickle(file, _nothing)
            dims, _ = struct.unpack("<ii", file.read(8))
            if not 0 <= dims < 64:
                raise DamagedError(f"a tensor is said to have {dims} dimensions")
            numbers = struct.unpack(f"<{2 * dims + 1}q", file.read(8 * (2 * dims + 1)))
            tensors[key] = Record(
                storages[storage], numbers[-1], numbers[:dims], numbers[dims : 2 * dims], storages[storage].dtype
            )
        file.seek(places["pickle"])
        return reader.unpickle(file, lambda one: one[0] if isinstance(one, tuple) else tensors[int(one)])
    except (struct.error, AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise DamagedError(f"its storages or tensors are not what they should be: {error!r}") from error


def _safetensors(opened: Opened) -> Content:
    """A file of safetensors, which holds no pickles."""
    path = opened.path
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Content(opened, tensors, metadata, form="safetensors")
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {shown(reason)}.") from error
