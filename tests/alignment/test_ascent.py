"""Coordinate ascent on made-up visits: which sweep counts, and when it ends."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from project.alignment.ascent import ascend


class Script:
    """One coordinate that goes from one number to the next, each with what it is worth; then it stays at the last."""

    def __init__(self, steps: Sequence[tuple[int, float]]) -> None:
        self.steps, self.visits = steps, 0

    def __call__(self, coordinate: str, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        number, worth = self.steps[min(self.visits, len(self.steps) - 1)]
        self.visits += 1
        return {coordinate: torch.tensor([number])}, worth


@pytest.mark.parametrize(
    ("steps", "best", "visits"),
    [
        ([(1, 1.0), (2, 2.0), (3, 3.0)], 3, 4),  # it rises until nothing changes
        ([(1, 1.0), (2, 9.0), (3, 3.0)], 2, 4),  # where nothing changes, less is reached than before
        ([(1, 1.0), (2, 9.0), (3, 9.0)], 2, 4),  # no more is no better
        ([(1, -3.0), (2, -2.0), (3, -4.0)], 2, 4),
        ([(1, 5.0), (2, 4.0), (3, 3.0), (1, 5.0), (2, 4.0), (3, 3.0), (1, 6.0)], 1, 4),  # three no better
        ([(0, 7.0)], 0, 1),
    ],
)
def test_the_best_sweep_counts(steps: list[tuple[int, float]], best: int, visits: int) -> None:
    script = Script(steps)
    found = ascend(["a"], script, {"a": torch.tensor([0]), "b": torch.tensor([8])}, patience=3)
    assert {name: one.tolist() for name, one in found.items()} == {"a": [best], "b": [8]}
    assert script.visits == visits


def test_what_all_is_worth_comes_before_what_the_visits_found() -> None:
    script = Script([(1, 9.0), (2, 5.0), (3, 1.0)])
    found = ascend(["a"], script, {"a": torch.tensor([0])}, common=lambda at: float(at["a"]), patience=1)
    assert found["a"].tolist() == [3]
    falling = Script([(3, 1.0), (2, 5.0), (1, 9.0)])
    found = ascend(["a"], falling, {"a": torch.tensor([0])}, common=lambda at: float(at["a"]))
    assert found["a"].tolist() == [3]


def test_sweeps_are_limited_and_visit_everything() -> None:
    seen = []

    def visit(coordinate: str, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        seen.append(coordinate)
        return {coordinate: found[coordinate] + 1}, float(found[coordinate])

    found = ascend(["a", "b", "c"], visit, {name: torch.tensor([0]) for name in "abc"}, sweeps=4)
    assert all(one.tolist() == [4] for one in found.values())
    assert [sorted(seen[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
