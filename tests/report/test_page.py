"""The report is one file that holds everything and lets nothing in, whoever named the classes."""

import json
import re
from base64 import b64encode
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from drawn_results import HOSTILE, drawn_results
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from project import trainer
from project.commands import run
from project.errors import ConfigurationError
from project.report.page import page, read_merge, write_examples, write_report
from project.report.page.calibration import Bin, expected_error
from project.report.page.examples import example, read_examples
from project.report.page.markup import text as shown
from project.report.page.plot import axis_of, names_axis
from project.report.page.reading import understand

VOID = {"meta", "br", "img"}
SMALL = b64encode(b"\xff\xd8\xff a picture").decode()
SECTIONS = ["verdict", "table", "accuracy", "layers", "classes", "confusions", "calibration", "lineage"]


class Reader(HTMLParser):
    """What a browser would make of a page; fails where elements are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.mark.parametrize("names", [("cat", "dog"), HOSTILE], ids=["plain", "hostile"])
def test_it_fetches_nothing_and_takes_no_name_for_markup(names: tuple[str, ...]) -> None:
    domains = tuple(f"{place} {name}" for place, name in enumerate(names))
    results = drawn_results(domains, names, names, names)
    students = [row["network"] for row in results["table"] if row["kind"] == "student"]
    examples = {student: {domain: dict.fromkeys(names, SMALL) for domain in domains} for student in students}
    text = page(understand(results), examples)
    text.encode()  # names may hold what is no text
    read = Reader(text)
    tags = {tag for tag, _ in read.tags}
    assert not tags & set(["iframe", "object", "embed", "link", "base", "form", "a", "audio", "video", "use", "image"])
    assert (len(read.of("script")), len(read.of("style"))) == (1, 1)
    for tag, attributes in read.tags:
        assert attributes.get("src", f"data:image/jpeg;base64,{SMALL}") == f"data:image/jpeg;base64,{SMALL}"
        assert not {"href", "srcset", "action", "xlink:href"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert read.of("img")
    for place in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL):
        assert not re.search(r"@import|url\(|https?:|//\w|fetch|XMLHttp|import\(|sendBeacon|eval|innerHTML", re.sub(
            r"^ *//.*$|;? //.*$", "", place[1], flags=re.MULTILINE
        ))  # fmt: skip
    (policy,) = [one["content"] for one in read.of("meta") if one.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for name in names:
        assert unescape(shown(name)) in " ".join(read.words)


def test_it_has_all_sections_in_their_order_and_all_rows() -> None:
    results = drawn_results()
    read = Reader(page(understand(results)))
    assert [section["id"] for section in read.of("section")] == SECTIONS
    for row in results["table"]:
        (shown,) = [cells for cells in read.rows if cells[0] == row["network"] and len(cells) > 8]
        told = " ".join(shown)
        for domain in results["domains"]:
            right = sum(results["tests"]["right"][row["network"]][domain])
            assert f"{right} of 200" in told
            assert f"{row[domain]:.1f} ± " in told
        assert f"{row['executed']:.3f}" in told


@pytest.mark.parametrize(
    ("left_out", "gone"),
    [
        (("tests",), {"classes", "confusions", "calibration"}),
        (("layers", "matches", "separated", "domain_residuals"), {"layers"}),
        (("lineage", "calibration", "phases", "skipped_pictures"), {"lineage"}),
        (("tests", "layers", "matches", "separated", "domain_residuals", "lineage", "calibration", "phases",
          "skipped_pictures"),
         {"layers", "classes", "confusions", "calibration", "lineage"}),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_left_out(left_out: tuple[str, ...], gone: set[str]) -> None:
    results = {key: value for key, value in drawn_results().items() if key not in left_out}
    read = Reader(page(understand(results)))
    assert [section["id"] for section in read.of("section")] == [one for one in SECTIONS if one not in gone]
    assert ("±" in " ".join(cell for cells in read.rows for cell in cells)) == ("tests" not in left_out)


def test_results_without_the_list_of_domains_are_read() -> None:
    results = drawn_results()
    del results["domains"]
    assert understand(results).domains == ["clipart", "sketch"]


def test_results_of_no_domain_are_shown() -> None:
    text = page(understand({**drawn_results(), "domains": []}))
    assert "does not hold what a verdict needs" in text


def test_figures_of_no_classes_have_no_share_that_is_kept() -> None:
    results = {**drawn_results(), "measure": "mean cosine (%)"}
    del results["tests"]
    text = page(understand(results))
    assert "does not hold what a verdict needs" in text
    assert "kept" not in str(Reader(text).rows)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_a_file_holds_makes_a_page(data: st.DataObject) -> None:
    results: Any = json.loads(json.dumps(drawn_results(methods=("pleas",))))
    for _ in range(data.draw(st.integers(1, 4))):
        there: Any = results
        while True:
            keys = list(there) if isinstance(there, dict) else list(range(len(there)))
            key = data.draw(st.sampled_from(keys))
            deeper = isinstance(there[key], dict | list) and len(there[key]) and data.draw(st.booleans())
            if there is results and key == "table":
                deeper = True
            if key == "network" or (there is results["table"] and not deeper):
                break
            if not deeper:
                there[key] = data.draw(junk)
                break
            there = there[key]
    Reader(page(understand(results)))


def test_the_command_writes_it_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(drawn_results()))
    run(["report", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    first = (tmp_path / "report.html").read_bytes()
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}


def test_small_pictures_are_kept_and_shown(tmp_path: Path) -> None:
    results = drawn_results()
    (tmp_path / "results.json").write_text(json.dumps(results))
    Image.new("RGBA", (300, 200), "#33669980").save(tmp_path / "cat.png")
    (tmp_path / "dog.png").write_text("no picture")
    lost = {name: right["clipart"] for name, right in results["tests"]["right"].items()}
    worse = [place for place in range(4) if lost["pleas-1.00"][place] < lost["source clipart"][place]]
    files = {place: tmp_path / ("cat.png" if place == worse[0] else "dog.png") for place in range(4)}
    write_examples(tmp_path, read_merge(tmp_path), {"pleas-1.00": {"clipart": files}}, Image.open)
    kept = json.loads((tmp_path / "examples.json").read_text())
    name = results["tests"]["classes"]["clipart"][worse[0]]
    assert {student: {d: list(v) for d, v in one.items()} for student, one in kept.items()} == {
        "pleas-1.00": {"clipart": [name]}
    }
    write_report(tmp_path)
    (image,) = Reader((tmp_path / "report.html").read_text()).of("img")
    assert image["src"] == example(kept, "pleas-1.00", "clipart", name)
    assert image["alt"] == f"a picture of {name} that source clipart has right and the student does not"
    write_examples(tmp_path, read_merge(tmp_path), {}, Image.open)
    assert not (tmp_path / "examples.json").exists()


@pytest.mark.parametrize("value", [None, 1, "", "x", '"onerror=', SMALL[4:], SMALL + "\n", "<b>aaaa<"])
def test_what_is_no_small_picture_is_not_shown(value: object) -> None:
    assert example({"pleas-1.00": {"art": {"cat": value}}}, "pleas-1.00", "art", "cat") is None


@pytest.mark.parametrize("content", [None, "[", "[]", "3"])
def test_no_small_pictures(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "examples.json").write_text(content)
    assert read_examples(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; allowed: the folder of a finished merge"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON: it is nested too deeply"),
        ("\ud800", "is no JSON"),
        ("[]", "holds no table of networks"),
        ('{"table": []}', "holds no table of networks"),
        ('{"table": [{"kind": "student"}]}', "holds no table of networks"),
    ],
)
def test_no_results(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ConfigurationError, match=message) as caught:
        run(["report", str(tmp_path)])
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_mistake_in_the_page_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text(json.dumps(drawn_results()))
    (tmp_path / "report.html").write_text("an earlier run's")
    monkeypatch.setattr("project.report.page.write_report", lambda _: 1 / 0)
    with pytest.warns(UserWarning, match=r"report.html could not be written \(ZeroDivisionError"):
        trainer._report(tmp_path, {}, Image.open)
    assert not (tmp_path / "report.html").exists()


def test_the_expected_error_is_the_mean_distance_over_pictures() -> None:
    assert expected_error([Bin(0.5, 5, 10), Bin(0.9, 0, 0)]) == 0
    assert expected_error([Bin(0.5, 10, 10), Bin(0.8, 6, 30)]) == pytest.approx((10 * 50 + 30 * 60) / 40)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=9))
def test_an_axis_holds_its_values_and_round_numbers(values: list[float]) -> None:
    axis = axis_of("", values)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert 1 <= len(axis.ticks) <= 12
    assert all(-0.01 <= axis.place(place) <= 100.01 for place, _ in axis.ticks)


@given(st.lists(st.sampled_from(["a.1", "b.1", "b.2", "stage.4", "blocks.0", "blocks.1", "head"]), min_size=1))
def test_the_names_on_an_axis_have_room_on_a_phone(names: list[str]) -> None:
    axis = names_axis("", names)
    places = [(2.8 * axis.place(place), 3.5 * len(name)) for place, name in axis.ticks]
    assert places
    for (one, half), (other, its) in pairwise(places):
        assert one + half < other - its
