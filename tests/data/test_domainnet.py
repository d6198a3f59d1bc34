"""The reader of list files."""

from pathlib import Path

import pytest

from project.data import DomainNet
from project.errors import ConfigurationError, DataError


def lists(root: Path, **texts: str) -> DomainNet:
    root.mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    return DomainNet(root)


def test_classes_agree_where_a_domain_lacks_one(tmp_path: Path) -> None:
    data = lists(
        tmp_path,
        real_train="real/axe/1.jpg 0\nreal/bear/1.jpg 1\nreal/t shirt/a b.jpg 2\n\n",
        real_test="real/axe/2.jpg 0\n",
        painting_train="painting/bear/1.jpg 1\n",
        painting_test="painting/bear/2.jpg 1\n",
    )
    painting, real = data.read()
    assert (painting.name, real.name) == ("painting", "real")
    assert painting.classes == real.classes == ("axe", "bear", "t shirt")
    assert real.train[2] == (tmp_path / "real/t shirt/a b.jpg", 2)
    assert DomainNet(tmp_path, ["painting"]).read() == [painting]


@pytest.mark.parametrize(
    "line", ["real/axe/1.jpg", "real/axe/1.jpg one", "1.jpg 0", "real/axe/1.jpg -1", " 3", "a/b.jpg " + "9" * 5000]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    data = lists(tmp_path, real_train=f"real/axe/1.jpg 0\n{line}\n", real_test="")
    with pytest.raises(DataError, match=r"real_train.txt, line 2: .* is not of the form"):
        data.read()


@pytest.mark.parametrize("path", ["../axe/1.jpg", "/etc/axe/1.jpg", "real/../../1.jpg", "real/axe/\0.jpg"])
def test_a_list_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    data = lists(tmp_path / "root", real_train=f"real/axe/1.jpg 0\n{path} 0\n", real_test="")
    with pytest.raises(DataError, match=r"real_train.txt, line 2: .* leads out of .*root") as caught:
        data.read()
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text_is_told(tmp_path: Path) -> None:
    data = lists(tmp_path, real_train="", real_test="")
    for spoil in (lambda path: path.write_bytes(b"\xff\xfe"), lambda path: (path.unlink(), path.mkdir())):
        spoil(tmp_path / "real_train.txt")
        with pytest.raises(DataError, match=r"real_train.txt (cannot be read as a list|is no file)"):
            data.read()


def test_labels_that_disagree_are_named(tmp_path: Path) -> None:
    data = lists(tmp_path, a_train="a/axe/1.jpg 0\n", a_test="", b_train="b/bear/1.jpg 0\n", b_test="")
    with pytest.raises(DataError, match=r"b_train.txt, line 1: class bear has label 0"):
        data.read()


def test_a_class_with_two_labels_is_named(tmp_path: Path) -> None:
    data = lists(tmp_path, a_train="a/axe/1.jpg 0\na/axe/2.jpg 1\n", a_test="")
    with pytest.raises(DataError, match=r"line 2: class axe has label 1"):
        data.read()


def test_a_gap_in_the_labels_is_told(tmp_path: Path) -> None:
    data = lists(tmp_path, a_train="a/axe/1.jpg 0\na/cat/1.jpg 2\n", a_test="")
    with pytest.raises(DataError, match="Label 1 has no picture in any list, though label 2 has"):
        data.read()


def test_missing_files_say_from_where_and_whereto(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent is missing; fetch DomainNet from http\S+ and unpack it into .*absent"):
        DomainNet(tmp_path / "absent").read()
    with pytest.raises(DataError, match=r"_train.txt is missing"):
        DomainNet(tmp_path).read()
    with pytest.raises(DataError, match=r"real_test.txt is missing"):
        lists(tmp_path, real_train="real/axe/1.jpg 0\n").read()


def test_an_empty_domain_is_told(tmp_path: Path) -> None:
    data = lists(tmp_path, a_train="a/axe/1.jpg 0\n", a_test="", b_train="", b_test="")
    with pytest.raises(DataError, match="Domain b has no training pictures"):
        data.read()


def test_an_unknown_domain_is_told(tmp_path: Path) -> None:
    lists(tmp_path, real_train="real/axe/1.jpg 0\n", real_test="")
    with pytest.raises(ConfigurationError, match=r"domains is \['oil'\]; allowed: .*real"):
        DomainNet(tmp_path, ["oil"]).read()
