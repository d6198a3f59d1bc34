"""Barriers by their definition, and their figure."""

import pytest

from project.report import Results, Row, connectivity, connectivity_figure


def place(t: float, end: str = "b") -> dict[str, object]:
    return {"method": "interpolation", "from": "a", "to": end, "t": t}


def test_a_barrier_is_the_largest_gap_below_the_ends() -> None:
    points = [(place(0.0), 80.0, 40.0), (place(0.5), 30.0, 50.0), (place(0.25), 50.0, 45.0), (place(1.0), 40.0, 60.0)]
    found = connectivity([(at, {"x": x, "y": y}) for at, x, y in points])
    path = found["interpolation: a – b"]
    assert path["t"] == [0.0, 0.25, 0.5, 1.0]
    assert path["accuracy"]["x"] == [80.0, 50.0, 30.0, 40.0]
    assert path["accuracy"]["mean"] == [60.0, 47.5, 40.0, 50.0]
    # at 0.5, x: (80 + 40) / 2 − 30; y never falls below its ends' line; mean: (60 + 50) / 2 − 40
    assert path["barrier"] == {"x": pytest.approx(30.0), "y": pytest.approx(0.0), "mean": pytest.approx(15.0)}


def test_every_path_has_a_panel_and_a_line_in_the_table() -> None:
    points = [(place(t, end), {"x": 50.0 - 10 * t}) for end in ("b", "c", "d", "e") for t in (0.0, 1.0)]
    paths = connectivity(points)
    figure = connectivity_figure(paths)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == list(paths)
    row = Row("a", "source", None, 1.0, 1.0, 10, 40, {"x": 50.0})
    text = Results([row], ["x"], details={"connectivity": paths}).text()
    assert "interpolation: a – e: barrier 0.0 points" in text
