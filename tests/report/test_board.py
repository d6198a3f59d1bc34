"""TensorBoard and the page say the same of every layer, domain and class, at steps that mean something."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_results import drawn_results
from helpers import Case, make_problem, merge_case, random_network
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from project.alignment import activation_similarity
from project.methods import Merged, PLeaS
from project.moments import Statistics
from project.report import write_correlations, write_fits
from project.report.matrices import NAMED, confusion_figure, correlations
from project.report.page import page
from project.report.page.confusions import confusions
from project.report.page.reading import understand
from project.report.tensorboard import settings_table


@pytest.fixture(scope="module")
def case() -> Case:
    return make_problem([random_network(0, seed).eval() for seed in (0, 1)])


@pytest.fixture(scope="module")
def merged(case: Case) -> list[Merged]:
    return list(merge_case(PLeaS(separate="front"), case, [1.0, 1.5]))


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_a_layer_s_step_is_its_place_in_execution_order(case: Case, merged: list[Merged], tmp_path: Path) -> None:
    layers = [layer.name for layer in case.spec.layers]
    with SummaryWriter(str(tmp_path)) as writer:
        write_fits(writer, merged, layers)
    found = events(tmp_path)
    for student in merged:
        assert set(student.domain_residuals) == set(case.pictures)
        for domain, residuals in student.domain_residuals.items():
            assert set(residuals) <= set(student.layers)
            told = found.Scalars(f"residual by domain/{student.name}/{domain}")
            assert {layers[one.step]: one.value for one in told} == pytest.approx(residuals)
        assert f"residual by domain/{student.name}" in found.Tags()["images"]


@pytest.mark.parametrize("fit", ["sequential", "joint"])
def test_domains_share_what_is_left_of_all(case: Case, fit: str) -> None:
    """Where all rows follow all domains, the residual of a layer lies between those of the domains."""
    (student,) = merge_case(PLeaS(fit=fit, separate="front"), case, [1.0])  # type: ignore[arg-type]
    parts = student.domain_residuals
    assert set(parts) == set(case.pictures)
    for layer, measured in student.layers.items():
        each = [residuals[layer] for residuals in parts.values()]
        assert min(each) * (1 - 1e-6) <= measured["residual_after"] <= max(each) * (1 + 1e-6)


def test_matched_units_are_the_diagonal(case: Case, merged: list[Merged], tmp_path: Path) -> None:
    statistics = case.evidence.statistics
    names = [group.name for group in case.spec.free]
    for student in merged:
        found = correlations(statistics, case.spec, student.student.group_maps, groups=99)
        assert {one.group for one in found} <= set(names)
        for one in found:
            group, units = case.spec.groups[one.group], student.student.group_maps[one.group]
            both = units.members[units.present.all(1)]
            assert one.before.shape == one.after.shape == (len(both), len(both))
            assert torch.equal(one.before.sort(1).values, one.after.sort(1).values), "columns change places alone"
            whole = activation_similarity(statistics, group, "correlation")[: group.size, group.size :]
            wanted = whole[both[:, 0], both[:, 1]].sort().values
            assert torch.allclose(one.after.diagonal().sort().values, wanted)
    found = correlations(statistics, case.spec, merged[0].student.group_maps, groups=2)
    assert [one.group for one in found] == [names[0], names[-1]]
    again = merge_case(PLeaS(separate="front", label="again"), case, [1.0])
    with SummaryWriter(str(tmp_path)) as writer:
        write_correlations(writer, statistics, case.spec, [*merged, *again], ["one", "two"])
        write_correlations(writer, Statistics(), case.spec, merged, ["one", "two"])
    assert events(tmp_path).Tags()["images"] == [f"correlations/{merged[0].name}"], "of one alignment, one figure"


def test_settings_stand_side_by_side_those_that_differ_first() -> None:
    common = {"class": "PLeaS", "method": "pleas"}
    lineage = {
        "pleas-1.00": {**common, "budget": 1.0, "options": {"fit": "joint", "ridge": 0.1, "label": "a|b"}},
        "pleas-1.50": {**common, "budget": 1.5, "options": {"fit": "sequential", "ridge": 0.1, "rounds": 2}},
    }
    lines = settings_table(lineage).splitlines()
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    assert {len(row) for row in cells} == {3}
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}
    assert rows["setting"] == ["pleas-1.00", "pleas-1.50"]
    assert rows["fit"] == ["joint", "sequential"]
    assert rows["rounds"] == ["–", "2"]
    assert rows["label"] == [r"a\|b", "–"]
    names = list(rows)
    assert names.index("budget") < names.index("rounds") < names.index("class")


@pytest.mark.parametrize("classes", [2, 50])
def test_a_figure_holds_shares_of_the_classes_that_are_confused_most(classes: int) -> None:
    names = [f"class {place}" for place in range(classes)]
    results = drawn_results(classes=names, pictures=20)
    tests = results["tests"]
    figure = confusion_figure(tests, "pleas-1.00")
    FigureCanvasAgg(figure).draw()
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "taken for"]
    for axes, domain in zip(panels, results["domains"], strict=True):
        shown = [label.get_text() for label in axes.get_yticklabels()]
        assert len(shown) == min(classes, NAMED)
        (image,) = axes.images
        right = dict(zip(names, tests["right"]["pleas-1.00"][domain], strict=True))
        shares = np.asarray(image.get_array())
        assert shares.diagonal().tolist() == pytest.approx([right[name] / 20 for name in shown])
        left_out = [right[name] for name in names if name not in shown]
        assert not left_out or min(left_out) >= max(right[name] for name in shown)
        if classes <= NAMED:
            assert shares.sum(1).tolist() == pytest.approx([1.0] * classes)


@pytest.mark.parametrize("dear", ["clipart", "sketch"])
def test_the_page_names_the_domain_that_pays_and_where(dear: str) -> None:
    results = json.loads(json.dumps(drawn_results()))
    for residuals in results["domain_residuals"].values():
        residuals[dear] = {layer: 2 + place for place, layer in enumerate(residuals[dear])}
    text = page(understand(results))
    last = results["layer_order"][-1]
    assert f"{dear} pays most: the fit leaves 4.000 of its targets" in text
    assert f"Most is left of {dear} in {last} (6.000)" in text


def test_confusions_are_sorted_and_held_against_the_source() -> None:
    results = drawn_results()
    merge = understand(results)
    (student, *_) = merge.of_kind("student")
    its, mine = (results["tests"]["confusions"][name]["clipart"] for name in ("source clipart", student.name))
    found = confusions(merge, student, "clipart")
    assert {(one.name, one.told): one.student for one in found} == {
        (name, told): count for name, others in mine.items() for told, count in others.items()
    }
    counts = [one.student for one in found]
    assert counts == sorted(counts, reverse=True)
    assert all(one.source == its.get(one.name, {}).get(one.told, 0) for one in found)
    text = page(merge)
    for one in found[:8]:
        words = f"the student takes {one.student} for {one.told}, source clipart {one.source}"
        assert f"{one.name}: of 50 pictures, {words}" in text


def test_one_domain_alone_is_not_compared() -> None:
    assert "Which domain pays" not in page(understand(drawn_results(("clipart",))))
