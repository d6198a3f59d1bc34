"""TensorBoard and the page say the same of every layer, domain and class, at steps that mean something."""

import json
from pathlib import Path

import pytest
from drawn_results import drawn_results
from helpers import Case, make_problem, merge_case, random_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from project.methods import Merged, PLeaS
from project.report import write_fits
from project.report.page import page
from project.report.page.confusions import confusions
from project.report.page.reading import understand


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
