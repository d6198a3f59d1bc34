"""What can be wrong with a tree of pictures, and with a path."""

import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fuzzing.contents import damaged

NAMES = (
    "a b", " ", "'", '"', "a\nb", "a\tb", "ü", "u\u0308", "🐈", "-x", "--out", "x.", "..x", "%s", "{}", "{x}",
    "$HOME", "null", "true", "1.0", "1e3", "[a]", "a,b", "a;b", "a:b", "a#b", "a\\b", "*", "CAT", "x" * 200, "nan",
    "NaN", "\udcff", "\u202ex", "clean", "mean", "none", "joint", "own", "network", "ensemble", "=x", "@x", "a/b",
)  # fmt: skip
"""Names of classes, domains and files; the last but one begin what a spreadsheet would compute."""


def odd_name(random: Random) -> str:
    """A name that a folder or file may have."""
    return random.choice(NAMES).replace("/", "\N{DIVISION SLASH}")


def spoilt_tree(random: Random, root: Path) -> tuple[str, set[str]]:
    """Spoil a tree ``<domain>/<class>/<picture>``.

    Returns:
        In words what was done, and names of which a sentence about it holds one.
    """
    domain = random.choice(sorted(path for path in root.iterdir() if path.is_dir()))
    kind = random.choice(sorted(path for path in domain.iterdir() if path.is_dir()))
    picture = random.choice(sorted(path for path in kind.iterdir() if path.is_file()))
    told: set[str] = {root.name, domain.name, kind.name, picture.name}

    def emptied() -> str:
        shutil.rmtree(kind)
        kind.mkdir()
        return f"{kind} is empty"

    def lost() -> str:
        shutil.rmtree(kind)
        return f"{kind} is not there"

    def one_class() -> str:
        for other in root.glob("*/*"):
            if other.name != kind.name:
                shutil.rmtree(other)
        return f"every domain has the one class {kind.name}"

    def one_picture() -> str:
        for other in kind.iterdir():
            if other != picture:
                other.unlink()
        return f"{picture} is the only one of its class"

    def one_each() -> str:
        for place in root.glob("*/*"):
            for other in sorted(place.iterdir())[1:]:
                other.unlink()
        return "one picture in every class"

    def no_classes() -> str:
        shutil.rmtree(domain)
        domain.mkdir()
        return f"{domain} is empty"

    def flat() -> str:
        for place in sorted(domain.iterdir()):
            for other in sorted(place.iterdir()):
                other.rename(domain / f"{place.name}-{other.name}")
            place.rmdir()
        return f"{domain} holds pictures without classes"

    def more_classes() -> str:
        shutil.copytree(kind, domain / "more")
        return f"{domain} has a class more"

    def more_domains() -> str:
        name = odd_name(random)
        told.add(name)
        shutil.copytree(domain, root / name)
        return f"{root} has the domain {name!r}, too"

    def deeper() -> str:
        kind.rename(root / "moved")
        (kind / "train").mkdir(parents=True)
        (root / "moved").rename(kind / "train" / kind.name)
        return f"{kind}'s pictures lie two folders deeper"

    def renamed_class() -> str:
        name = odd_name(random)
        told.add(name)
        for one in sorted(root.iterdir()):
            (one / kind.name).rename(one / name)
        return f"class {kind.name} is called {name!r}"

    def renamed_domain() -> str:
        name = odd_name(random)
        told.add(name)
        domain.rename(root / name)
        return f"domain {domain.name} is called {name!r}"

    def renamed_picture() -> str:
        name = f"{odd_name(random)}.png"
        told.add(name)
        picture.rename(picture.with_name(name))
        return f"{picture} is called {name!r}"

    def broken() -> str:
        content, what = damaged(random, picture.read_bytes())
        picture.write_bytes(content)
        return f"{picture}: {what}"

    def all_broken() -> str:
        for other in domain.rglob("*.png"):
            other.write_bytes(other.read_bytes()[:60])
        return f"all of {domain} are cut off"

    def huge() -> str:
        side = random.choice((20_000, 65_535, 2**31 - 1))
        picture.write_bytes(png_of_size(side, side))
        return f"{picture} says that it has {side} × {side} pixels"

    def thin() -> str:
        size = random.choice(((1, 1), (1, 3000), (3000, 1), (0, 0)))
        if min(size):
            Image.fromarray(np.full((size[1], size[0], 3), 9, np.uint8)).save(picture)
        else:
            picture.write_bytes(png_of_size(0, 0))
        return f"{picture} has {size[0]} × {size[1]} pixels"

    def other_mode() -> str:
        mode = random.choice(("1", "L", "LA", "P", "RGBA", "I", "I;16", "F", "CMYK", "YCbCr"))
        suffix = {"I": ".tiff", "F": ".tiff", "CMYK": ".jpg", "YCbCr": ".jpg"}.get(mode, ".png")
        with Image.open(picture) as image:
            found = image.convert("L").convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
            found.save(picture.with_suffix(suffix))
        if suffix != ".png":
            picture.unlink()
        return f"{picture.with_suffix(suffix)} is of the mode {mode}"

    def animated() -> str:
        with Image.open(picture) as image:
            image.save(picture.with_suffix(".gif"), save_all=True, append_images=[image.rotate(90)])
        return f"{picture.with_suffix('.gif')} has two frames"

    def strangers() -> str:
        for name in ("Thumbs.db", ".DS_Store", "readme.txt", "labels.csv"):
            (random.choice((root, domain, kind)) / name).write_bytes(b"foreign")
        return "foreign files lie about"

    def strange_folder() -> str:
        place = random.choice((root, domain)) / random.choice(("__MACOSX", "@eaDir", ".git", "lost+found"))
        (place / "x").mkdir(parents=True)
        told.add(place.name)
        return f"a foreign folder, {place}"

    def no_picture() -> str:
        what = random.choice(("text", "folder", "fifo", "socket", "dangling", "device", "unreadable"))
        picture.unlink()
        special(picture, what)
        return f"{picture} is {what}"

    def loop() -> str:
        place = random.choice((kind, domain, root)) / "loop"
        place.symlink_to(random.choice((Path(".."), root.absolute(), place.absolute())))
        told.add("loop")
        return f"{place} leads back to {os.readlink(place)}"

    def file_for_folder() -> str:
        place = random.choice((kind, domain))
        shutil.rmtree(place)
        place.write_bytes(b"no folder")
        return f"{place} is a file"

    def linked() -> str:
        domain.rename(root.with_name("elsewhere"))
        domain.symlink_to(root.with_name("elsewhere").absolute())
        return f"{domain} is a link"

    def constant() -> str:
        for other in domain.rglob("*.png"):
            Image.new("RGB", (32, 32), "white").save(other)
        return f"all of {domain} are white"

    def doubles() -> str:
        for index, other in enumerate(sorted(kind.iterdir())):
            if index:
                shutil.copyfile(picture, other)
        return f"{kind} holds one picture many times"

    kinds: tuple[Callable[[], str], ...] = (
        emptied, lost, one_class, one_picture, one_each, no_classes, flat, more_classes, more_domains, deeper,
        renamed_class, renamed_domain, renamed_domain, renamed_picture, broken, broken, all_broken, huge, thin,
        other_mode, animated, strangers, strange_folder, no_picture, no_picture, loop, file_for_folder, linked,
        constant, doubles,
    )  # fmt: skip
    return random.choice(kinds)(), told


