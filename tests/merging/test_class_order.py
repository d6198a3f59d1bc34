"""Sources whose columns mean the same classes in different orders, and pictures whose labels tell."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import resnet, same_state
from PIL import Image
from torch import nn

import project
from project.errors import ConfigurationError
from project.merging import SourceFile
from project.merging.classes import assumed, column_order
from project.models import Description, LabelSpace
from project.models.scores import OrderScores, meanings
from project.modules.scored import load_scored_networks
from project.student.columns import with_columns
from project.symmetry import trace

NAMES = ("1", "10", "2", "TV", "apple")
ORDER = [3, 0, 4, 1, 2]
TURNED = tuple(NAMES[i] for i in ORDER)
PICTURE = (3, 16, 16)


def columns_moved(network: nn.Module, order: list[int]) -> nn.Module:
    """By hand, for a network whose head is called fc."""
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[order].clone())
        network.fc.bias.copy_(network.fc.bias[order].clone())
    return network


def save(network: nn.Module, path: Path, **entries: object) -> Path:
    torch.save({"state_dict": network.state_dict(), **entries}, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for domain, name in itertools.product(("photo", "sketch"), NAMES):
        folder = tmp_path / "pictures" / domain / name
        folder.mkdir(parents=True)
        for number in range(2):
            values = np.random.default_rng([number, *name.encode()]).integers(0, 256, (*PICTURE[1:], 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_columns_move_and_the_network_stays() -> None:
    network = resnet("resnet8", 0, len(NAMES)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moved = with_columns(network, ORDER, trace(network, PICTURE))
    batch = torch.randn(2, *PICTURE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(moved(batch), network(batch)[:, ORDER], rtol=1e-5, atol=1e-5)  # sums of 64 values
    assert same_state(network.state_dict(), before)
    assert moved.conv1.weight is network.conv1.weight  # of the rest there is one copy


@pytest.mark.parametrize("said", ["names", "our file"])
def test_sources_in_different_orders_are_put_into_one(
    said: str, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The student of sources in one order is that of the same sources where the columns of one were turned."""
    one, other = (resnet("resnet8", seed, len(NAMES)) for seed in range(2))
    plain = [save(one, tmp_path / "photo.pth"), save(other, tmp_path / "sketch.pth")]
    options = {"pictures": pictures, "method": "average", "image_size": 16}
    expected = project.merge(plain, **options)
    ours = Description(label_space=LabelSpace({"sketch": TURNED})).to_entries()
    entries = {"meta": {"dataset_meta": {"classes": TURNED}}} if said == "names" else ours
    turned = save(columns_moved(other, ORDER), tmp_path / "turned_sketch.pth", **entries)
    with caplog.at_level(logging.INFO):
        merged = project.merge([plain[0], turned], **options)
    assert same_state(merged.network.state_dict(), expected.network.state_dict())
    assert merged.labels == expected.labels
    assert f"{turned} has 5 of its classes in other places than the data; its columns" in caplog.text
    *_, granted = (one.getMessage() for one in caplog.records if "taken for granted of sketch" in one.getMessage())
    assert "classes 1, 10, 2, TV, … (5) (its file)" in granted


