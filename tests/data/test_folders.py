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
    for domain, counts in ((art, {0: 5, 1: 10}), (photo, {0: 1, 1: 4})):
        train, test = (Counter(label for _, label in part) for part in (domain.train, domain.test))
        assert train + test == counts
        assert all(test[label] >= 1 and train[label] >= 1 for label, count in counts.items() if count > 1)
    assert photo.notes == ("domain photo: the one picture of class cat trains, and none tests it",)
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
    assert len(data.read()[0].train) + len(data.read()[0].test) == 15


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


def test_leftovers_are_passed_over_and_counted(folders: Make, draw: Callable[..., Path], tmp_path: Path) -> None:
    expected = folders(TREE).read()
    for name in (
        "__MACOSX/art/dog/._0.png", "art/dog/.DS_Store", "art/dog/Thumbs.db", "art/dog/@eaDir/0.png/THUMB.jpg",
        "art/@eaDir/dog.png", "photo/__MACOSX/dog/._0.png", "photo/desktop.ini", "photo/.cache/0.png",
    ):  # fmt: skip
        (tmp_path / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / name).write_text("left")
    art, photo = ImageFolders(tmp_path / "folders").read()
    assert [art.train, art.test, photo.train, photo.test] == [
        part for domain in expected for part in (domain.train, domain.test)
    ]
    words = "hidden files and such as systems leave"
    assert art.notes[0] == f"{tmp_path / 'folders'}: passed over are 1 file that is hidden or a system's"
    assert art.notes[1:] == (f"domain art: passed over are 4 {words}",)
    assert f"domain photo: passed over are 3 {words}" in photo.notes


def test_pictures_that_are_not_opened_are_told(folders: Make, draw: Callable[..., Path], tmp_path: Path) -> None:
    data = folders(TREE)
    for name in ("a.HEIC", "b.heic", "c.svg", "d.txt"):
        (tmp_path / "folders/art/dog" / name).touch()
    draw("folders/art/cat/a.png").rename(tmp_path / "folders/art/cat/a.jfif")
    draw("folders/photo/above.png")
    art, photo = data.read()
    assert len(art.train) + len(art.test) == 16
    words = "domain art: pictures of kinds that are not opened are passed over (2 .heic, 1 .svg)"
    assert art.doubts == (f"{words}; save them as .png or .jpg.",)
    assert art.notes == ("domain art: passed over are 1 file that is no picture",)
    above = tmp_path / "folders/photo/above.png"
    assert photo.doubts == (f"domain photo: pictures in no class's folder are passed over (1, such as {above}).",)
    with pytest.warns(UserWarning, match=r"not opened .*2 \.heic"):
        art.tell()


def test_a_class_is_no_split(folders: Make) -> None:
    """A train is a class of DomainNet; its pictures lie in its folder."""
    (photo,) = folders({"photo": {"train": 3, "test": 2, "tree": 3}}).read()
    assert photo.classes == ("test", "train", "tree")


@pytest.mark.parametrize(
    ("tree", "words", "below"),
    [
        (
            {"images/dog": 3, "images/cat": 3},
            r"are images, .*\(cat, dog\), or images is a folder too",
            "images",
        ),
        ({"train/dog": 3, "train/cat": 3, "val/dog": 3, "val/cat": 1}, r"'below: train and test: val'", "train"),
        ({"train/dog": 3, "train/cat": 3, "cat": 3}, r"classes are cat, train, .*or train is a folder too", "train"),
        ({"old/dog": 3, "old/cat": 3, "new/dog": 3}, r"classes are new, old, .*below: new, or another", "old"),
    ],
)
def test_a_folder_too_many_is_refused(folders: Make, tree: dict[str, int], words: str, below: str) -> None:
    data = folders({"photo": tree})
    with pytest.raises(DataError, match=r"photo can be read in two ways: .*" + words):
        data.read()
    assert ImageFolders(data.root, below=".").read()[0].classes == tuple(sorted({name.split("/")[0] for name in tree}))
    assert ImageFolders(data.root, below=below).read()[0].classes == ("cat", "dog")


def test_folders_below_classes_are_no_classes(folders: Make) -> None:
    (photo,) = folders({"photo": {"dog/clip1": 2, "dog/clip2": 2, "cat/clip3": 2}}).read()
    assert photo.classes == ("cat", "dog")
    (other,) = folders({"other": {"dog/images": 2, "cat/images": 2}}, domains=["other"]).read()
    assert other.classes == ("cat", "dog")


