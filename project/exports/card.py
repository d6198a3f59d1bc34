"""A model card: what a student is, for people and for the Hugging Face Hub, which reads the metadata above."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from project.errors import HUB_NAMES, printable
from project.exports.common import heads_of, notes_of
from project.runtime.json_text import json_value
from project.runtime.saving import atomic_text
from project.student import Student

CARD = "README.md"
TAGS = ("image-classification", "merge", "model-merging", "pleas-lightning")
LISTED = 50
"""Classes of a head that a card names."""


@dataclass(frozen=True)
class Measured:
    """How often a student is right on the test pictures of a domain.

    Args:
        domain: Its name.
        percent: In per cent.
        pictures: Of how many; None where that is not recorded.
    """

    domain: str
    percent: float
    pictures: int | None


def card_place(path: Path, folder: bool) -> Path:
    """Where the card of an export goes: into its folder, else beside its file.

    Args:
        path: What is written.
        folder: Whether that is a folder.
    """
    return path / CARD if folder else path.with_name(f"{path.name}.{CARD}")


def measured(student: Student, file: Path) -> list[Measured]:
    """What a merge has measured of a student: from ``results.json`` above the folder of students, of the same lineage.

    Args:
        student: The student.
        file: Its file, as the merge has written it.

    Returns:
        One a domain; none where there is no such file, or it tells of another student of that name.
    """
    try:
        content = json_value((file.absolute().parent.parent / "results.json").read_bytes())
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or not student.lineage:
        return []
    told, name = content.get("lineage"), file.stem
    if not isinstance(told, dict) or told.get(name) != student.lineage:
        return []
    table, domains, tests = content.get("table"), content.get("domains"), content.get("tests", {})
    rows = [row for row in table if isinstance(row, dict) and row.get("network") == name] if table else []
    found = []
    for domain in domains if rows and isinstance(domains, list) else ():
        percent, pictures = rows[0].get(domain), tests.get("pictures", {}).get(domain)
        if isinstance(percent, int | float):
            found.append(Measured(domain, percent, sum(pictures) if pictures else None))
    return found


LOADING = {
    "timm": (
        "import timm\n\n"
        "network = timm.create_model({folder!r}, pretrained=True).eval()  # on the Hub: hf-hub:OWNER/NAME\n"
        "logits = network(pictures)"
    ),
    "onnx": (
        "import onnxruntime\n\n"
        "session = onnxruntime.InferenceSession({name!r})\n"
        'logits = session.run(None, {{"pictures": pictures}})  # float32, one array a head'
    ),
    "torch-export": (
        "import torch\n\n"
        "network = torch.export.load({name!r}).module()\n"
        "logits = network(pictures)  # name of a head -> logits"
    ),
    "safetensors": (
        "from safetensors.torch import load_file\n\n"
        "network.load_state_dict(load_file({name!r}))  # of the architecture that is named above"
    ),
}
"""Target -> how what is written there is loaded."""


def write_card(student: Student, path: Path, place: Path, to: str, **said: Any) -> None:
    """Write the card of an export, or take back the export where it cannot be written.

    Args:
        student: The student.
        path: What was written of it.
        place: Where the card goes.
        to: The target.
        said: See :func:`card`.
    """
    try:
        atomic_text(card(student, path, to, **said), place)
    except BaseException:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def card(student: Student, path: Path, to: str, scores: Sequence[Measured] = (), licence: str | None = None) -> str:
    """The card, as Markdown below metadata in YAML.

    Args:
        student: The student.
        path: What is written.
        to: The target.
        scores: What was measured of it.
        licence: Of the weights, as the Hub names licences (``apache-2.0``); None where nobody has said it.
    """
    title = printable(path.name)
    lineage, sources = student.lineage, _known(student.lineage.get("sources"))
    loading = LOADING[to].format(name=title, folder=f"local-dir:{title}")
    head = yaml.safe_dump(_metadata(student, sources, to, title, scores, licence), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---", f"# {_plain(title)}", _summary(student, sources)]
    if sources:
        parts += ["## Merged from", _sources(sources)]
    if lineage.get("method"):
        parts += ["## How", _how(lineage)]
    parts += ["## Classes", _classes(student), "## Pictures", _pictures(student)]
    if scores:
        parts += ["## Accuracy", _scores(scores)]
    parts += ["## Loading", f"```python\n{loading}\n```"]
    if notes := notes_of(student):
        parts += ["## What is not in it", "\n".join(f"- {_plain(note)}." for note in notes)]
    if licence is None:
        parts.append("No licence is stated here; those of the sources and of their training data apply.")
    return "\n\n".join(parts) + "\n"


def _known(sources: object) -> list[Mapping[str, Any]]:
    """What a student's file says of its sources, as far as that is as a merge writes it."""
    given = sources if isinstance(sources, list) else []
    return [one for one in given if isinstance(one, Mapping) and isinstance(one.get("architecture"), Mapping)]


