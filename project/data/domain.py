"""What every data set is to the rest of the project: named domains with classes and two lists of pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from filelock import FileLock

from project.errors import ConfigurationError, DataError
from project.runtime import tell, warn

Sample: TypeAlias = tuple[Path, int]
"""A picture's file and its label."""


@dataclass(frozen=True)
class Domain:
    """The pictures of one domain; none is opened.

    Args:
        name: What the domain is called.
        classes: Names of the classes, in the order of the labels.
        train: Pictures to learn from.
        test: Pictures to judge by.
        notes: What to say of how they were found.
        doubts: What to warn of.

    Raises:
        DataError: Where there is no training picture, or a label has no class.
    """

    name: str
    classes: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def tell(self) -> None:
        """Say what is to be known of how its pictures were found."""
        for message in self.notes:
            tell(message)
        for message in self.doubts:
            warn(message)

    def __post_init__(self) -> None:
        """Refuse a domain without pictures and labels without a class."""
        if not self.train:
            raise DataError(f"Domain {self.name} has no training pictures.")
        for path, label in (*self.train, *self.test):
            if not 0 <= label < len(self.classes):
                raise DataError(f"{path} has label {label}; {self.name} has the labels 0 to {len(self.classes) - 1}.")


class DomainSet(ABC):
    """A data set of one or more domains.

    Attributes:
        root: Folder in which it lies.
    """

    root: Path

    def prepare(self) -> None:  # noqa: B027 - most sets have nothing to prepare
        """Download or render what is missing; does nothing the second time, and nothing where the user must fetch it.

        Several processes may ask at once, those of one run once a node: what writes does so inside :func:`alone`.

        Raises:
            DataError: Where the data cannot be had.
        """

    @abstractmethod
    def read(self) -> list[Domain]:
        """List the pictures of every domain, in a fixed order.

        Raises:
            DataError: Where files are missing or malformed; the message says from where to fetch them.
        """


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """While open, no other process that asks for the same folder gets in, on any node that shares it; they wait.

    Nodes that prepare each for itself, or jobs that start together, would else write the same files at once.

    Args:
        root: Folder that is about to be written to; made where it is missing.

    Raises:
        DataError: Where its file system knows no locks.
    """
    lock = FileLock(root / ".preparing.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise DataError(
            f"{root} cannot be locked while data are written to it ({error}); prepare them on a file system that "
            f"can, and copy them there."
        ) from error
    try:
        yield
    finally:
        lock.release()


def require(path: Path, name: str, source: str, root: Path) -> Path:
    """A file or folder of a data set that must be there.

    Args:
        path: What is needed.
        name: The data set's name.
        source: Page from which it is fetched.
        root: Folder into which it is unpacked.

    Raises:
        DataError: Where it is missing.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; fetch {name} from {source} and unpack it into {root}.")
    return path


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a list of pictures, with their numbers, from 1 on.

    Raises:
        DataError: Where it is no file, or no text in UTF-8.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is no file.")
        return list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list: {error}.") from error


def is_label(text: str) -> bool:
    """Whether a text in a list is a class's number."""
    return text.isdecimal() and len(text) < 10  # Python refuses to read numbers of thousands of digits


def listed(folder: Path, picture: str, place: str | Path) -> Path:
    """The path of a picture that a list names.

    Args:
        folder: What the list's paths are relative to.
        picture: The path, with slashes.
        place: The list, for messages.

    Raises:
        DataError: Where it leads out of the folder, or can be no path.
    """
    path = PurePosixPath(picture)
    if path.is_absolute() or ".." in path.parts or "\0" in picture:
        raise DataError(f"{place}: {picture!r} leads out of {folder}; allowed: paths in it.")
    return folder / path


def some(names: Sequence[object], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def told_share(missing: int, total: int, what: str, examples: Sequence[object]) -> str:
    """A sentence on files that a list names and that are not there, by their share.

    Args:
        missing: How many are not there.
        total: How many are listed.
        what: What they are, such as ``pictures``.
        examples: Those that are not there.
    """
    return (
        f"{missing} of {total} {what} ({100 * missing / total:.3g} %) are not there: {some(examples)}; where they are "
        f"many, the list is of another version of the data"
    )


def choose(domains: list[str] | None, known: list[str]) -> list[str]:
    """The domains asked for, in the order asked for; all known ones for None.

    Raises:
        ConfigurationError: Where one is unknown or named twice, or none is named.
    """
    if domains is None:
        return known
    unknown = [name for name in domains if name not in known]
    if unknown or not domains or len(set(domains)) < len(domains):
        raise ConfigurationError(f"domains is {domains}; allowed: one or more, each once, of {', '.join(known)}.")
    return domains


def class_names(samples: list[Sample], name: Callable[[Path], str], lists: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their labels, each taken from the path of some picture of it.

    Args:
        samples: All pictures.
        name: Tells a class's name from a picture's path.
        lists: Where the labels come from, for the message.

    Raises:
        DataError: Where the labels have a gap.
    """
    names = {label: name(path) for path, label in samples}
    if sorted(names) != list(range(len(names))):
        raise DataError(f"The lists in {lists} have {len(names)} labels up to {max(names) + 1}; some are missing.")
    return tuple(names[label] for label in range(len(names)))
