"""Every network on every domain: accuracy, its spread, the test pictures behind it, and what is kept of the sources."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from project.report.page.markup import Markup, join, section, tag
from project.report.page.pair import kept
from project.report.page.reading import PLAIN, Merge, Network, number
from project.report.page.share import Estimate, Share, mean


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        title: Its head.
        cell: Network -> what is shown, and what rows are sorted by.
        figures: Whether it holds figures.
    """

    title: str
    cell: Callable[[Network], tuple[object, object]]
    figures: bool = True


def table_section(merge: Merge, recommended: str | None) -> Markup:
    """The section of the table.

    Args:
        merge: What was found.
        recommended: Name of the network to mark.
    """
    name, cost, *others = _plain()
    accuracies = [_mean(merge), *[_domain(merge, domain) for domain in merge.domains]]
    columns = [name, cost, *accuracies, *others, *_others(merge)]  # a phone shows the first ones
    heads = [
        tag(
            "th",
            tag("button", column.title, tag("span", class_="arrow", aria_hidden="true"), type="button"),
            scope="col",
            class_="figures" if column.figures else None,
        )
        for column in columns
    ]
    rows = [_row(network, columns, network.name == recommended) for network in merge.networks]
    body = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable", id="networks")
    return section(
        "table", "Every network on every domain",
        tag("p", _note(merge), class_="note"),
        tag("div", body, class_="scroll", tabindex="0", role="region", aria_labelledby="table-title"),
    )  # fmt: skip


def _note(merge: Merge) -> Markup:
    if not merge.counts_answers:
        return join(f"Under each domain: {merge.measure}.")
    held = ", ".join(f"{source.name} on {domain}" for domain, source in merge.references.items())
    counted = any(share.pictures for network in merge.networks for share in network.accuracy.values())
    spread = " ± is half of Wilson's interval at 95 %, from the number of test pictures." if counted else ""
    paired = " What is kept is compared picture by picture." if merge.part("tests", "both right") else ""
    size = "Multiply-adds are over those of one source."
    return join(
        f"Top-1 accuracy in per cent.{spread} {size} Kept is the share of the accuracy of {held}.{paired} ", _sorting()
    )


def _sorting() -> Markup:
    return tag("span", "A click on a head sorts.", class_="scripted")


def _row(network: Network, columns: Sequence[Column], marked: bool) -> Markup:
    cells = []
    for place, column in enumerate(columns):
        shown, value = column.cell(network)
        cells.append(
            tag(
                "td" if place else "th",
                "–" if shown is None else shown,
                data_value=value,
                scope=None if place else "row",
                class_="figures" if column.figures else None,
            )
        )
    kind = network.kind if network.kind in ("source", "reference", "student", "point") else "other"
    return tag("tr", *cells, class_=f"{kind} marked" if marked else kind)


def _plain() -> list[Column]:
    def plain(title: str, key: str, form: str) -> Column:
        def cell(network: Network) -> tuple[object, object]:
            value = network.cells.get(key)
            known = number(value)
            return (value if known is None or not form else format(known, form)), value

        return Column(title, cell)

    return [
        Column("network", lambda network: (tag("span", network.name, class_="name"), network.name), figures=False),
        plain("multiply-adds", "executed", ".3f"),
        plain("MB", "MB", ".1f"),
        plain("parameters", "parameters", ",.0f"),
        plain("budget", "budget", ""),
        Column("kind", lambda network: (network.kind, network.kind), figures=False),
    ]


def _domain(merge: Merge, domain: str) -> Column:
    source = merge.references.get(domain)

    def cell(network: Network) -> tuple[object, object]:
        share = network.accuracy.get(domain)
        if share is None:
            return None, None
        parts = [] if share.pictures is None else [f"{share.right} of {share.pictures}"]
        if source is not None and merge.counts_answers and source is not network and network.kind != "source":
            held = kept(merge.pairs({domain: network}, {domain: source}))
            parts += [f"kept {_whole(held)} %"] if held is not None else []
        return _stacked(share, parts), share.percent

    return Column(domain, cell)


def _whole(held: Estimate) -> str:
    """A share of a domain, whose few pictures tell no tenths."""
    return f"{held.value:.0f}" + ("" if held.spread is None else f" ± {held.spread:.0f}")


def _stacked(share: Share, parts: Sequence[str]) -> Markup:
    return join(tag("span", share.estimate.text, class_="main"), *[tag("span", part, class_="under") for part in parts])


def _mean(merge: Merge) -> Column:
    sources = merge.references

    def cell(network: Network) -> tuple[object, object]:
        if not network.accuracy:
            return None, None
        found, parts = mean(network.accuracy.values()), []
        if sources and merge.counts_answers and network.kind != "source" and set(network.accuracy) >= set(sources):
            held = kept(merge.pairs(dict.fromkeys(sources, network), sources))
            parts = [f"kept {held.text} %"] if held is not None else []
        return join(
            tag("span", found.text, class_="main"), *[tag("span", part, class_="under") for part in parts]
        ), found.value

    return Column("mean", cell)


def _others(merge: Merge) -> list[Column]:
    """Whatever else the table holds of any network."""
    known = {*PLAIN, *merge.domains, "mean"}
    keys = dict.fromkeys(str(key) for network in merge.networks for key in network.cells if key not in known)

    def column(key: str) -> Column:
        def cell(network: Network) -> tuple[object, object]:
            value: Any = network.cells.get(key)
            return value, value

        return Column(key, cell, figures=key != "batch norm")

    filled = [key for key in keys if any(network.cells.get(key) is not None for network in merge.networks)]
    return [column(key) for key in filled]
