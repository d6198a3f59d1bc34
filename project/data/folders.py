"""Data sets kept as plain folders, such as PACS and Office-Home."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from project.data.domain import Domain, DomainSet, Sample, choose, is_label, listed, read_list, some, told_share
from project.data.splits import by_class, hold_out_by_path
from project.data.walking import SUFFIXES as SUFFIXES
from project.data.walking import Walk, folders_in, holds_pictures, walk
from project.errors import ConfigurationError, DataError, encodable, seeds, share
from project.models.labels import NATURAL, ORDERS, natural_key

ClassOrder = str | list[str]
"""``code points``, ``natural``, or all names in order."""
TRAINING, TESTING, VALIDATING = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
HERE = "."


class ImageFolders(DomainSet):
    """Domains in folders, ``<domain>/<class>/<picture>``, split here into training and test pictures.

    Test pictures are those of ``<domain>/test/<class>/`` beside ``<domain>/train/<class>/``, or those that a list,
    ``<domain>/test.txt`` or ``<domain>_test.txt`` beside the domains' folders, names line by line; what follows a path
    there as a number is a label, which plays no part. Without these they are drawn by a hash of the seed and of each
    path from the root on, so that a picture that is added moves no other. Where that would set none of a class of two
    or more aside, or all, the one with the smallest hash is, or that with the largest stays.

    Args:
        root: Folder of the domains' folders.
        domains: Which domains, in which order; all, sorted by name, when not given.
        test_fraction: Share of the pictures that is kept for testing where they are drawn, from 0 up to but without 1.
        seed: Seed of the draw.
        class_order: Which class is which label: ``code points``, as torchvision's and most tools sort the folders;
            ``natural``, as timm sorts them: whatever the case, and numbers by their value; or a list of all their
            names, as the sources' columns have them.
        below: Folder between a domain's and those of its classes, such as ``images`` in ``amazon/images/<class>/``;
            ``.`` for none, where it looks as if there was one.
        test: Folder in a domain's that holds its test pictures, as ``<class>/<picture>``, or a list file there; by
            default what is described above.
    """

    def __init__(
        self,
        root: str | Path,
        domains: list[str] | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        class_order: ClassOrder = "code points",
        below: str | None = None,
        test: str | None = None,
    ) -> None:
        share(none=True, whole=False, test_fraction=test_fraction)
        seeds(seed=seed)
        self.root = Path(root)
        self.domains = domains
        self.test_fraction = test_fraction
        self.seed = seed
        self.class_order = _order(class_order)
        self.below, self.test = below, test
        for name, value in (("below", below), ("test", test)):
            if value is not None and (not value or Path(value).is_absolute() or ".." in Path(value).parts):
                raise ConfigurationError(f"{name} is {value!r}; allowed: a path in the domains' folders.")

    def read(self) -> list[Domain]:
        """List the pictures of every domain.

        Raises:
            ConfigurationError: Where an unknown domain is asked for, or class_order does not list the classes.
            DataError: Where the root is missing, a domain or a class holds no pictures, or classes and folders around
                them cannot be told apart.
        """
        known = [folder.name for folder in folders_in(self.root)] if self.root.is_dir() else []
        if not known:
            there = (
                "holds no domains" if self.root.is_dir() else "is no folder" if self.root.exists() else "is not there"
            )
            raise DataError(f"{self.root} {there}; put pictures there as <domain>/<class>/<picture>.")
        found = [self._domain(name) for name in choose(self.domains, known)]
        if note := Walk(leftovers=walk(self.root, deep=False).leftovers).note(str(self.root)):
            found[0] = replace(found[0], notes=(note, *found[0].notes))
        return found

    def _domain(self, name: str) -> Domain:
        folder = self.root / name
        layout = self._layout(folder)
        classes = self._ordered(folders_in(layout.train), layout.aside)
        found = [walk(one) for one in classes]
        for one, walked in zip(classes, found, strict=True):
            if not walked.pictures:
                raise DataError(f"Class folder {one} holds no pictures ({_allowed()}); fill or remove it.")
        samples = _labelled(found)
        if not samples:
            raise DataError(f"Domain {name} has no pictures in {layout.train}; allowed: <class>/<picture> in it.")
        names = [one.name for one in classes]
        around = walk(layout.train, deep=False)
        beside = [_of_classes(one, names) for one in (layout.test, *layout.more) if one is not None]
        everything = sum((*found, *(one for walks in beside for one in walks)), around)
        notes = [layout.words, everything.note(f"domain {name}")]
        doubts = [everything.doubt(f"domain {name}")]
        if around.pictures:
            doubts.append(
                f"domain {name}: pictures in no class's folder are passed over ({len(around.pictures)}, such as "
                f"{around.pictures[0]})."
            )
        if layout.test is not None:
            train, test = [*samples, *(one for walks in beside[1:] for one in _labelled(walks))], _labelled(beside[0])
        elif layout.listing is not None:
            test, missing = self._listed(layout.listing, folder, samples)
            chosen = {path for path, _ in test}
            train = [sample for sample in samples if sample[0] not in chosen]
            doubts.append(missing)
        else:
            train, test = hold_out_by_path(samples, self.test_fraction, self.seed, self.root)
            lone = [names[label] for label, one in by_class(samples).items() if len(one) == 1]
            if lone and self.test_fraction > 0:
                notes.append(f"domain {name}: the one picture of class {', '.join(lone)} trains, and none tests it")
        said = (tuple(filter(None, notes)), tuple(filter(None, doubts)))
        return Domain(name, tuple(names), train, test, *said)

    def _layout(self, folder: Path) -> "Layout":
        """Where a domain's classes and test pictures lie.

        Raises:
            DataError: If that can be read in two ways, or something named is not there.
        """
        train, test, words = folder / self._training(folder), None, None
        beside = {one.name.lower(): one for one in folders_in(folder)}
        named = self.test
        if named is None and train != folder and train.name.lower() in TRAINING:
            named = next((beside[word].name for word in TESTING if word in beside), None)
        if named is not None:
            test = folder / named
            if test.is_file():
                return Layout(train, words, listing=test)
            if not test.is_dir():
                raise DataError(f"test is {named!r}, which is not in {folder}; allowed: a folder or a list there.")
        lists = (folder / "test.txt", folder.parent / f"{folder.name}_test.txt")
        if test is None and (found := next((one for one in lists if one.is_file()), None)):
            return Layout(train, words, listing=found)
        more = [beside[word] for word in VALIDATING if word in beside and test is not None and train != folder]
        more = [one for one in more if one != test]
        if test is not None:
            joined = f", and {', '.join(one.name for one in more)} trains, too" if more else ""
            words = f"domain {folder.name}: its pictures in {test.name} test, those in {train.name} train{joined}"
        return Layout(train, words, test, more)

    def _training(self, folder: Path) -> str:
        """The folder in a domain's that holds its classes.

        Raises:
            DataError: If it is not there, or there are two ways to read the folders.
        """
        if self.below is not None:
            if not (folder / self.below).is_dir():
                raise DataError(f"below is {self.below!r}, which is no folder in {folder}.")
            return self.below
        first = [one for one in folders_in(folder) if one.name != self.test]
        if not first and holds_pictures(folder):
            raise DataError(
                f"Domain {folder.name} holds pictures and no folders of classes; allowed: <class>/<picture> in "
                f"{folder}. If {folder.parent} is one domain and this a class of it, name the folder that holds it."
            )
        hollow = [one for one in first if not holds_pictures(one)]
        inner = {one: [two.name for two in folders_in(one)] for one in hollow}
        split = [one for one in hollow if inner[one] and one.name.lower() in (*TRAINING, *TESTING, *VALIDATING)]
        training = [one for one in split if one.name.lower() in TRAINING]
        testing = [one for one in split if one.name.lower() in TESTING or one.name == self.test]
        if len(training) == 1 and split == first and (testing or self.test is not None):
            return training[0].name
        names = [name for one in hollow for name in inner[one]]
        alone = len(first) == 1 and bool(names)
        repeated = hollow == first and 1 < len(set(names)) < len(names)
        if not (split or alone or repeated):
            return HERE
        outer = [one.name for one in (split or hollow)]
        within = sorted({name for one in (split or hollow) for name in inner[one]})
        mend = f"below: {outer[0]}" if len(outer) == 1 else f"below: {outer[0]}, or another of these"
        if training and any(one.name.lower() in VALIDATING for one in split):
            mend = f"below: {training[0].name} and test: {next(o.name for o in split if o not in training)}"
        raise DataError(
            f"{folder} can be read in two ways: its classes are {some([one.name for one in first])}, with pictures in "
            f"folders below them ({some(within)}), or {some(outer)} is a folder too many, and the classes are "
            f"{some(within)}. Say which of the data set: 'below: .' for the first, '{mend}' for the second."
        )

    def _ordered(self, folders: list[Path], aside: Sequence[Path]) -> list[Path]:
        """The folders of classes in the order of their labels."""
        folders = [folder for folder in folders if folder not in aside]
        if self.class_order == NATURAL:
            return sorted(folders, key=lambda folder: natural_key(folder.name))
        if isinstance(self.class_order, str):
            return folders
        by_name = {folder.name: folder for folder in folders}
        unknown = [name for name in by_name if name not in self.class_order]
        missing = [name for name in self.class_order if name not in by_name]
        if unknown or missing:
            raise ConfigurationError(
                f"class_order does not list the classes in {folders[0].parent if folders else self.root}: not listed "
                f"{some(unknown) or '–'}; not there {some(missing) or '–'}."
            )
        return [by_name[name] for name in self.class_order]

    def _listed(self, path: Path, folder: Path, samples: list[Sample]) -> tuple[list[Sample], str | None]:
        """The pictures that a list names, and a sentence on those that are not there.

        Raises:
            DataError: If it names none of them.
        """
        known = {picture: label for picture, label in samples}
        found, missing = [], []
        for number, line in read_list(path):
            picture, _, label = line.strip().rpartition(" ")
            picture = picture if picture and is_label(label) else line.strip()
            if not picture:
                continue
            places = [listed(base, picture, f"{path}, line {number}") for base in (folder, self.root)]
            there = next((place for place in places if place in known), None)
            if there is None:
                missing.append(picture)
            else:
                found.append((there, known[there]))
        if not found:
            raise DataError(f"{path} names no picture of {folder}; allowed: paths from there or from {self.root}.")
        if not missing:
            return found, None
        return found, told_share(len(missing), len(found) + len(missing), f"pictures in {path}", missing)


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a domain lie.

    Args:
        train: Folder of the classes' folders.
        words: What to say of it; None for nothing.
        test: Folder of those with test pictures, if there is one.
        more: Such folders whose pictures train, too.
        listing: File that names the test pictures, if there is one.
    """

    train: Path
    words: str | None
    test: Path | None = None
    more: Sequence[Path] = ()
    listing: Path | None = None

    @property
    def aside(self) -> list[Path]:
        """Folders that are no classes."""
        return [*self.more, *([self.test] if self.test is not None else [])]


