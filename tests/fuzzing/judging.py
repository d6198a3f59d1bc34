"""Running a case, and what must hold of it afterwards."""

import csv
import hashlib
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

import project
from fuzzing.cases import Case
from project import __main__ as command
from project.errors import PleasError

LONGEST = 2500
"""Characters of a sentence; the longest lists torchvision's networks."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind.

    Args:
        status: Its exit status.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
        before: What lay in its folder before.
        after: What lay there afterwards.
        left: What it left in the folder for temporary files.
    """

    status: int
    out: str
    err: str
    before: dict[str, str]
    after: dict[str, str]
    left: list[str]


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder, links not followed: path -> what it is, and of files a hash."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                try:
                    text = f"file {hashlib.sha256(path.read_bytes()).hexdigest()}"
                except PermissionError:
                    text = "file that cannot be read"
            else:
                text = f"link to {os.readlink(path)}" if stat.S_ISLNK(mode) else f"{stat.S_IFMT(mode):o}"
            found[str(path.relative_to(folder))] = text
    return found


def perform(case: Case, folder: Path, scratch: Path) -> Outcome:
    """Run a case in this process.

    Args:
        case: What was drawn.
        folder: Where its inputs lie.
        scratch: An empty folder beside it, for what it says and for temporary files.
    """
    before = snapshot(folder)
    temporary = scratch / "temporary"
    temporary.mkdir()
    with (scratch / "out").open("w+b") as out, (scratch / "err").open("w+b") as err:
        with _inside(folder, temporary), _redirected(out, err), _arguments(case.words):
            status = _status()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Outcome(status, *texts, before, snapshot(folder), sorted(os.listdir(temporary)))


def _status() -> int:
    """Run the command as its script does."""
    try:
        return int(command.console() or 0)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1


@contextmanager
def _inside(folder: Path, temporary: Path) -> Iterator[None]:
    here, given, known = Path.cwd(), os.environ.get("TMPDIR"), tempfile.tempdir
    os.chdir(folder)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    try:
        yield
    finally:
        os.chdir(here)
        tempfile.tempdir = known
        del os.environ["TMPDIR"]
        if given is not None:
            os.environ["TMPDIR"] = given


@contextmanager
def _redirected(out: BinaryIO, err: BinaryIO) -> Iterator[None]:
    """Both streams into files, those of libraries that are not Python's, too."""
    streams, kept = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    for stream in streams:
        stream.flush()
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", 1, "utf-8", "backslashreplace") for number in (1, 2))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = streams
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    given = sys.argv
    sys.argv = ["pleas", *words]
    try:
        yield
    finally:
        sys.argv = given


# ---- what must hold --------------------------------------------------------------------------------------------------


def faults(case: Case, outcome: Outcome, folder: Path) -> list[str]:
    """What does not hold of a case that has run, a phrase each."""
    found = [f"it says {line!r}" for line in (outcome.out + outcome.err).splitlines() if _trace(line)]
    found += [f"it leaves {name} among temporary files" for name in outcome.left]
    new = sorted(outcome.after.keys() - outcome.before.keys())
    changed = sorted(
        path
        for path, content in outcome.before.items()
        if outcome.after.get(path) != content and path not in case.writes
    )
    found += [f"it changed {path}" for path in changed if path.split("/")[0] != "out"]
    found += [f"it left {path}" for path in new if _unfinished(path)]
    if "imported" in new:
        found.append("it imported a module that a file names")
    if outcome.status:
        found += _of_refusal(case, outcome)
        if new:
            found.append(f"it failed and left {', '.join(new[:4])}")
    else:
        if case.impossible:
            found.append("it accepted what cannot be")
        found += _of_answer(folder, new)
    return found


def _trace(line: str) -> bool:
    return bool(re.match(r"(Traceback \(most recent call last\)|Exception ignored in|Fatal Python error)", line))


def _unfinished(path: str) -> bool:
    return path.endswith(".tmp") or "progress" in Path(path).parts


def _of_refusal(case: Case, outcome: Outcome) -> Iterator[str]:
    """What is wrong with how a case was refused."""
    if outcome.status not in (1, 2):
        yield f"its exit status is {outcome.status}"
    lines = [line for line in outcome.err.replace("\r", "\n").split("\n") if line.strip()]
    told = [index for index, line in enumerate(lines) if line.startswith("pleas: error: ")]
    if len(told) != 1:
        yield f"it says {len(told)} sentences of error"
        return
    if told[0] != len(lines) - 1:
        yield f"its sentence goes on: {lines[told[0] + 1]!r}"
    sentence = lines[told[0]].removeprefix("pleas: error: ")
    if len(sentence) > LONGEST:
        yield f"its sentence has {len(sentence)} characters"
    if not any(name in sentence for name in case.named):
        yield f"its sentence names nothing of {sorted(case.named)}: {sentence}"


def _of_answer(folder: Path, new: list[str]) -> Iterator[str]:
    """What is wrong with the files that a case has written."""
    for name in new:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".json":
            yield from _of_json(name, path.read_text())
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                values = [value for row in csv.DictReader(file) for value in row.values()]
            if any(value in ("nan", "inf", "-inf") for value in values):
                yield f"{name} holds a number that is not finite"
        elif path.suffix == ".safetensors" and path.parent.name == "students":
            yield from _of_student(name, path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stored:
                yield from _of_tensors(name, {key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
        elif path.suffix in (".ckpt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
            yield from _of_tensors(
                name, _flat(content.get("state_dict", content))
            )  # what callbacks keep may be infinite


def _flat(content: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """All tensors in mappings."""
    found: dict[str, Any] = {}
    for key, one in content.items():
        name = f"{prefix}{key}"
        found |= _flat(one, f"{name}.") if isinstance(one, dict) else {name: one} if torch.is_tensor(one) else {}
    return found


def _of_json(name: str, text: str) -> Iterator[str]:
    odd: list[str] = []
    content = json.loads(text, parse_constant=lambda word: odd.append(word) or math.nan)
    if odd:
        yield f"{name} holds {', '.join(sorted(set(odd)))}"
    rows = content.get("table", []) if isinstance(content, dict) else []
    if any(
        isinstance(value, float) and abs(value) > 1e6 for row in rows for key, value in row.items() if key == "residual"
    ):
        yield f"{name} holds a residual above a million"


def _of_student(name: str, path: Path) -> Iterator[str]:
    try:
        student = project.load_student(path)
    except PleasError as error:
        yield f"{name} cannot be read again: {error}"
        return
    yield from _of_tensors(name, student.state_dict())
    with torch.no_grad():
        logits = student(torch.randn(2, *student.spec.picture, generator=torch.Generator().manual_seed(0)))
    if not logits.isfinite().all():
        yield f"{name} has logits that are not finite"


def _of_tensors(name: str, tensors: dict[str, Any]) -> Iterator[str]:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield f"{name} holds values in {key} that are not finite"
            return