def test_scored_networks_answer_in_the_order_of_the_data(tmp_path: Path) -> None:
    network = resnet("resnet8", 0, len(NAMES)).eval()
    plain = save(network, tmp_path / "plain.pth")
    turned = save(columns_moved(network, ORDER), tmp_path / "turned.pth", classes=list(TURNED))
    labels = LabelSpace({"photo": NAMES})
    one, other = load_scored_networks([SourceFile(plain), SourceFile(turned)], labels)
    batch = torch.randn(2, *PICTURE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(one.network(batch), other.network(batch), rtol=1e-5, atol=1e-5)
    assert one.labels == other.labels == labels


def test_without_pictures_the_first_source_says_the_order(tmp_path: Path) -> None:
    one, other = (resnet("resnet8", seed, len(NAMES)) for seed in range(2))
    first = save(one, tmp_path / "photo.pth", classes=list(NAMES))
    files = [first, save(other, tmp_path / "sketch.pth", classes=list(NAMES))]
    expected = project.merge(files, method="average", image_size=16)
    columns = {name: column for column, name in enumerate(TURNED)}
    turned = save(columns_moved(other, ORDER), tmp_path / "turned.pth", class_to_idx=columns)
    merged = project.merge([first, turned], method="average", image_size=16)
    assert same_state(merged.network.state_dict(), expected.network.state_dict())
    assert set(merged.labels.classes.values()) == {NAMES}
    assert merged.labels.mode == "shared"


def test_other_spellings_are_the_same_names_and_other_names_are_told() -> None:
    labels = LabelSpace({"d": ("Alarm_Clock", "TV", "Paper-Clip")})
    spelled = Description(class_names=("tv", "paper clip", "alarm clock"))
    assert column_order(spelled, labels, ["d"], "a.pth", 3) == [2, 0, 1]
    assert column_order(Description(class_names=("x", "y")), labels, ["d"], "a.pth", 3) is None  # of another head
    with pytest.warns(UserWarning, match=r"a.pth names classes that the data do not have \(2 of 3, such as cow"):
        assert column_order(Description(class_names=("tv", "cow", "hen")), labels, ["d"], "a.pth", 3) is None


def test_one_other_name_is_the_class_that_is_left_and_several_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    labels = LabelSpace({"d": ("apple", "bee", "cow", "dog", "eel")})
    with caplog.at_level(logging.INFO):
        order = column_order(
            Description(class_names=("Dog", "kettle", "bee", "cow", "apple")), labels, ["d"], "a.pth", 5
        )
    assert order == [4, 2, 3, 0, 1]
    assert "a.pth names kettle where the data have eel" in caplog.text
    with pytest.raises(ConfigurationError, match=r"a.pth names 2 classes that the data do not have \(kettle, pot\)"):
        column_order(Description(class_names=("dog", "kettle", "pot", "cow", "apple")), labels, ["d"], "a.pth", 5)


@pytest.mark.parametrize(
    ("names", "words"),
    [(("b", "a"), "its file"), (("a", "c"), "as its file names others"), (None, "as its file names none")],
)
def test_whose_the_order_is_stands_beside_it(names: tuple[str, ...] | None, words: str) -> None:
    told, *_ = assumed(Description(class_names=names), LabelSpace({"d": ("a", "b")}), ["d"], None)
    assert told.startswith("classes a, b (2) (")
    assert words in told


def test_heads_of_several_domains_are_ordered_each() -> None:
    data = LabelSpace({"a": ("x", "y"), "b": ("u", "v", "w")}, "different")
    known = Description(label_space=LabelSpace({"b": ("w", "u", "v"), "a": ("y", "x")}, "different"))
    assert column_order(known, data, ["b", "a"], "a.pth", 5) == [1, 2, 0, 4, 3]


def test_classes_that_are_not_the_datas_are_still_refused(pictures: Path, tmp_path: Path) -> None:
    entries = Description(label_space=LabelSpace({"photo": ("a", "b", "c", "d", "e")})).to_entries()
    files = [save(resnet("resnet8", 0, 5), tmp_path / "photo.pth", **entries)]
    files.append(save(resnet("resnet8", 1, 5), tmp_path / "sketch.pth"))
    with pytest.raises(ConfigurationError, match=r"trained on 5 classes that are not the 5 of domain photo"):
        project.merge(files, pictures, method="average", image_size=16)


def answers(names: tuple[str, ...], order: str, share: float, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network whose columns stand in an order, right on a share of its pictures, and the labels."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(len(names), (count,), generator=draw)
    columns = torch.tensor(meanings(names)[order]).argsort()[labels]
    wrong = torch.randint(len(names), (count,), generator=draw)
    told = torch.where(torch.rand(count, generator=draw) < share, columns, wrong)
    return torch.nn.functional.one_hot(told, len(names)).float(), labels


LONG = (*NAMES, "Bed", "TV set", "Zebra", "ant", "b2", "b10")


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("truth", ["code points", "natural"])
def test_labels_that_contradict_the_order_are_noticed(truth: str, share: float) -> None:
    names = tuple(sorted(LONG))
    scores = OrderScores({"empty": ("a", "b"), "d": names})
    for part in zip(*(tensor.split(64) for tensor in answers(names, truth, share)), strict=True):
        scores.update(1, *part)
    assert list(scores.better()) == (["natural"] if truth == "natural" else [])


def test_few_or_random_answers_say_nothing() -> None:
    names = tuple(sorted(LONG))
    few, random = OrderScores({"d": names}), OrderScores({"d": names})
    few.update(0, *answers(names, "natural", 1.0, 8))
    random.update(0, *answers(names, "natural", 0.0, 1000))
    assert few.better() == random.better() == {}
    assert OrderScores({"d": ("a", "b")}).better() == {}