def test_test_pictures_are_taken_from_their_folder(folders: Make) -> None:
    tree = {"train/dog": 4, "train/cat": 3, "test/dog": 2, "val/cat": 1}
    (photo,) = folders({"photo": tree}).read()
    assert photo.classes == ("cat", "dog")
    assert Counter(path.parent.parent.name for path, _ in photo.train) == {"train": 7, "val": 1}
    assert [(path.parent.name, label) for path, label in photo.test] == [("dog", 1)] * 2
    assert photo.notes == ("domain photo: its pictures in test test, those in train train, and val trains, too",)


def test_a_named_folder_tests(folders: Make) -> None:
    data = folders({"photo": {"dog": 4, "cat": 3, "held_out/dog": 2}}, test="held_out")
    (photo,) = data.read()
    assert photo.classes == ("cat", "dog")
    assert (len(photo.train), [path.parent.parent.name for path, _ in photo.test]) == (7, ["held_out"] * 2)
    with pytest.raises(DataError, match=r"holds class 'cow', of which there are no training pictures"):
        folders({"photo": {"held_out/cow": 2}}, test="held_out").read()
    with pytest.raises(DataError, match=r"test is 'gone', which is not in .*photo"):
        ImageFolders(data.root, test="gone").read()
    with pytest.raises(DataError, match=r"below is 'gone', which is no folder in .*photo"):
        ImageFolders(data.root, below="gone").read()


@pytest.mark.parametrize("place", ["photo/test.txt", "photo_test.txt", "photo/mine.txt"])
def test_test_pictures_are_taken_from_a_list(folders: Make, place: str) -> None:
    data = folders({"photo": {"dog": 4, "cat": 3}}, test="mine.txt" if "mine" in place else None)
    (data.root / place).write_text("dog/0.png 7\nphoto/cat/1.png\n\ndog/gone.png 1\ndog/3.png\n")
    (photo,) = data.read()
    assert [path.relative_to(data.root / "photo").as_posix() for path, _ in photo.test] == [
        "dog/0.png", "cat/1.png", "dog/3.png",
    ]  # fmt: skip
    assert [label for _, label in photo.test] == [1, 0, 1]
    assert not set(photo.train) & set(photo.test)
    assert len(photo.train) == 4
    (doubt,) = photo.doubts
    assert doubt.startswith(f"1 of 4 pictures in {data.root / place} (25 %) are not there: dog/gone.png")
    (data.root / place).write_text("gone/0.png\n")
    with pytest.raises(DataError, match=r"names no picture of .*photo"):
        data.read()


def test_classes_stand_in_the_order_that_is_said(folders: Make) -> None:
    names = ["10", "2", "1", "TV", "Table", "apple", "Bed", "a10b", "a9b"]
    data = folders({"photo": dict.fromkeys(names, 2)})
    assert data.read()[0].classes == tuple(sorted(names))
    natural = ImageFolders(data.root, class_order="natural").read()[0]
    assert natural.classes == ("1", "2", "10", "a9b", "a10b", "apple", "Bed", "Table", "TV")
    assert {(path, natural.classes[label]) for path, label in (*natural.train, *natural.test)} == {
        (path, path.parent.name) for path in data.root.glob("*/*/*")
    }
    assert ImageFolders(data.root, class_order=names).read()[0].classes == tuple(names)
    with pytest.raises(ConfigurationError, match=r"class_order does not list .*: not listed 10; not there cow\."):
        ImageFolders(data.root, class_order=["cow", *names[1:]]).read()
    for order in ("alphabetical", [], ["a", "a"], [1, 2], 3):
        with pytest.raises(ConfigurationError, match=r"class_order (is|holds) "):
            ImageFolders(data.root, class_order=order)  # type: ignore[arg-type]


def test_hidden_files_and_folders_called_like_pictures_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.JPG", "._a.png", ".cache/c.png", "d.png/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    (found,) = PictureFolder(tmp_path).read()
    assert [str(path.relative_to(tmp_path)) for path, _ in found.train] == ["a.png", "d.png/e.png", "deep/b.JPG"]
    for root, words in ((tmp_path / "gone", "gone is not there"), (tmp_path / "a.png", r"a\.png is no folder")):
        with pytest.raises(DataError, match=words):
            PictureFolder(root).read()
