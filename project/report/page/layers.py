"""What was measured layer by layer: what the fit leaves, on which domain, how units match, what stays apart."""

from collections.abc import Mapping, Sequence

from project.report.page.markup import Markup, choice, join, section, tag
from project.report.page.plot import STYLES, Point, Series, axis_of, names_axis, plot
from project.report.page.reading import Merge, numbers, part

Lines = Mapping[str, Mapping[str, float]]
"""Student or domain -> layer or group -> value."""


def layer_section(merge: Merge, chosen: str | None) -> Markup | None:
    """The section of the layers; None where nothing was measured.

    Args:
        merge: What was found.
        chosen: Name of the student whose method is shown first.
    """
    panels: dict[str, Markup] = {}
    first = None
    for method in dict.fromkeys(one.method for one in merge.of_kind("student")):
        students = [one.name for one in merge.of_kind("student") if one.method == method]
        if panel := _panel(merge, students):
            panels[method] = panel
            first = method if chosen in students else first
    paying = _paying(merge, chosen)
    if not panels and paying is None:
        return None
    note = (
        "Layers in execution order; a point says which it is. The residual is E‖output − target‖² / E‖target‖² on the "
        "calibration pictures."
    )
    shown = choice("layers", "Method", panels, first) if panels else None
    return section("layers", "Layer by layer", tag("p", note, class_="note"), shown, paying)


def _paying(merge: Merge, chosen: str | None) -> Markup | None:
    """What the fit leaves on each domain by itself: which of them pays, and where."""
    panels = {}
    for student in merge.of_kind("student"):
        lines = {domain: numbers(found) for domain, found in merge.part("domain_residuals", student.name).items()}
        lines = {domain: found for domain, found in lines.items() if found}
        drawn = _plot("Residual by domain", "residual after the fit", "layers", lines, _order(merge), [0.0])
        if drawn is not None and len(lines) > 1:
            panels[student.name] = join(tag("p", _dearest(lines)), drawn)
    if not panels:
        return None
    note = (
        "The same residual, measured on the calibration pictures of each domain by themselves, over the units that "
        "follow it."
    )
    head = tag("h3", "Which domain pays, and where")
    return tag("div", head, tag("p", note, class_="note"), choice("paying", "Student", panels, chosen))


def _dearest(lines: Lines) -> str:
    """The domain with the largest mean residual over the layers that all share, and its worst layers, in words."""
    common = [layer for layer in next(iter(lines.values())) if all(layer in found for found in lines.values())]
    if not common:
        return "No layer was fitted for all domains."
    means = {domain: sum(found[layer] for layer in common) / len(common) for domain, found in lines.items()}
    order = sorted(means, key=lambda domain: -means[domain])
    first, last = order[0], order[-1]
    worst = sorted(lines[first], key=lambda layer: -lines[first][layer])[:3]
    where = ", ".join(f"{layer} ({lines[first][layer]:.3f})" for layer in worst)
    over = f"{len(common)} layers" if len(common) > 1 else "1 layer"
    return (
        f"{first} pays most: the fit leaves {means[first]:.3f} of its targets, as a mean over {over}, and "
        f"{means[last]:.3f} of those of {last}, which pays least. Most is left of {first} in {where}."
    )


def _order(merge: Merge) -> list[str]:
    """Layers in execution order; empty where that is not recorded."""
    order = merge.content.get("layer_order")
    return [str(name) for name in order] if isinstance(order, list) else []


def _panel(merge: Merge, students: Sequence[str]) -> Markup | None:
    layers = {name: merge.part("layers", name) for name in students}
    after = {name: _measured(fits, "residual_after") for name, fits in layers.items()}
    matches = {name: numbers(merge.part("matches", name)) for name in students}
    apart = {name: numbers(merge.part("separated", name)) for name in students}
    known = _order(merge)
    shares = {name: v if 0 < sum(v.values()) < len(v) else {} for name, v in apart.items()}
    plots = [
        _plot("Residual of the fit", "residual after the fit", "layers", after, known, [0.0]),
        _plot("Match of units", "mean similarity of matched units", "groups of units", _distinct(matches)),
        _plot("Share of units kept apart", "share kept apart", "groups of units", shares, (), [0.0, 1.0]),
    ]
    return join(*plots) if any(plots) else None


def _measured(fits: Mapping[str, object], quantity: str) -> dict[str, float]:
    found = {str(layer): numbers(part({"fit": fit}, "fit")).get(quantity) for layer, fit in fits.items()}
    return {layer: value for layer, value in found.items() if value is not None}


def _distinct(lines: Lines) -> Lines:
    """One line for students whose units were matched once for all of them."""
    found = [values for values in lines.values() if values]
    if len(found) > 1 and all(values == found[0] for values in found):
        return {"all budgets": found[0]}
    return lines


def _plot(
    title: str, quantity: str, what: str, lines: Lines, order: Sequence[str] = (), shown: Sequence[float] = ()
) -> Markup | None:
    values = [value for line in lines.values() for value in line.values()]
    if not values:
        return None
    held = dict.fromkeys(name for line in lines.values() for name in line)
    names = [name for name in order if name in held] + [name for name in held if name not in order]
    series = [
        Series(
            student,
            [Point(names.index(n), line[n], f"{n}: {line[n]:.4g} ({student})") for n in sorted(line, key=names.index)],
            f"s{place % STYLES}",
        )
        for place, (student, line) in enumerate(lines.items())
        if line
    ]
    across = names_axis(f"{what}, from the first to the last of {len(names)}", names)
    return join(tag("h3", title), plot(title, series, across, axis_of(quantity, [*shown, *values])))
