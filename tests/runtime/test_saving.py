from pathlib import Path

import pytest
import torch

from project.runtime import atomic_file, atomic_save


def test_saved_content_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.pt"
    atomic_save({"a": torch.arange(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"old")
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        atomic_save({"a": torch.ones(2), "b": (value for value in range(3))}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_save({}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode
