import os
import re
from pathlib import Path

import pytest
import torch

from project.errors import ConfigurationError
from project.runtime import atomic_file, atomic_save, atomic_text
from project.runtime.saving import atomic_folder, check_path, check_target, check_writable


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


def test_every_name_that_is_allowed_can_be_written(tmp_path: Path) -> None:
    """Drafts and locks stand beside a file under names that follow from its own."""
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    for path in (tmp_path / ("n" * (most - 6)), tmp_path / ("é" * (most // 2 - 3))):
        check_target(path, f"out is {path}")
        atomic_text("it", path)
        path.with_name(f".{path.name}.lock").touch()
        assert path.read_text() == "it"
        check_target(path, f"out is {path}")


@pytest.mark.parametrize("name", ["n" * 300, "é" * 150, "/".join(["n" * 200] * 25), "a\0b", "new/" + "n" * 300])
def test_what_nothing_can_be_called_is_refused(name: str, tmp_path: Path) -> None:
    for check in (check_path, check_target, check_writable):
        with pytest.raises(ConfigurationError, match=f"^out is {re.escape(name)}, which "):
            check(tmp_path / name, f"out is {name}")
    assert not list(tmp_path.iterdir())


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        for check in (check_target, check_writable):
            with pytest.raises(ConfigurationError, match=r"^out is it, which .*link"):
                check(path, "out is it")


def test_a_folder_of_any_name_that_is_allowed_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * (os.pathconf(tmp_path, "PC_NAME_MAX")))
    with atomic_folder(path) as draft:
        (draft / "file").touch()
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "file").exists()
