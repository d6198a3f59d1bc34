"""DomainNet and whatever else is kept in its layout: list files beside one folder per domain."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from project.data.domain import Domain, DomainSet, Sample, choose, is_label, listed, read_list, require
from project.errors import DataError

SOURCE = "http://ai.bu.edu/M3SDA"
SPLITS = ("train", "test")
Entry: TypeAlias = tuple[str, int, str]
"""A picture's path relative to the root, its label, and the place in the list file, for messages."""


class DomainNet(DomainSet):
    """DomainNet, or another data set in its layout, read from ``<domain>_train.txt`` and ``<domain>_test.txt``.

    A line of a list is ``path label``, the path relative to the root, as in ``sketch/house/house_000012.png 3``. A
    class is named after the folder that holds its pictures. All lists in the root are read, whichever domains are
    wanted, so that the classes agree even where a domain lacks one.

    Args:
        root: Folder of the list files and the domains' folders; never downloaded, fetch it from the official page.
        domains: Which domains, in which order; all, sorted by name, when not given.
    """

    def __init__(self, root: str | Path = "data/domainnet", domains: list[str] | None = None) -> None:
        self.root = Path(root)
        self.domains = domains

    def read(self) -> list[Domain]:
        """List the pictures of every domain.

        Raises:
            ConfigurationError: Where an unknown domain is asked for.
            DataError: Where a list is missing or malformed, or the lists disagree on labels.
        """
        require(self.root, "DomainNet", SOURCE, self.root)
        known = sorted(path.name.removesuffix("_train.txt") for path in self.root.glob("*_train.txt"))
        if not known:
            require(self.root / "<domain>_train.txt", "DomainNet", SOURCE, self.root)
        names = choose(self.domains, known)
        entries = {(name, split): self._entries(f"{name}_{split}.txt") for name in known for split in SPLITS}
        classes = _classes(entry for listed in entries.values() for entry in listed)
        train, test = SPLITS
        return [
            Domain(name, classes, self._samples(entries[name, train]), self._samples(entries[name, test]))
            for name in names
        ]

    def _entries(self, file: str) -> list[Entry]:
        path = require(self.root / file, "DomainNet", SOURCE, self.root)
        found = [_entry(line, f"{path}, line {number}") for number, line in read_list(path) if line.strip()]
        for picture, _, place in found:
            listed(self.root, picture, place)
        return found

    def _samples(self, entries: list[Entry]) -> list[Sample]:
        return [(self.root / picture, label) for picture, label, _ in entries]


def _entry(line: str, place: str) -> Entry:
    picture, _, label = line.strip().rpartition(" ")
    if not is_label(label) or len(PurePosixPath(picture).parts) < 2:
        raise DataError(f"{place}: {line!r} is not of the form '<domain>/<class>/<picture> <label>'.")
    return picture, int(label), place


def _classes(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Names of the classes in the order of their labels, from all lists together."""
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for picture, label, place in entries:
        name = PurePosixPath(picture).parent.name
        if names.setdefault(label, name) != name or labels.setdefault(name, label) != label:
            raise DataError(
                f"{place}: class {name} has label {label}, but elsewhere label {label} is {names[label]} "
                f"and {name} has label {labels.get(name, label)}."
            )
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise DataError(
            f"Label {gap} has no picture in any list, though label {max(names)} has; labels must have no gap."
        )
    return tuple(names[label] for label in range(len(names)))