def _metadata(
    student: Student,
    sources: Sequence[Mapping[str, Any]],
    to: str,
    title: str,
    scores: Sequence[Measured],
    licence: str | None,
) -> dict[str, Any]:
    bases = [str(source["hub"]) for source in sources if source.get("hub")]
    base = str(student.lineage.get("base") or "")
    if not bases and base.startswith(HUB_NAMES):
        bases = [base.partition(":")[2].partition("@")[0]]
    method = str(student.lineage.get("class") or "").lower()
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {
                "name": printable(one.domain),
                "type": re.sub(r"\W+", "-", one.domain).strip("-").lower() or "pictures",
            },
            "metrics": [{"type": "accuracy", "value": round(one.percent / 100, 4), "name": "top-1 accuracy"}],
        }
        for one in scores
    ]
    return {
        **({"license": licence} if licence else {}),
        **({"base_model": list(dict.fromkeys(bases)), "base_model_relation": "merge"} if bases else {}),
        **({"library_name": "timm"} if to == "timm" else {}),
        "pipeline_tag": "image-classification",
        "tags": [*TAGS, *([method] if method else [])],
        **({"model-index": [{"name": title, "results": results}]} if results else {}),
    }


def _summary(student: Student, sources: Sequence[Mapping[str, Any]]) -> str:
    names = " and ".join(_plain(source.get("name")) for source in sources)
    network = _plain(sources[0]["architecture"].get("name")) if sources else "network"
    made = f", merged from {names} without labels and without another training" if names else ""
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return f"One {network} of {parameters:,} parameters{made}, for {', '.join(map(_plain, student.labels.domains))}."


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| source | trained on | SHA-256 |", "|---|---|---|"]
    for source in sources:
        name = _plain(source.get("name"))
        shown = f"[{name}](https://huggingface.co/{source['hub']})" if source.get("hub") else name
        domains = ", ".join(map(_plain, source.get("domains", []))) or "–"
        rows.append(f"| {shown} | {domains} | `{_plain(source.get('sha256'))}` |")
    return "\n".join(rows)


def _how(lineage: Mapping[str, Any]) -> str:
    said = {"method": lineage.get("class"), "budget": lineage.get("budget"), "fine-tuned from": lineage.get("base")}
    said |= dict(lineage.get("options") or {}) | {name: of for name, of in (lineage.get("versions") or {}).items()}
    return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in said.items() if value is not None)


def _classes(student: Student) -> str:
    lines = []
    for name, classes in heads_of(student).items():
        more = f" and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
        lines.append(f"- {_plain(name)}, {len(classes)} classes: {', '.join(map(_plain, classes[:LISTED]))}{more}")
    return "\n".join(lines)


def _pictures(student: Student) -> str:
    channels, height, width = student.spec.picture
    said = f"{channels} × {height} × {width}"
    known = student.preprocessing
    if known is None:
        return f"{said}; what they go through before is not known."
    return (
        f"{said}, {known.channels}: resized to {known.resized} ({known.interpolation}), cut to {known.image_size} "
        f"({known.crop}), less {list(known.mean)}, over {list(known.std)}."
    )


def _scores(scores: Sequence[Measured]) -> str:
    rows = ["| domain | top-1 (%) | test pictures |", "|---|---:|---:|"]
    return "\n".join([
        *rows, *[f"| {_plain(one.domain)} | {one.percent:.1f} | {one.pictures or '–'} |" for one in scores]
    ])  # fmt: skip


def _plain(value: object) -> str:
    """Text that Markdown takes for nothing else, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(printable(str(value)).split()))
