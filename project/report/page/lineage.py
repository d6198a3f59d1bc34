"""Where the students come from, and how they are loaded."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from project.report.page.markup import Markup, choice, join, section, tag
from project.report.page.reading import Merge, number, part


def lineage_section(merge: Merge, chosen: str | None) -> Markup | None:
    """The section of lineage; None where there is none.

    Args:
        merge: What was found.
        chosen: Name of the student that is shown first.
    """
    students = merge.part("lineage")
    parts = [
        _sources(students),
        choice("lineage", "Student", {n: _student(n, part(students, n)) for n in students}, chosen)
        if students
        else None,
        _versions(students),
        _pictures(merge),
        _phases(merge),
    ]
    if not any(parts):
        return None
    return section("lineage", "Where it comes from, and how to load it", *parts)


def _sources(students: Mapping[str, Any]) -> Markup | None:
    first = next(iter(students.values()), None)
    sources = part({"first": first}, "first").get("sources")
    known = [one for one in sources if isinstance(one, Mapping)] if isinstance(sources, list) else []
    if not known:
        return None
    cards = []
    for one in known:
        architecture = part(one, "architecture")
        domains = one.get("domains")
        rows = [
            ("SHA-256", tag("code", one.get("sha256", "–"), class_="hash")),
            ("architecture", architecture.get("name")),
            ("domains", ", ".join(map(str, domains)) if isinstance(domains, list) else None),
        ]
        cards.append(tag("div", tag("h3", one.get("name", "–")), _facts(rows), class_="card"))
    return join(tag("div", *cards, class_="cards"))


def _student(name: str, lineage: Mapping[str, Any]) -> Markup:
    path = f"students/{name}.safetensors"
    options = ", ".join(f"{key}: {value}" for key, value in part(lineage, "options").items())
    rows = [
        ("method", lineage.get("method")),
        ("class", lineage.get("class")),
        ("budget", lineage.get("budget")),
        ("options", options or None),
        ("fine-tuned from", lineage.get("base")),
    ]
    python = ["import project", "", f"student = project.load_student({path!r})", "logits = student(pictures)"]
    command = [f"pleas export {shlex.quote(path)} --to onnx"]
    return tag(
        "div",
        _facts(rows),
        tag("p", "In Python, from this file's folder:", class_="note"),
        _code(python),
        tag("p", "For other tools (see pleas export --help; timm takes students of one source's size):", class_="note"),
        _code(command),
        class_="card",
    )


def _code(lines: Sequence[str]) -> Markup:
    return tag("pre", tag("code", join(*[join(line, Markup("\n")) for line in lines])))


def _facts(rows: Sequence[tuple[str, object]]) -> Markup:
    shown = [join(tag("dt", name), tag("dd", value)) for name, value in rows if value is not None]
    return tag("dl", *shown)


def _versions(students: Mapping[str, Any]) -> Markup | None:
    found = next((part({"one": one}, "one", "versions") for one in students.values()), {})
    words = ", ".join(f"{name} {version}" for name, version in found.items())
    return tag("p", f"Made with {words}.") if words else None


def _pictures(merge: Merge) -> Markup | None:
    counts = {name: value for name, value in merge.part("calibration").items() if number(value) is not None}
    skipped = merge.content.get("skipped_pictures")
    words = ", ".join(f"{value} of {name}" for name, value in counts.items())
    parts = [f"Pictures that calibrated: {words}."] if words else []
    if isinstance(skipped, list) and skipped:
        parts.append(f"Files that could not be read and were passed over: {len(skipped)}.")
    return tag("p", " ".join(parts)) if parts else None


def _phases(merge: Merge) -> Markup | None:
    phases = merge.content.get("phases")
    known = [one for one in phases if isinstance(one, Mapping)] if isinstance(phases, list) else []
    shown = [f"{one.get('phase')} {one.get('seconds')} s" for one in known if number(one.get("seconds")) is not None]
    return tag("p", f"Time: {', '.join(shown)}.") if shown else None
