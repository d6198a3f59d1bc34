"""What lies below a folder: pictures, what systems and programs leave beside them, and files of other kinds."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
})  # fmt: skip
"""Of files that are opened as pictures."""
UNREAD = frozenset({
    ".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".nef",
    ".orf", ".psd", ".raf", ".rw2", ".svg", ".tga", ".xcf",
})  # fmt: skip
"""Of files that are pictures, too, but are not opened."""
LEFTOVERS = frozenset({
    "#recycle", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@synoresource", "__macosx", "desktop.ini",
    "ehthumbs.db", "lost+found", "system volume information", "thumbs.db",
})  # fmt: skip
"""Folders and files that systems leave beside pictures, copies and thumbnails of them among their contents."""


@dataclass
class Walk:
    """What was found.

    Args:
        pictures: Files that are to be opened, sorted.
        leftovers: Number of files that are hidden or a system's own.
        unread: Suffix -> number of pictures of a kind that is not opened.
        others: Number of files that are none.
    """

    pictures: list[Path] = field(default_factory=list)
    leftovers: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    others: int = 0

    def __add__(self, other: "Walk") -> "Walk":
        """Both."""
        return Walk(
            self.pictures + other.pictures,
            self.leftovers + other.leftovers,
            self.unread + other.unread,
            self.others + other.others,
        )

    def note(self, where: str) -> str | None:
        """A sentence on what is passed over though nobody would mistake it for a picture; None if nothing is.

        Args:
            where: The folder, or the domain.
        """
        passed = [
            f"{count} {what if count > 1 else one}"
            for count, what, one in (
                (self.leftovers, "hidden files and such as systems leave", "file that is hidden or a system's"),
                (self.others, "files that are no pictures", "file that is no picture"),
            )
            if count
        ]
        return f"{where}: passed over are {' and '.join(passed)}" if passed else None

    def doubt(self, where: str) -> str | None:
        """A sentence on pictures of kinds that are not opened; None if there are none.

        Args:
            where: The folder, or the domain.
        """
        if not self.unread:
            return None
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.unread.items()))
        return f"{where}: pictures of kinds that are not opened are passed over ({kinds}); save them as .png or .jpg."


def is_leftover(name: str) -> bool:
    """Whether a file or folder of a name is hidden, or what systems leave beside pictures."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def folders_in(parent: Path) -> list[Path]:
    """Folders in a folder, sorted by name, but for leftovers."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not is_leftover(path.name))


def walk(folder: Path, deep: bool = True) -> Walk:
    """All files below a folder, at any depth; links to folders are not followed.

    Args:
        folder: Where to begin.
        deep: Whether to look into folders below it.
    """
    found = Walk()
    for place, folders, files in os.walk(folder):
        left = [name for name in folders if is_leftover(name)]
        found.leftovers += sum(len(inner) for name in left for _, _, inner in os.walk(os.path.join(place, name)))
        folders[:] = [name for name in folders if not is_leftover(name)] if deep else []
        for name in files:
            _sort(found, Path(place, name))
    found.pictures.sort()
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether some picture lies in a folder itself."""
    with os.scandir(folder) as entries:
        return any(
            Path(entry.name).suffix.lower() in SUFFIXES and not is_leftover(entry.name) and entry.is_file()
            for entry in entries
        )


def _sort(found: Walk, path: Path) -> None:
    suffix = path.suffix.lower()
    if is_leftover(path.name):
        found.leftovers += 1
    elif suffix in SUFFIXES and path.is_file():
        found.pictures.append(path)
    elif suffix in UNREAD:
        found.unread[suffix] += 1
    else:
        found.others += 1
