"""Data sets kept as plain folders, such as PACS and Office-Home."""

from pathlib import Path

from project.data.domain import Domain, DomainSet, Sample, choose
from project.data.splits import hold_out
from project.errors import DataError, seeds, share

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolders(DomainSet):
    """Domains in folders, ``<domain>/<class>/<picture>``, split here into training and test pictures.

    The split is drawn class by class and depends on nothing but the names of the files and the seed.

    Args:
        root: Folder of the domains' folders.
        domains: Which domains, in which order; all, sorted by name, when not given.
        test_fraction: Share of each class's pictures that is kept for testing, from 0 up to but without 1.
        seed: Seed of the split.
    """

    def __init__(
        self, root: str | Path, domains: list[str] | None = None, test_fraction: float = 0.2, seed: int = 0
    ) -> None:
        share(none=True, whole=False, test_fraction=test_fraction)
        seeds(seed=seed)
        self.root = Path(root)
        self.domains = domains
        self.test_fraction = test_fraction
        self.seed = seed

    def read(self) -> list[Domain]:
        """List the pictures of every domain.

        Raises:
            ConfigurationError: Where an unknown domain is asked for.
            DataError: Where the root is missing, or a domain or a class holds no pictures.
        """
        known = [folder.name for folder in _folders(self.root)] if self.root.is_dir() else []
        if not known:
            there = (
                "holds no domains" if self.root.is_dir() else "is no folder" if self.root.exists() else "is not there"
            )
            raise DataError(f"{self.root} {there}; put pictures there as <domain>/<class>/<picture>.")
        return [self._domain(name) for name in choose(self.domains, known)]

    def _domain(self, name: str) -> Domain:
        folders = _folders(self.root / name)
        listed = [_pictures(folder, label) for label, folder in enumerate(folders)]
        for folder, pictures in zip(folders, listed, strict=True):
            if not pictures:
                allowed = ", ".join(sorted(SUFFIXES))
                raise DataError(f"Class folder {folder} holds no pictures ({allowed}); fill or remove it.")
        samples = [sample for pictures in listed for sample in pictures]
        if not samples:
            raise DataError(f"Domain {name} has no pictures in {self.root / name}; allowed: <class>/<picture> in it.")
        train, test = hold_out(samples, self.test_fraction, self.seed)
        return Domain(name, tuple(folder.name for folder in folders), train, test)


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
        samples = _pictures(self.root, 0)
        if not samples:
            raise DataError(f"{self.root} holds no pictures ({', '.join(sorted(SUFFIXES))}), at any depth.")
        return [Domain(self.root.resolve().name, ("",), samples, [])]


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path, label: int) -> list[Sample]:
    """Pictures below a folder, none that are hidden."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return [(path, label) for path in sorted(shown)]
