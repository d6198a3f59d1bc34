"""Two runs that want to write into one folder, or one file: the second is refused, and the dead hold nothing."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import started

from project.errors import ConfigurationError
from project.runtime import alone_in, lock, only_writer

HOLDING = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
REFUSAL = r"run is .*mine, into which another run is writing; choose another folder"


@contextmanager
def another(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which holds a lock until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with alone_in(folder, f"run is {folder}"):
        with pytest.raises(ConfigurationError, match=REFUSAL), alone_in(folder, f"run is {folder}"):
            pytest.fail("two at once")
        (folder / "result").touch()
        with alone_in(tmp_path / "other", "run is other"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "result"], "nothing else is left"
    with pytest.raises(ZeroDivisionError), alone_in(folder, f"run is {folder}"):
        raise ZeroDivisionError
    with alone_in(folder, f"run is {folder}"):
        pass


def test_a_folder_to_which_nothing_was_written_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "new" / "deep" / "mine", "run is mine"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    with alone_in(tmp_path / "old" / "mine", "run is mine"):
        (tmp_path / "old" / "beside").touch()
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["beside"]


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with another(folder / lock.NAME) as process:
        with pytest.raises(ConfigurationError, match=REFUSAL), alone_in(folder, f"run is {folder}"):
            pytest.fail("two at once")
        process.kill()
        process.wait()
        assert (folder / lock.NAME).exists(), "what a killed process leaves behind locks nothing"
        with alone_in(folder, f"run is {folder}"):
            pass
    assert not list(folder.iterdir())


def test_other_processes_of_a_run_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone_in(tmp_path, "run is here"):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with alone_in(tmp_path, "run is here"):
            pass
        assert (tmp_path / lock.NAME).exists()


def test_a_lock_that_was_removed_while_somebody_waited_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two would hold locks of one name, of which one is no longer there."""
    path, plain, taken = tmp_path / "lock", lock.fcntl.flock, [0]

    def slow(file: int, how: int) -> None:
        plain(file, how)
        taken[0] += 1
        if taken[0] == 1:
            path.unlink()

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    with only_writer(path, "no"), pytest.raises(ConfigurationError, match="no"), only_writer(path, "no"):
        pytest.fail("two at once")
    assert taken[0] == 2


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with alone_in(tmp_path, "run is here"):
        assert not list(tmp_path.iterdir())
    assert f"{tmp_path} lies on a file system without locks" in caplog.text


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match=r"lock cannot be written: Not a directory"),
        only_writer(tmp_path / "file" / "lock", "no"),
    ):
        pytest.fail("nothing is locked")


def test_a_process_that_was_copied_holds_nothing(tmp_path: Path) -> None:
    with alone_in(tmp_path, "run is here"):
        process = started(signal.pause)
    with alone_in(tmp_path, "run is here"):
        assert process.is_alive()
    process.kill()
    process.join()
