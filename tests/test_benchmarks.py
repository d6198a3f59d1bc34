"""What benchmarks make of results; the runs themselves are measurements, and no tests."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import PICTURE, random_network

from project.allocation import nominal_macs, separated
from project.symmetry import trace

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_a_comparison_ranks_students_and_tells_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    compare = __import__("compare")
    sizes = {"executed": 1.0, "MB": 44.0}
    config = """
model: {class_path: project.modules.MergeModule, init_args: {methods: [
  {class_path: project.methods.Average, init_args: {label: worse}},
  {class_path: project.methods.Average, init_args: {label: worse-weights, align: weights}},
  {class_path: project.methods.Tuned, init_args: {method: {class_path: project.methods.TIES}, grid: {keep: [0.2]}}},
  {class_path: project.methods.PLeaS}]}}""".splitlines()
    rows = [
        {"network": "a.pth", "kind": "source", "seconds": None, "cats": 90.0, "dogs": 10.0, "mean": 50.0, **sizes},
        {"network": "b.pth", "kind": "source", "seconds": None, "cats": 20.0, "dogs": 70.0, "mean": 45.0, **sizes},
        {"network": "worse-1.00", "kind": "student", "seconds": 1.2, "cats": 30.0, "dogs": 30.0, "mean": 30.0, **sizes},
        {"network": "worse-weights-1.00", "kind": "student", "seconds": 1, "cats": 9, "dogs": 33, "mean": 21, **sizes},
        {"network": "ties-tuned-1.00", "kind": "student", "seconds": 1, "cats": 40, "dogs": 40, "mean": 40, **sizes},
        {"network": "pleas-1.00", "kind": "student", "seconds": 2.6, "cats": 60.0, "dogs": 62.0, "mean": 61.0, **sizes},
    ]
    lines = compare.table(rows, ["cats", "dogs"]).splitlines()
    names = ["a.pth", "b.pth", "pleas-1.00", "ties-tuned-1.00", "worse-1.00", "worse-weights-1.00"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert lines[4] == "| pleas-1.00 | 1.00 | 44 | 60.0 | 62.0 | 61.0 | 3 |"
    assert lines[2].endswith("| – |")
    entries = compare.students(rows, config)
    assert compare.side_by_side(entries).splitlines() == [
        "| mean top-1 | none | weights | activations | both |",
        "|---|---:|---:|---:|---:|",
        "| pleas, 1.00× | – | – | 61.0 | – |",
        "| ties-tuned, 1.00× | 40.0 | – | – | – |",
        "| worse, 1.00× | 30.0 | 21.0 | – | – |",
    ]
    (axes,) = compare.figure(rows, entries, ["cats", "dogs"]).axes
    points = {one.get_label(): one.get_offsets().tolist() for one in axes.collections if len(one.get_offsets())}
    assert points["align: none"] == [[30.0, 0.0], [40.0, 1.0]]
    assert points["align: weights"] == [[21.0, 0.0]]
    assert points["align: activations"] == [[61.0, 2.0]]
    assert [line.get_xdata()[0] for line in axes.lines] == [80.0]
    sys.modules.pop("compare")


@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0])
def test_students_like_those_of_a_run_are_of_their_size(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    latency = __import__("latency")
    spec = trace(random_network(0, 0), PICTURE)
    maps = latency.allocated(spec, 2, budget, "gain", None)
    twins = latency.alike(spec, separated(maps))
    assert {name: units.units for name, units in twins.items()} == {name: units.units for name, units in maps.items()}
    assert nominal_macs(spec, twins) == nominal_macs(spec, maps)
    sys.modules.pop("latency")


def test_operations_are_counted_by_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    cost = __import__("merge_cost")
    left, right, total = torch.randn(5, 7), torch.randn(7, 3), torch.zeros(5, 3)
    gram, rows = torch.eye(6, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64)
    with cost.Counted() as counted:
        total.addmm_(left, right)
        torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False)
        assert counted.products == {torch.float32: 5 * 7 * 3, torch.float64: 6**3 / 6 + 6 * 6 * 2 / 2}
        before = counted.bytes
        (left.view(35) + 1.0).mean()
        assert counted.bytes - before == 4 * (35 + 35 + 35 + 1), "views move nothing"
        before = counted.bytes
        left.new_zeros(2)
        left.new_empty(2)
        assert counted.bytes - before == 4 * 2, "what only tells the kind is not read"
    sys.modules.pop("merge_cost")


def test_students_of_two_commits_are_compared_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    difference = __import__("unchanged").difference
    student = {"weights.a": torch.tensor([0.0, 4.0]), "weights.b": torch.ones(3), "logits": torch.ones(2)}
    assert difference(student, {name: one.clone() for name, one in student.items()}) is None
    assert "logits 0.0e+00, 1 of 3" in difference(student, {**student, "weights.a": torch.tensor([-0.0, 4.0])})
    moved = {**student, "weights.a": torch.tensor([1.0, 4.0]), "weights.b": torch.full((3,), 1.5)}
    assert difference(student, moved).startswith("weights 5.0e-01 of their largest (weights.b), logits 0.0e+00, 2 of")
    assert difference(student, {**student, "logits": torch.tensor([1.0, 3.0])}).startswith("weights equal, logits 2.0")
    assert "[3] torch.float32 and [1] torch.float32" in difference(student, {**student, "weights.b": torch.ones(1)})
    assert "such as weights.c" in difference(student, {**student, "weights.c": torch.ones(1)})
    for name in ("unchanged", "unchanged_merges"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_a_change_of_students_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a repository of its own, whose working tree is like its commit at first, and then loads other weights."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    unchanged, merges = __import__("unchanged"), __import__("unchanged_merges")
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    for name in ("project", "configs"):
        shutil.copytree(BENCHMARKS.parent / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "As it is"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    merge = merges.Merge("tiny", "random", merges.UNRELATED, [merges.method("Average")])
    monkeypatch.setattr(unchanged, "REPOSITORY", repository)
    monkeypatch.setattr(unchanged, "MERGES", (merge,))
    monkeypatch.setattr("sys.argv", ["unchanged.py", "--before", "HEAD", "--after", ".", "--cache", str(cache)])
    with pytest.raises(SystemExit, match=r"^0$"):
        unchanged.main()
    told = capsys.readouterr().out
    assert "1 of 1 students have equal bits" in told
    assert told.count("of processor time") == 1, "the working tree is the commit, which has been run"
    with (repository / "project" / "__init__.py").open("a") as file:
        file.write(
            "_load = load_student\n\n\ndef load_student(path):\n    student = _load(path)\n"
            "    student.network.fc.bias.data += 0.5\n    return student\n"
        )
    with pytest.raises(SystemExit, match=r"^1$"):
        unchanged.main()
    told = capsys.readouterr().out
    assert "(weights.network.fc.bias), logits 5.0e-01, 2 of" in told
    assert "0 of 1 students have equal bits" in told
    for name in ("unchanged", "unchanged_merges"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_how_cost_scales_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer pictures and a shallower network than the table's."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = __import__("scaling")
    monkeypatch.setattr(scaling, "BASE", {**scaling.BASE, "depth": 20, "width": 1, "pictures": 8})
    monkeypatch.setattr(scaling, "AXES", {"pictures": [4, 8], "budgets": [1, 2]})
    out = tmp_path / "scaling.json"
    monkeypatch.setattr("sys.argv", ["scaling.py", "--only", "pictures", "budgets", "--out", str(out)])
    scaling.main()
    table = json.loads(out.read_text())["table"]
    assert [(row["axis"], row["value"]) for row in table] == [
        ("pictures", 4), ("pictures", 8), ("budgets", 1), ("budgets", 2),
    ]  # fmt: skip
    assert all(row[phase] > 0 for row in table for phase in scaling.PHASES)
    assert out.with_suffix(".png").stat().st_size > 10_000
    for name in ("scaling", "merge_cost"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_what_merging_costs_is_told_with_what_bounds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    options = "--device cpu --clock cpu --architecture resnet20 --image-size 32 --pictures 32 --batch 16 --rounds 1"
    budgets = "--budgets 1 1.5 --plain-steps 1 --only moments budgets"
    out = tmp_path / "cost.json"
    monkeypatch.setattr("sys.argv", ["merge_cost.py", *options.split(), *budgets.split(), "--out", str(out)])
    __import__("merge_cost").main()
    rows = {row["part"]: row for row in json.loads(out.read_text())["table"]}
    for part in ("moments of units", "moments of layers", "joint: a further budget", "sequential: solves"):
        assert rows[part]["seconds"] > 0
        assert rows[part]["bound"] > 0
    assert {"plain way, 1 budget", "plain way, 2 budgets", "sequential"} <= set(rows)
    assert rows["joint: solves"]["G multiply-adds torch.float64"] > 0
