import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from project.errors import CheckpointError
from project.models import read_checkpoint, read_description, read_weights
from project.models.reading.folder import weights_file
from project.moments import read_statistics
from project.runtime.opening import open_file

READERS = (read_weights, read_description, read_checkpoint, read_statistics)


def test_a_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with open_file(tmp_path / "f", "The file") as file:
        assert file.read() == b"abc"
    (tmp_path / "link").symlink_to(tmp_path / "f")
    with open_file(tmp_path / "link", "The file") as file:
        assert file.read() == b"abc"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and sockets have no place among files there")
def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    cases = {
        "pipe": "pipe is a pipe, not a file",
        "socket": "socket is a socket, not a file",
        "/dev/zero": "/dev/zero is a device, not a file",
        "folder": "folder is a folder",  # without weights, or not a file
        "absent": "absent is not there",
        "file/below": "file/below is not there",
        "loop": "loop cannot be read: Too many levels",
        "long" * 100: "cannot be read: File name too long",
        "a\0b": "cannot be read: its name holds a null character",
    }
    wrong = []

    def read_all() -> None:
        for reader in READERS:
            for path, words in cases.items():
                try:
                    reader(weights_file(Path(path)) if path != "folder" else Path(path))
                except CheckpointError as error:
                    if words not in str(error):
                        wrong.append((reader, path, str(error)))
                else:
                    wrong.append((reader, path, "was read"))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        waiting = threading.Thread(target=read_all, daemon=True)
        waiting.start()
        waiting.join(60)
    assert not waiting.is_alive(), "it waits for ever"
    assert not wrong


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"abc")
    (tmp_path / "w.pt").chmod(0)
    for reader in READERS:
        with pytest.raises(CheckpointError, match=r"w.pt cannot be read: Permission denied"):
            reader(tmp_path / "w.pt")
