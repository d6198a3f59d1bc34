"""The text tables that CUB-200-2011 and NABirds share: one line an entry, its identifier first."""

from collections.abc import Callable
from pathlib import Path

from project.data.domain import Domain, is_label, listed, read_list, require
from project.errors import DataError

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read_tables(root: Path, name: str, source: str, display: Callable[[str], str]) -> Domain:
    """Read the pictures of a data set kept in four tables.

    Only classes that some picture has are kept, numbered from zero in the order of their identifiers.

    Args:
        root: Folder of the tables and of ``images/``.
        name: Name of the domain.
        source: Page from which the data set is fetched.
        display: Makes a class's name from what ``classes.txt`` says.

    Raises:
        DataError: Where a file is missing or malformed, or the tables do not cover the same pictures.
    """
    images, labels, training, classes = (_table(require(root / file, name, source, root)) for file in FILES)
    for file, table in zip(FILES[1:3], (labels, training), strict=True):
        if odd := images.keys() ^ table.keys():
            raise DataError(f"{root / file} and {root / FILES[0]} differ on {len(odd)} pictures, such as {min(odd)}.")
    _allow(root / FILES[1], labels, is_label, "class numbers")
    _allow(root / FILES[2], training, lambda value: value in ("0", "1"), "0, 1")
    if nameless := set(labels.values()) - classes.keys():
        raise DataError(f"{root / FILES[3]} has no line for class {min(nameless)}, which {FILES[1]} uses.")
    used = sorted(set(labels.values()), key=int)
    label = {identifier: number for number, identifier in enumerate(used)}
    samples = {
        picture: (listed(root / "images", path, root / FILES[0]), label[labels[picture]])
        for picture, path in images.items()
    }
    return Domain(
        name,
        tuple(display(classes[identifier]) for identifier in used),
        [samples[picture] for picture in images if training[picture] == "1"],
        [samples[picture] for picture in images if training[picture] == "0"],
    )


def _allow(path: Path, table: dict[str, str], fine: Callable[[str], bool], allowed: str) -> None:
    odd = next((picture for picture, value in table.items() if not fine(value)), None)
    if odd is not None:
        raise DataError(f"{path} has {table[odd]!r} for {odd}; allowed: {allowed}.")


def _table(path: Path) -> dict[str, str]:
    rows = {}
    for number, line in read_list(path):
        key, _, value = line.strip().partition(" ")
        if key and not value:
            raise DataError(f"{path}, line {number}: {line!r} is not of the form '<identifier> <value>'.")
        if key:
            rows[key] = value
    return rows
