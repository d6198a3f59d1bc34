"""The page as a whole: one file, with its own style and script, that may fetch nothing."""

from base64 import b64encode
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from project.report.page.accuracy import accuracy_section
from project.report.page.calibration import calibration_section
from project.report.page.classes import class_section
from project.report.page.confusions import confusion_section
from project.report.page.examples import example, read_examples
from project.report.page.layers import layer_section
from project.report.page.lineage import lineage_section
from project.report.page.markup import Markup, join, section, tag
from project.report.page.reading import Merge, Network, read_merge
from project.report.page.share import mean
from project.report.page.table import table_section
from project.report.page.verdict import Verdict, verdict
from project.runtime.saving import atomic_text

REPORT = "report.html"
BADGES = {
    "merge": "Merge at this size",
    "larger": "Take a larger budget",
    "loses": "Merging costs accuracy",
    "keep": "Keep a source",
    "undecided": "Not decided",
    "mis-prepared": "Look at the sources first",
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from ``results.json``, and from ``examples.json`` if there is one, whole or not at all.

    Args:
        folder: The run's.

    Returns:
        The file.

    Raises:
        ConfigurationError: If the folder holds no results of a merge.
        StorageError: If there is no room for it, or the disk fails.
    """
    atomic_text(page(read_merge(folder), read_examples(folder)), folder / REPORT)
    return folder / REPORT


def page(merge: Merge, examples: Mapping[str, Any] | None = None) -> str:
    """The report of a merge, as HTML.

    Args:
        merge: What was found.
        examples: Small pictures by student, domain and class, as :func:`write_examples` keeps them.
    """
    found = verdict(merge)
    shown = _shown_first(merge, found)
    *others, last = [source.name for source in merge.of_kind("source")] or ["sources"]
    title = f"Merge of {', '.join(others)} and {last}" if others else f"Merge of {last}"
    sections = [
        _verdict_section(merge, found),
        table_section(merge, found.recommended if found else None),
        accuracy_section(merge),
        layer_section(merge, shown),
        class_section(merge, shown, partial(example, examples or {})),
        confusion_section(merge, shown),
        calibration_section(merge, shown),
        lineage_section(merge, shown),
    ]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", _subtitle(merge), class_="note")),
        tag("main", *sections),
        tag("footer", "Written by pleas-lightning from results.json; pleas report FOLDER writes it again."),
        tag("div", id="tip", role="tooltip", hidden=True),
        tag("script", _file("page.js")),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("title", title),
        tag("style", _file("page.css")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _policy() -> str:
    """What a browser may load: nothing, and of scripts it runs ours alone, whatever else got into the page."""
    ours = b64encode(sha256(_file("page.js").encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{ours}'; style-src 'unsafe-inline'; img-src data:"


def _file(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _subtitle(merge: Merge) -> str:
    students = len(merge.of_kind("student"))
    made = f"{students} students" if students != 1 else "1 student"
    return f"{made}, scored on {', '.join(merge.domains)}" if merge.domains else made


def _shown_first(merge: Merge, found: Verdict | None) -> str | None:
    """The student whose details are open: the recommended one, else the best."""
    students = [one for one in merge.of_kind("student") if one.accuracy]
    if found is not None and found.recommended in {one.name for one in students}:
        return found.recommended
    best = max(students, key=lambda one: mean(one.accuracy.values()).value, default=None)
    return None if best is None else best.name


def _verdict_section(merge: Merge, found: Verdict | None) -> Markup:
    if found is None:
        words = (
            "This run does not hold what a verdict needs: students, accuracies of classes, and the number of test "
            "pictures behind each."
        )
        return section("verdict", "Verdict", tag("p", words))
    chosen = next((one for one in merge.networks if one.name == found.recommended), None)
    return section(
        "verdict",
        "Verdict",
        tag("p", BADGES[found.kind], class_=f"badge {found.kind}"),
        tag("p", found.sentences[0], class_="lead"),
        tag("p", found.sentences[1]),
        None if chosen is None else _facts(chosen),
    )


def _facts(network: Network) -> Markup:
    """The recommended network in a few figures."""
    megabytes = network.cells.get("MB")
    facts = [
        ("recommended", network.name),
        ("mean accuracy", f"{mean(network.accuracy.values()).text} %"),
        ("multiply-adds", None if network.cost is None else f"{network.cost:.2f} × one source"),
        ("size", f"{megabytes:.1f} MB" if isinstance(megabytes, int | float) else None),
    ]
    cells = [join(tag("div", tag("dt", name), tag("dd", value))) for name, value in facts if value is not None]
    return tag("dl", *cells, class_="tiles")
