"""Shapes: what is drawn is a function of its four numbers, and comes back as it was written."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from project.data import DomainNet, Shapes
from project.data.shapes import dataset
from project.data.shapes.render import render
from project.data.shapes.scene import OBJECTS
from project.data.shapes.styles import STYLES
from project.errors import ConfigurationError, DataError

SMALL = {"size": 12, "train_per_class": 2, "test_per_class": 1}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_there_are_enough_classes_and_domains() -> None:
    assert len(OBJECTS) >= 10
    assert len(STYLES) >= 4


@pytest.mark.parametrize("domain", STYLES)
@pytest.mark.parametrize("name", OBJECTS)
def test_every_class_shows_in_every_domain(domain: str, name: str) -> None:
    image = render(domain, name, 0, 24, 0)
    assert image.size == (24, 24)
    assert image.mode == "RGB"
    assert np.asarray(image).std() > 5


def test_pictures_differ_by_each_of_their_numbers() -> None:
    one = ("clipart", "car", 0, 16, 0)
    others = [("sketch", *one[1:]), ("clipart", "cup", *one[2:]), (*one[:2], 1, 16, 0), (*one[:4], 1)]
    assert render(*one).tobytes() == render(*one).tobytes()
    assert all(render(*one).tobytes() != render(*other).tobytes() for other in others)


def test_the_same_seed_gives_the_same_bytes_in_whatever_order(tmp_path: Path) -> None:
    Shapes(tmp_path / "a", domains=["sketch", "photo"], **SMALL).prepare()
    later = Shapes(tmp_path / "b", domains=["photo"], **SMALL), Shapes(tmp_path / "b", domains=["sketch"], **SMALL)
    for one in later:
        one.prepare()
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_more_pictures_extend_fewer(tmp_path: Path) -> None:
    Shapes(tmp_path / "a", domains=["sketch"], **SMALL).prepare()
    Shapes(tmp_path / "b", domains=["sketch"], **SMALL | {"test_per_class": 2}).prepare()
    few, many = files(tmp_path / "a"), files(tmp_path / "b")
    assert all(many[name] == content for name, content in few.items() if name.endswith(".png"))


def test_the_reader_of_domainnet_reads_it(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, domains=["sketch", "clipart"], **SMALL)
    shapes.prepare()
    domains = shapes.read()
    assert [domain.name for domain in domains] == ["sketch", "clipart"]
    assert DomainNet(tmp_path, ["sketch", "clipart"]).read() == domains
    for domain in domains:
        assert domain.classes == tuple(OBJECTS)
        for samples, count in ((domain.train, 2), (domain.test, 1)):
            labels = [label for _, label in samples]
            assert [labels.count(label) for label in range(len(OBJECTS))] == [count] * len(OBJECTS)
            assert all(path.is_file() and path.parent.name == domain.classes[label] for path, label in samples)
        assert not {path for path, _ in domain.train} & {path for path, _ in domain.test}


def test_nothing_is_drawn_twice(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, domains=["sketch"], **SMALL)
    shapes.prepare()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    shapes.prepare()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_parameters_in_the_same_root_are_refused(tmp_path: Path) -> None:
    Shapes(tmp_path, domains=["sketch"], **SMALL).prepare()
    other = Shapes(tmp_path, domains=["sketch"], **SMALL | {"size": 16})
    for call in (other.prepare, other.read):
        with pytest.raises(ConfigurationError, match=r"'size': 12.*'size': 16"):
            call()


def test_an_interrupted_drawing_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shapes(tmp_path / "a", domains=["sketch"], **SMALL)

    def interrupted(domain: str, name: str, *numbers: int) -> object:
        if name == "fish":
            raise KeyboardInterrupt
        return render(domain, name, *numbers)

    with monkeypatch.context() as patch:
        patch.setattr("project.data.shapes.dataset.render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shapes.prepare()
    with pytest.raises(DataError, match=r"no complete domain sketch.*prepare"):
        shapes.read()
    shapes.prepare()
    Shapes(tmp_path / "b", domains=["sketch"], **SMALL).prepare()
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_broken_mark_is_told(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, domains=["sketch"], **SMALL)
    shapes.prepare()
    (tmp_path / "sketch_shapes.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match=r"sketch_shapes\.json"):
        shapes.read()


def test_lists_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "sketch_train.txt").write_text("sketch/axe/1.jpg 0\n")
    with pytest.raises(DataError, match=r"sketch_train.txt was not written by Shapes"):
        Shapes(tmp_path, **SMALL).prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"train_per_class": 0}, "train_per_class is 0"),
        ({"test_per_class": -1}, "test_per_class is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"domains": ["oil"]}, r"domains is \['oil'\]; allowed: .*clipart, painting, photo, sketch"),
        ({"domains": []}, r"domains is \[\]"),
        ({"domains": ["photo", "photo"]}, "each once"),
    ],
)
def test_impossible_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Shapes(**options)  # type: ignore[arg-type]


def test_processes_that_prepare_at_once_draw_each_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for the processes: the lock belongs to an open file, of which each has its own."""
    drawn: list[object] = []
    plain = dataset.render

    def counted(*given: object) -> object:
        drawn.append(given)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "render", counted)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(Shapes(tmp_path, domains=["sketch"], **SMALL).prepare) for _ in range(3)]:
            done.result()
    assert len(drawn) == len(set(drawn)) == len(list(tmp_path.rglob("*.png")))


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", unable)
    with pytest.raises(DataError, match=r"cannot be locked.*does not appear to support flock"):
        Shapes(tmp_path, domains=["sketch"], **SMALL).prepare()
