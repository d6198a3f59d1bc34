"""Where a student comes from, as its file tells; ``project.student.lineage`` reads it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from project.methods import Merged, Method
from project.models.reading.hub import hub_name
from project.student import Source


def lineage(
    method: Method, merged: Merged, sources: Sequence[Source], owners: Mapping[str, int], base: str | None = None
) -> dict[str, Any]:
    """Method by its name and its class, budget, what was learned, sources and versions, as plain values.

    Args:
        method: What made the student.
        merged: The student and its budget.
        sources: What it was made of, in the order of its unit maps.
        owners: Domain -> index of the only source that was trained on it.
        base: What they were fine-tuned from, as the user named it.
    """
    return {
        "method": merged.method,
        "class": type(method).__name__,
        "options": {**method.options, **merged.learned.get("tuned", {}).get("setting", {})},
        "budget": merged.budget.plain,
        "base": base,
        **({"learned": dict(merged.learned)} if merged.learned else {}),
        "sources": [
            {
                "name": source.name,
                "sha256": source.sha256,
                "architecture": source.architecture.plain,
                "domains": [domain for domain, owner in owners.items() if owner == index],
                **({"hub": hub} if source.path is not None and (hub := hub_name(source.path)) else {}),
            }
            for index, source in enumerate(sources)
        ],
        "versions": {"torch": str(torch.__version__), "lightning": version("lightning")},
    }
