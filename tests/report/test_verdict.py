"""What a report recommends, as properties over many tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.report.page.reading import Merge, understand
from project.report.page.share import Share, mean
from project.report.page.verdict import ENOUGH, verdict

DOMAINS = ("art", "birds")
Rows = Mapping[str, tuple[float, Sequence[float]]]


def merge(rows: Rows, pictures: int = 2000, classes: int = 10, **changed: Any) -> Merge:
    """Name -> cost and accuracies; names with a dash are students, the others sources of one domain each."""
    table = [
        {"network": name, "kind": "student" if "-" in name else "source", "executed": cost}
        | dict(zip(DOMAINS, values, strict=True))
        for name, (cost, values) in rows.items()
    ]
    right = {
        name: {
            domain: [round(value * pictures / 100), *[0] * (classes - 1)]
            for domain, value in zip(DOMAINS, values, strict=True)
        }
        for name, (_, values) in rows.items()
    }
    sources = [name for name in rows if "-" not in name]
    lineage = {"sources": [{"name": n, "domains": [d]} for n, d in zip(sources, DOMAINS, strict=True)]}
    names = [f"class {number}" for number in range(classes)]
    return understand(
        {
            "table": table,
            "domains": list(DOMAINS),
            "lineage": {"x-1.00": lineage},
            "tests": {
                "classes": dict.fromkeys(DOMAINS, names),
                "pictures": {domain: [pictures, *[0] * (classes - 1)] for domain in DOMAINS},
                "right": right,
            },
            **changed,
        }
    )


GOOD = {"one": (1.0, (90.0, 40.0)), "two": (1.0, (40.0, 90.0))}


@pytest.mark.parametrize(
    ("rows", "pictures", "kind", "recommended", "words"),
    [
        ({**GOOD, "pleas-1.00": (1.0, (88, 87)), "pleas-1.50": (1.5, (88.5, 88))}, 2000, "merge", "pleas-1.00",
         ["Merge at this size", "97.2 ±", "1.00 times", "no larger student is clearly better", "source, one"]),
        ({**GOOD, "average-1.00": (1.0, (60, 60)), "pleas-1.50": (1.5, (87, 87)), "pleas-2.00": (2.0, (90, 90))}, 2000,
         "merge", "pleas-1.50", ["96.7 ±", "1.50 times", "pleas-2.00 at 2.00 times has 3.0 ±"]),
        ({**GOOD, "average-1.00": (1.0, (86, 86)), "pleas-1.00": (1.01, (88, 88))}, 2000, "merge", "pleas-1.00",
         ["97.8 ±"]),
        ({"one": (1.0, (96, 90)), "two": (1.0, (70, 96)), "pleas-1.00": (1.0, (92, 91)), "pleas-1.50": (1.5, (96, 95))},
         2000, "merge", "pleas-1.50", ["1.50 times"]),  # the smaller keeps 95 %, and is below source one
        ({**GOOD, "pleas-1.00": (1.0, (75, 75)), "pleas-1.50": (1.5, (80, 80))}, 2000, "larger", "pleas-1.50",
         ["Take a larger budget", "88.9 ±", "Budgets up to 2"]),
        ({**GOOD, "pleas-1.00": (1.0, (75, 75)), "pleas-2.00": (2.0, (80, 80))}, 2000, "loses", "pleas-2.00",
         ["loses more than 5 %", "88.9 ±"]),
        ({"one": (1.0, (90, 88)), "two": (1.0, (70, 80)), "pleas-1.00": (1.0, (80, 80))}, 2000, "keep", "one",
         ["Keep source one, which is better on every domain", "9.0 ±"]),
        ({"one": (1.0, (90, 80)), "two": (1.0, (70, 80)), "pleas-1.00": (1.0, (80, 80.5))}, 2000, "keep", "one",
         ["on 1 of 2 domains", "No student of this run is recommended; budgets up to 2 are open."]),
        ({"one": (1.0, (95, 80)), "two": (1.0, (70, 80)), "pleas-2.00": (2.0, (80, 85))}, 2000, "keep", "one",
         ["on 1 of 2 domains", "recommended, unless what counts is birds, where pleas-2.00"]),
        ({"one": (1.0, (90, 89)), "two": (1.0, (80, 90)), "pleas-1.00": (1.0, (90, 89.5))}, 2000, "undecided", "one",
         ["show no gain", "times as many", "Keep one"]),
        ({"one": (1.0, (90, 90)), "two": (1.0, (80, 90)), "pleas-1.00": (1.0, (90, 89.8))}, 2000, "undecided", "one",
         ["-0.1 ±", "costs no more."]),
        ({**GOOD, "pleas-1.00": (1.0, (88, 87))}, 24, "undecided", None,
         ["too few", "24 in a domain", "times as many"]),
        ({"one": (1.0, (10.4, 10)), "two": (1.0, (40, 90)), "pleas-1.00": (1.0, (30, 90))}, 2000, "mis-prepared", None,
         ["one is right on 10.4 ±", "10.0 %", "pleas check"]),
        ({"one": (1.0, (40, 90)), "two": (1.0, (90, 40)), "pleas-1.00": (1.0, (80, 80))}, 2000, "mis-prepared", None,
         ["one on birds, two on art", "50.0 ±", "'domains'"]),
    ],
)  # fmt: skip
def test_every_branch(rows: Rows, pictures: int, kind: str, recommended: str | None, words: list[str]) -> None:
    found = verdict(merge(rows, pictures))
    assert found is not None
    assert (found.kind, found.recommended) == (kind, recommended)
    told = " ".join(found.sentences)
    for word in words:
        assert word in told


percents = st.floats(0, 100)
pairs = st.tuples(percents, percents)
students = st.lists(st.tuples(st.floats(1, 2), pairs), min_size=1, max_size=5)


@given(pairs, pairs, students, st.integers(1, 5000), st.integers(1, 100))
def test_a_recommendation_is_sound(
    first: Sequence[float], second: Sequence[float], made: list[tuple[float, Any]], pictures: int, classes: int
) -> None:
    rows = {"one": (1.0, first), "two": (1.0, second), **{f"pleas-{i}": row for i, row in enumerate(made)}}
    results = merge(rows, pictures, classes)
    found = verdict(results)
    assert found is not None
    assert all(sentence.endswith(".") and "None" not in sentence for sentence in found.sentences)
    means = {one.name: mean(one.accuracy.values()) for one in results.networks}
    costs = {one.name: one.cost or 0.0 for one in results.networks}
    wanted = mean(source.accuracy[domain] for domain, source in results.references.items()).value
    best = max(value.value for name, value in means.items() if "-" in name)
    if found.kind in ("merge", "larger", "loses"):
        assert found.recommended is not None
        assert "-" in found.recommended
        kept = 100 * means[found.recommended].value / wanted if wanted else 0.0
        assert (kept >= ENOUGH) == (found.kind == "merge")
        if found.kind == "merge":
            cheaper = [n for n in means if "-" in n and costs[n] < costs[found.recommended] / 1.03]
            assert all(100 * means[name].value < ENOUGH * wanted for name in cheaper)
        else:
            assert means[found.recommended].value == best
    elif found.kind == "keep":
        assert found.recommended in ("one", "two")
        assert means[found.recommended].value > best
    else:
        assert found.recommended is None or found.kind == "undecided"


@given(pairs, pairs, students)
def test_more_pictures_do_not_take_a_clear_verdict_back(
    first: Sequence[float], second: Sequence[float], made: list[tuple[float, Any]]
) -> None:
    rows = {"one": (1.0, first), "two": (1.0, second), **{f"pleas-{i}": row for i, row in enumerate(made)}}
    few, many = (verdict(merge(rows, pictures)) for pictures in (100_000, 400_000))
    assert few is not None
    assert many is not None
    if few.kind == "keep":
        assert (many.kind, many.recommended) == (few.kind, few.recommended)


@pytest.mark.parametrize(
    "changed", [{"tests": {}}, {"measure": "mean cosine"}, {"domains": ["art", "birds", "cars"]}], ids=str
)
def test_without_counts_or_classes_there_is_none(changed: dict[str, Any]) -> None:
    assert verdict(merge({**GOOD, "pleas-1.00": (1.0, (88, 87))}, **changed)) is None


def test_without_students_there_is_none() -> None:
    assert verdict(merge(GOOD)) is None


def test_a_domain_without_a_source_is_held_against_the_best() -> None:
    results = merge({**GOOD, "pleas-1.00": (1.0, (88, 87))}, lineage={})
    assert {domain: source.name for domain, source in results.references.items()} == {"art": "one", "birds": "two"}
    found = verdict(results)
    assert found is not None
    assert found.kind == "merge"


@given(st.integers(0, 3000), st.integers(1, 3000))
def test_the_spread_of_a_share(right: int, pictures: int) -> None:
    if right > pictures:
        right, pictures = pictures, right
    spread = Share(100 * right / pictures, right, pictures).estimate.spread
    more = Share(100 * right / pictures, 4 * right, 4 * pictures).estimate.spread
    assert spread is not None
    assert more is not None
    assert 0 < more < spread < 50


def test_the_spread_is_half_of_wilsons_interval() -> None:
    assert Share(50.0, 50, 100).estimate.spread == pytest.approx((0.5962 - 0.4038) / 2 * 100, abs=0.01)
    assert Share(0.0, 0, 10).estimate.spread == pytest.approx(27.75 / 2, abs=0.01)