class PictureFolder(DomainSet):
    """All pictures below a folder, however it is arranged: one domain without classes, to calibrate with.

    Args:
        root: The folder; the domain has its name.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self) -> list[Domain]:
        """List the pictures, all of them for training.

        Raises:
            DataError: Where there are none, or no folder.
        """
        if not self.root.is_dir():
            raise DataError(f"{self.root} is {'no folder' if self.root.exists() else 'not there'}.")
        found = walk(self.root)
        if not found.pictures:
            raise DataError(f"{self.root} holds no pictures ({_allowed()}), at any depth.")
        said = [tuple(filter(None, [told(str(self.root))])) for told in (found.note, found.doubt)]
        return [Domain(self.root.resolve().name, ("",), _labelled([found]), [], *said)]


def _order(order: object) -> ClassOrder:
    """An order of classes that there is."""
    if isinstance(order, str) and order in ORDERS:
        return order
    names = list(order) if isinstance(order, list | tuple) else []
    if not names or not all(isinstance(name, str) and encodable(name) for name in names):
        raise ConfigurationError(
            f"class_order is {order!r}; allowed: {', '.join(map(repr, ORDERS))}, or a list of all classes."
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigurationError(f"class_order holds {twice!r} twice; allowed: every class once.")
    return names


def _of_classes(folder: Path, names: Sequence[str]) -> list[Walk]:
    """What lies below the folder of each class.

    Raises:
        DataError: If there is a class more.
    """
    if more := [one.name for one in folders_in(folder) if one.name not in names]:
        raise DataError(f"{folder} holds class {more[0]!r}, of which there are no training pictures.")
    return [walk(folder / name) if (folder / name).is_dir() else Walk() for name in names]


def _labelled(found: Sequence[Walk]) -> list[Sample]:
    return [(path, label) for label, walked in enumerate(found) for path in walked.pictures]


def _allowed() -> str:
    return ", ".join(sorted(SUFFIXES))
