"""The readers of pets, birds and dogs, on trees laid out as the real ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from project.data import CUB, DomainSet, NABirds, OxfordPets, StanfordDogs
from project.errors import DataError


def tables(root: Path, **texts: str) -> None:
    root.mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)


CUB_TABLES = {
    "images": "1 001.Auk/Auk_1.jpg\n2 001.Auk/Auk_2.jpg\n3 002.Owl/Owl_1.jpg\n",
    "image_class_labels": "1 1\n2 1\n3 2\n",
    "train_test_split": "1 1\n2 0\n3 1\n",
    "classes": "1 001.Auk\n2 002.Owl\n",
}


def test_cub(tmp_path: Path) -> None:
    tables(tmp_path, **CUB_TABLES)
    (cub,) = CUB(tmp_path).read()
    assert (cub.name, cub.classes) == ("cub", ("Auk", "Owl"))
    assert cub.train == [(tmp_path / "images/001.Auk/Auk_1.jpg", 0), (tmp_path / "images/002.Owl/Owl_1.jpg", 1)]
    assert cub.test == [(tmp_path / "images/001.Auk/Auk_2.jpg", 0)]


def test_nabirds_numbers_the_categories_that_pictures_have(tmp_path: Path) -> None:
    tables(
        tmp_path,
        images="ab-1 0817/ab1.jpg\ncd-2 0950/cd2.jpg\nef-3 0817/ef3.jpg\n",
        image_class_labels="ab-1 817\ncd-2 1010\nef-3 817\n",
        train_test_split="ab-1 1\ncd-2 1\nef-3 0\n",
        classes="0 Birds\n1 Ducks, Geese, and Swans\n817 Oak Titmouse\n1010 Dark-eyed Junco (Oregon)\n",
        hierarchy="1 0\n817 1\n1010 1\n",
    )
    (birds,) = NABirds(tmp_path).read()
    assert (birds.name, birds.classes) == ("nabirds", ("Oak Titmouse", "Dark-eyed Junco (Oregon)"))
    assert birds.train == [(tmp_path / "images/0817/ab1.jpg", 0), (tmp_path / "images/0950/cd2.jpg", 1)]
    assert birds.test == [(tmp_path / "images/0817/ef3.jpg", 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "1\n"}, r"images.txt, line 1: '1' is not of the form"),
        ({"train_test_split": "1 1\n2 0\n"}, r"train_test_split.txt and .*images.txt differ on 1 pictures, such as 3"),
        ({"train_test_split": "1 1\n2 0\n3 yes\n"}, r"train_test_split.txt has 'yes' for 3; allowed: 0, 1"),
        ({"image_class_labels": "1 1\n2 1\n3 7\n"}, r"classes.txt has no line for class 7"),
        ({"image_class_labels": "1 1\n2 1\n3 x\n", "classes": "1 A\nx B\n"}, r"image_class_labels.txt .*'x'"),
    ],
)
def test_tables_that_do_not_fit_are_told(tmp_path: Path, change: dict[str, str], message: str) -> None:
    tables(tmp_path, **CUB_TABLES | change)
    with pytest.raises(DataError, match=message):
        CUB(tmp_path).read()


def test_pets(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    tables(root / "annotations", trainval="Abyssinian_100 1 1 1\nbasset_hound_3 2 2 1\n", test="Abyssinian_2 1 1 1\n")
    (pets,) = OxfordPets(tmp_path).read()
    assert (pets.name, pets.classes) == ("pets", ("Abyssinian", "basset_hound"))
    assert pets.train == [(root / "images/Abyssinian_100.jpg", 0), (root / "images/basset_hound_3.jpg", 1)]
    assert pets.test == [(root / "images/Abyssinian_2.jpg", 0)]
    tables(root / "annotations", test="Abyssinian_2 one 1 1\n")
    with pytest.raises(DataError, match=r"test.txt, line 1: .* is not of the form"):
        OxfordPets(tmp_path).read()
    tables(root / "annotations", test="pug_2 4 2 1\n")
    with pytest.raises(DataError, match="have 3 labels up to 4"):
        OxfordPets(tmp_path).read()


def test_pets_are_downloaded_only_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("project.data.sets.pets.OxfordIIITPet", refused)
    OxfordPets(tmp_path).prepare()
    with pytest.raises(DataError, match=r"could not be downloaded .*no network"):
        OxfordPets(tmp_path, download=True).prepare()


def mat(path: Path, files: list[str], labels: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    names = np.array([[np.array([file])] for file in files], dtype=object)
    savemat(path, {"file_list": names, "labels": np.array(labels)[:, None]})


@pytest.mark.parametrize("folder", ["lists", "."])
def test_dogs(tmp_path: Path, folder: str) -> None:
    pug, boxer = "n02110958-pug/n02110958_1", "n02108089-boxer/n02108089_2"
    (tmp_path / "Images").mkdir()
    mat(tmp_path / folder / "train_list.mat", [f"{pug}.jpg", f"{boxer}.jpg"], [1, 2])
    mat(tmp_path / folder / "test_list.mat", [f"{boxer}0.jpg"], [2])
    (dogs,) = StanfordDogs(tmp_path).read()
    assert (dogs.name, dogs.classes) == ("dogs", ("pug", "boxer"))
    assert dogs.train == [(tmp_path / f"Images/{pug}.jpg", 0), (tmp_path / f"Images/{boxer}.jpg", 1)]
    assert dogs.test == [(tmp_path / f"Images/{boxer}0.jpg", 1)]


def test_a_broken_list_of_dogs_is_told(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "train_list.mat").write_bytes(b"no list")
    with pytest.raises(DataError, match=r"train_list.mat is not a list of Stanford Dogs"):
        StanfordDogs(tmp_path).read()


@pytest.mark.parametrize("reader", [CUB, NABirds, OxfordPets, StanfordDogs])
def test_missing_data_says_from_where_and_whereto(tmp_path: Path, reader: type[DomainSet]) -> None:
    data = reader(tmp_path / "absent")  # type: ignore[call-arg]
    data.prepare()
    with pytest.raises(DataError, match=r"is missing; fetch .* from http\S+ and unpack it into .*absent"):
        data.read()
