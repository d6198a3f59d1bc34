"""Small pictures for the report: what a student gets wrong and its source does not."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import DataError
from project.report.page.classes import hit_worst
from project.report.page.markup import Markup
from project.report.page.reading import Merge, part
from project.report.page.share import mean
from project.runtime.json_text import json_value
from project.runtime.saving import atomic_text

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = "examples.json"
SIDE = 72
"""Pixels of the longer side of a small picture."""
MOST = 200
"""Pictures in a report, those of the best students first; about half a megabyte."""

Paths = Mapping[str, Mapping[str, Mapping[int, Path]]]
"""Student -> domain -> class -> file of a picture."""


def write_examples(folder: Path, merge: Merge, paths: Paths, open_picture: Callable[[Path], "Image"]) -> None:
    """Write the small pictures of the classes that the report shows to the run's folder; no file where there are none.

    Args:
        folder: The run's.
        merge: What was found.
        paths: Pictures that students get wrong and their sources do not.
        open_picture: Opens one of them, upright and with its colours.
    """
    students = sorted(
        (one for one in merge.of_kind("student") if one.accuracy), key=lambda one: -mean(one.accuracy.values()).value
    )
    found: dict[str, dict[str, dict[str, str]]] = {}
    drawn: dict[Path, str] = {}
    count = 0
    for student in students:
        for domain in merge.domains:
            known = paths.get(student.name, {}).get(domain, {})
            for loss in hit_worst(merge, student, domain):
                path = known.get(loss.place)
                if path is None or count == MOST:
                    continue
                if path not in drawn:
                    drawn[path] = _small(path, open_picture)
                if drawn[path]:
                    found.setdefault(student.name, {}).setdefault(domain, {})[loss.name] = drawn[path]
                    count += 1
    if found:
        atomic_text(json.dumps(found, indent=2), folder / EXAMPLES)
    else:
        (folder / EXAMPLES).unlink(missing_ok=True)  # an earlier run's


def _small(path: Path, open_picture: Callable[[Path], "Image"]) -> str:
    """A small JPEG as text; empty where the file cannot be opened any more."""
    try:
        picture = open_picture(path).convert("RGB")
    except (OSError, DataError):
        return ""
    picture.thumbnail((SIDE, SIDE))
    content = BytesIO()
    picture.save(content, "JPEG", quality=80)
    return b64encode(content.getvalue()).decode()


def read_examples(folder: Path) -> Mapping[str, Any]:
    """The small pictures of a run; empty where it keeps none."""
    try:
        content = json_value((folder / EXAMPLES).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def example(examples: Mapping[str, Any], student: str, domain: str, name: str) -> Markup | None:
    """The address of a small picture, which holds the picture itself; None where there is none.

    Args:
        examples: As a file holds them, whoever has written it.
        student: Who gets it wrong.
        domain: The picture's.
        name: Of its class.
    """
    value = part(examples, student, domain).get(name)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", value) or len(value) % 4:
        return None
    return Markup(f"data:image/jpeg;base64,{value}") if b64decode(value).startswith(b"\xff\xd8\xff") else None
