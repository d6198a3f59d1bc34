"""The reader of plain folders."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from project.data import ImageFolders, PictureFolder
from project.errors import ConfigurationError, DataError

Make = Callable[..., ImageFolders]
TREE = {"art": {"dog": 10, "cat": 5}, "photo": {"dog": 4, "cat": 1}}


def test_every_class_is_split(folders: Make) -> None:
    art, photo = folders(TREE).read()
    assert (art.name, photo.name) == ("art", "photo")
    assert art.classes == photo.classes == ("cat", "dog")
    assert Counter(label for _, label in art.test) == {0: 1, 1: 2}
    assert Counter(label for _, label in photo.train) == {0: 1, 1: 3}
    assert not set(art.train) & set(art.test)
    assert len(set(art.train) | set(art.test)) == 15


def test_the_split_is_one_of_the_seed(folders: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folders(TREE).read()
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(listing(path))))
    assert ImageFolders(tmp_path / "folders").read() == first
    assert ImageFolders(tmp_path / "folders", seed=1).read() != first


def test_other_files_are_not_pictures(folders: Make, tmp_path: Path) -> None:
    data = folders(TREE)
    (tmp_path / "folders/art/.cache").mkdir()
    (tmp_path / "folders/art/dog/notes.txt").write_text("no picture")
    (tmp_path / "folders/readme.txt").write_text("no domain")
    assert data.read()[0].classes == ("cat", "dog")
    assert len(data.read()[0].train) == 12


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent is not there; put pictures there as <domain>/<class>/<picture>"):
        ImageFolders(tmp_path / "absent").read()


def test_empty_folders_are_told(folders: Make, tmp_path: Path) -> None:
    data = folders(TREE)
    (tmp_path / "folders/void").mkdir()
    with pytest.raises(DataError, match="Domain void has no pictures"):
        data.read()
    (tmp_path / "folders/void/dog").mkdir()
    with pytest.raises(DataError, match=r"void/dog holds no pictures"):
        data.read()
    assert ImageFolders(tmp_path / "folders", ["photo"]).read()[0].name == "photo"


def test_impossible_arguments(folders: Make) -> None:
    with pytest.raises(ConfigurationError, match=r"domains is \['oil'\]; allowed: .*art, photo"):
        folders(TREE, domains=["oil"]).read()
    with pytest.raises(ConfigurationError, match=r"test_fraction is 1.0"):
        ImageFolders("data", test_fraction=1.0)


def test_hidden_files_and_folders_called_like_pictures_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.JPG", "._a.png", ".cache/c.png", "d.png/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    (found,) = PictureFolder(tmp_path).read()
    assert [str(path.relative_to(tmp_path)) for path, _ in found.train] == ["a.png", "d.png/e.png", "deep/b.JPG"]
    for root, words in ((tmp_path / "gone", "gone is not there"), (tmp_path / "a.png", r"a\.png is no folder")):
        with pytest.raises(DataError, match=words):
            PictureFolder(root).read()
