"""Results of merges that never were, from a seed, as ``results.json`` holds them."""

import random
from collections.abc import Sequence
from typing import Any

BINS = 15
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=https://example.org/x onerror=alert(1)>',
    "<style>@import url(//example.org)</style>",
    "‮evil\x1b[31m\n\0",
    "\ud800 ' & `",
    "w" * 700,
)


def drawn_results(
    domains: Sequence[str] = ("clipart", "sketch"),
    methods: Sequence[str] = ("average", "permutation", "pleas"),
    classes: Sequence[str] = ("cat", "dog", "cow", "hen"),
    layers: Sequence[str] = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc"),
    pictures: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """The results of a merge of one source for each domain, at three sizes."""
    draw = random.Random(seed)
    sources = [f"source {domain}" for domain in domains]
    sizes = {f"{method}-{size:.2f}": size for method in methods for size in (1.0, 1.5, 2.0)}
    kinds = {name: "source" for name in sources} | {"ensemble": "reference"} | {name: "student" for name in sizes}
    count = pictures * len(classes)
    right = {n: {d: [draw.randint(0, pictures) for _ in classes] for d in domains} for n in kinds}
    return {
        "measure": "top-1 accuracy (%)",
        "table": [_row(n, k, sizes.get(n), right[n], count) for n, k in kinds.items()],
        "phases": [{"phase": "fit", "seconds": 1.5, "peak_mib": 900}],
        "domains": list(domains),
        "tests": {
            "classes": {domain: list(classes) for domain in domains},
            "pictures": {domain: [pictures] * len(classes) for domain in domains},
            "right": right,
            "reliability": {n: {d: _bins(draw, sum(right[n][d]), count) for d in domains} for n in kinds},
            "confusions": {n: {d: _confusions(draw, classes, right[n][d], pictures) for d in domains} for n in kinds},
            "both right": {d: _both(draw, {n: sum(right[n][d]) for n in kinds}, count) for d in domains},
        },
        "layer_order": list(layers),
        "layers": {n: {layer: {"residual_after": draw.random()} for layer in layers} for n in sizes},
        "domain_residuals": {n: {d: {layer: draw.random() for layer in layers} for d in domains} for n in sizes},
        "separated": {n: {layer: draw.random() for layer in layers} for n in sizes},
        "matches": {n: {layer: draw.uniform(-2, 1) for layer in layers} for n in sizes},
        "lineage": {n: _lineage(n, sources, domains) for n in sizes},
        "calibration": dict.fromkeys(domains, 64),
        "skipped_pictures": ["broken.png"],
    }  # fmt: skip


def _row(name: str, kind: str, size: float | None, right: dict[str, list[int]], pictures: int) -> dict[str, Any]:
    accuracy = {domain: round(100 * sum(counts) / pictures, 1) for domain, counts in right.items()}
    return {
        "network": name, "kind": kind, "budget": size, "nominal": size or 1.0, "executed": size or 1.0,
        "parameters": 11_182_668, "MB": 44.769, **accuracy, "mean": sum(accuracy.values()) / len(accuracy),
        "batch norm": "fitted" if size else None, "seconds": 1.0, "before BN": None, "residual": 0.1,
    }  # fmt: skip


def _bins(draw: random.Random, right: int, pictures: int) -> dict[str, list[float]]:
    there, told = [0] * BINS, [0] * BINS
    for number in range(pictures):
        place = draw.randrange(BINS)
        there[place] += 1
        told[place] += number < right
    return {"pictures": there, "right": told, "confidence": [(place + 0.5) / BINS for place in range(BINS)]}


def _confusions(
    draw: random.Random, classes: Sequence[str], right: Sequence[int], pictures: int
) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, told in zip(classes, right, strict=True):
        others = [other for other in classes if other != name]
        for _ in range(pictures - told):
            taken = draw.choice(others)
            found.setdefault(name, {})[taken] = found.get(name, {}).get(taken, 0) + 1
    return found


def _both(draw: random.Random, right: dict[str, int], pictures: int) -> dict[str, dict[str, int]]:
    names = list(right)
    return {
        one: {
            other: draw.randint(max(0, right[one] + right[other] - pictures), min(right[one], right[other]))
            for other in names[place + 1 :]
        }
        for place, one in enumerate(names)
    }


def _lineage(name: str, sources: Sequence[str], domains: Sequence[str]) -> dict[str, Any]:
    owned = [
        {"name": source, "sha256": "0123456789abcdef" * 4, "architecture": {"name": "resnet18"}, "domains": [domain]}
        for source, domain in zip(sources, domains, strict=True)
    ]
    return {
        "method": name.split("-")[0], "class": "PLeaS", "options": {"fit": "sequential"}, "budget": 1.0, "base": None,
        "sources": owned, "versions": {"torch": "2.15.0"},
    }  # fmt: skip
