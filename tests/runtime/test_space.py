"""Whether there is room is asked before the work; a disk that fails is told of in one sentence, and no draft stays."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from disks import drafts, failing, free
from meeting import together
from safetensors.torch import save_file

from project.errors import MergeError, StorageError
from project.models.reading.packing import write_packed
from project.runtime import Progress, World, atomic_file, atomic_save, atomic_text, waiting
from project.runtime.progress import taken_up_again
from project.runtime.saving import atomic_path, tensor_bytes
from project.runtime.space import FAILING, check_space, present_bytes
from project.runtime.spill import Spilled

TENSORS = {"a": torch.arange(50_000.0), "b": torch.arange(9)}
MB = 10**6


@contextmanager
def largest_file(count: int) -> Iterator[None]:
    """While open, the system lets no file of this process have more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def through_path(content: dict[str, torch.Tensor], path: Path) -> None:
    with atomic_path(path) as draft:
        save_file(content, draft)


WRITERS: dict[str, Callable[[Path], None]] = {
    "torch": lambda path: atomic_save(TENSORS, path),
    "safetensors": lambda path: through_path(TENSORS, path),
    "packed": lambda path: write_packed("key", {}, TENSORS, path),
    "text": lambda path: atomic_text("ä" * 50_000, path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", sorted(FAILING))
def test_a_disk_that_fails_is_told_of_and_leaves_what_was_there(tmp_path: Path, writer: str, number: int) -> None:
    path = tmp_path / "new" / "file"
    WRITERS[writer](path)
    before = path.read_bytes()
    with failing("file$", number), pytest.raises(StorageError, match=rf"^{path} cannot be written: as .*\.$"):
        WRITERS[writer](path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_the_system_cuts_short_is_told_of(tmp_path: Path, writer: str) -> None:
    """Each library has words of its own for it, or none."""
    reason = os.strerror(errno.EFBIG)
    with largest_file(70_000), pytest.raises(StorageError, match=rf"^{tmp_path / 'file'} cannot be written: {reason}"):
        WRITERS[writer](tmp_path / "file")
    assert not list(tmp_path.iterdir())
    WRITERS[writer](tmp_path / "file")
    assert (tmp_path / "file").stat().st_size > 70_000


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/below cannot be written: Not a directory\.$"):
        atomic_text("", tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"cannot be written: File name too long\.$"):
        atomic_text("", tmp_path / ("n" * 300))


def test_what_is_not_the_disks_fault_stays_what_it_is(tmp_path: Path) -> None:
    def broken() -> None:
        try:
            raise FileNotFoundError(errno.ENOENT, "of something else")
        except FileNotFoundError as error:
            raise ValueError("content") from error

    with pytest.raises(ValueError, match="content"), atomic_file(tmp_path / "file"):
        broken()
    with pytest.raises(MergeError, match="sentence"), atomic_file(tmp_path / "file"):
        raise MergeError("sentence")
    assert not list(tmp_path.iterdir())


def test_what_goes_to_one_disk_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    one, other, third = (tmp_path / name for name in ("not/yet", "statistics", "elsewhere/students"))
    free(monkeypatch, default=5 * MB, elsewhere=2 * MB)
    check_space({one: 3 * MB, other: 2 * MB, third: 2 * MB})
    with pytest.raises(
        StorageError,
        match=rf"^{one} needs about 3\.0 MB, {other} needs about 2\.1 MB, together 5\.1 MB, but 5\.0 "
        r"MB are free on that disk; free some, or write elsewhere\.$",
    ):
        check_space({one: 3 * MB, other: 2 * MB + 10**5, third: MB})
    with pytest.raises(StorageError, match=rf"^{third} needs about 3\.0 MB, but 2\.0 MB are free"):
        check_space({one: 3 * MB, third: 3 * MB})
    check_space({third: 0, one: -(10**18), other: 5 * MB})


def test_a_disk_without_a_figure_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, default=0)
    with pytest.raises(StorageError, match=r"0\.0 kB are free"):
        check_space({tmp_path: 1})
    monkeypatch.setattr("disks.TOTAL", 0)
    check_space({tmp_path: 1})


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_begun_that_has_no_room(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if writer == "safetensors":  # whose size nobody has told
        monkeypatch.setitem(WRITERS, writer, lambda path: _sized(path))
    free(monkeypatch, default=90_000)
    with pytest.raises(StorageError, match=rf"^{tmp_path / 'new' / 'file'} needs about \d+\.\d kB, but 90\.0 kB are"):
        WRITERS[writer](tmp_path / "new" / "file")
    assert not list(tmp_path.iterdir())


def _sized(path: Path) -> None:
    with atomic_path(path, tensor_bytes(TENSORS)) as draft:
        save_file(TENSORS, draft)


def test_bytes_of_tensors_are_those_that_are_written(tmp_path: Path) -> None:
    whole = torch.randn(30_000)
    nested = {"a": [whole[:10], {"b": whole[10:]}], "c": (torch.ones(7), 3, "text"), "d": torch.nn.Parameter(whole)}
    assert tensor_bytes(nested) == 4 * 30_000 + 4 * 7
    atomic_save(nested, tmp_path / "file")
    assert 0 <= (tmp_path / "file").stat().st_size - tensor_bytes(nested) < 10_000
    assert present_bytes(tmp_path) == (tmp_path / "file").stat().st_size
    assert present_bytes(tmp_path / "nowhere") == 0


def test_what_waits_on_disk_has_its_room_or_is_told_of(tmp_path: Path) -> None:
    """A file with holes on a full disk would end the process by a signal."""
    folder = tmp_path / "waiting"
    with largest_file(70_000), pytest.raises(StorageError, match=rf"^{folder} cannot be written: "):
        waiting([TENSORS["b"], TENSORS["a"]], folder)
    assert not list(folder.iterdir())
    spilled = Spilled(TENSORS["a"], folder)
    assert torch.equal(spilled.get(), TENSORS["a"])


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_room_is_made_on_any_file_system(number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it can set bytes aside or not, or Python does not know how to ask."""

    def refuse(*_: int) -> None:
        assert number is not None
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    large = torch.arange(700_000.0)
    assert torch.equal(Spilled(large, tmp_path).get(), large)
    with largest_file(70_000), pytest.raises(StorageError, match=os.strerror(errno.EFBIG)):
        Spilled(large, tmp_path)


def test_where_one_process_cannot_keep_its_work_all_stop(tmp_path: Path) -> None:
    def keep(world: World) -> str:
        try:
            Progress(tmp_path / str(world.rank), world).keep_together("layer", {"values": torch.ones(3)})
        except (StorageError, MergeError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    assert together(3, keep) == [""] * 3
    with failing("/1/", errno.ENOSPC):
        told = together(3, keep)
    assert told[1].startswith("StorageError")
    assert (
        told[0]
        == told[2]
        == "MergeError: another process could not keep what it has finished; its own message says why."
    )
    assert not drafts(tmp_path)


def test_a_note_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    cause = pytest.raises(MergeError, match="the cause")
    with failing(r"failed\.txt$", errno.ENOSPC) as failed, cause, taken_up_again(tmp_path):
        raise MergeError("the cause")
    assert len(failed) == 1
    assert not drafts(tmp_path)