LINES = (
    "", " ", "art/cat/1.png", "0", "art/cat/1.png 7", "art/cat/1.png -1", "art/cat/1.png 1.5", "art/cat/1.png one",
    "art/cat/nowhere.png 0", "../pictures/art/cat/1.png 0", "/etc/cat/1.png 0", "art/dog/1.png 0", "cat/1.png 0",
    "1.png 0", f"art/cat/1.png {'9' * 5000}", f"{'x' * 5000}/cat/1.png 0", "art/cat/1.png\t0", "art/cat/1.png 0 0",
    "art/cat/\0.png 0", "art/c\u2028at/1.png 0", "art/cat 0", "./art/cat/1.png 0", "art//cat/1.png 0",
    "# art/cat/1.png 0", "art/CAT/1.png 3",
)  # fmt: skip


def spoilt_list(random: Random, path: Path) -> str:
    """Spoil a line of a list of pictures; returns in words what was done."""
    lines = path.read_text().splitlines()
    place = random.randrange(len(lines))
    what, line = random.choice(("other", "more", "lost", "twice", "none")), random.choice(LINES)
    if what == "none":
        lines = []
    elif what == "lost":
        lines = lines[place + 1 :]
    else:
        lines[place : place + (what == "other")] = [lines[place] if what == "twice" else line]
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"{what}, line {place + 1}: {line!r:.60}"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def special(path: Path, what: str) -> None:
    """Put something that is no plain file at a path.

    Args:
        path: Where nothing is yet.
        what: ``fifo`` (nobody writes to it), ``socket``, ``dangling``, ``loop``, ``device``, ``folder``,
            ``full folder``, ``unreadable``, ``empty`` or ``text``.
    """
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # its name may be longer than a socket's address
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(here)
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "full folder":
        path.mkdir()
        (path / "one.txt").write_bytes(b"x")
    elif what == "unreadable":  # to all but root
        path.write_bytes(b"x" * 100)
        path.chmod(0)
    else:
        path.write_bytes(b"" if what == "empty" else b"text, and nothing else\n")


SPECIAL = ("fifo", "socket", "dangling", "loop", "device", "folder", "full folder", "unreadable", "empty", "text")


def path_to_read(random: Random, folder: Path, good: str) -> tuple[str, str]:
    """A path that does not lead to what is read.

    Args:
        random: What is drawn from.
        folder: Where the command runs.
        good: A path in it that does.

    Returns:
        The path, and in words what is there.
    """
    if random.random() < 0.6:
        what = random.choice(SPECIAL)
        name = f"odd{Path(good).suffix}"
        special(folder / name, what)
        return name, what
    path = random.choice(
        (f"{good}/x", "/dev/null", "", " ", ".", "..", "/", "x" * 300, "x/" * 3000, "nowhere", "nowhere/x",
        "~/nowhere",
         "$HOME/nowhere", "http://127.0.0.1:9/x", "file:///nowhere", "*", "\udcff.pth", "no\nwhere", good.upper(),
         f"{good} ",
         f"./{good}/../{good}")
    )  # fmt: skip
    return path, "a path"


def path_to_write(random: Random, folder: Path, suffix: str = "") -> tuple[str, str]:
    """A path that cannot be written to, or is an odd one."""
    if random.random() < 0.5:
        what = random.choice([what for what in SPECIAL if what != "device"])
        special(folder / f"odd{suffix}", what)
        return f"odd{suffix}", what
    (folder / "file").write_bytes(b"in the way")
    path = random.choice(
        ("file/x", "file/x/y", "/dev/null/x", "/dev/null", "/dev/full", "/proc/x", "", " ", "x" * 300,
        "a/" * 2500 + "x",
         "\udcff", "no\nwhere", "file", "new/../new/x", "new/x/y", "-x", "new folder", "ü")
    )  # fmt: skip
    return f"{path}{suffix}" if path[-1:].isalnum() and not path.startswith(("/dev", "file")) else path, "a path"
