"""Fits to some of the pictures against fits to all of them."""

import pytest
import torch
from helpers import DOMAINS, make_problem, pictures, resnet
from torch import Tensor

from project.errors import ConfigurationError
from project.methods import PLeaS, Problem
from project.student import sequential
from project.student.carried import Carried, Place
from project.student.enough import enough
from project.student.solver import LayerSolver, misfit

BATCHES = 16


@pytest.fixture(scope="module")
def problem() -> Problem:
    batches = [(domain, pictures(8, 100 + i)) for domain in DOMAINS[:2] for i in range(BATCHES)]
    return make_problem([resnet("resnet20", seed) for seed in (0, 1)], batches=batches, needs=("units",))


def compared(problem: Problem, excess: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """layer -> the share of the batches it was fitted to, and its misfit on all of them over that of a fit to all."""
    found = {}

    def watched(carried: Carried, place: Place, start: Tensor, ridge: float, allowed: float) -> Carried:
        part = enough(carried, place, start, ridge, allowed)
        asked, matrices = [], []
        for one in (carried, part):
            wanted = one.targets(place.node, place.outputs, place.scales, place.plan)
            equations = one.equations(place, start)
            crosses = one.crosses(place, wanted, equations)
            asked.append((equations, *crosses))
            solver = LayerSolver(place.layer, start, place.outputs, place.inputs, equations, ridge)
            matrices.append(solver.solve(*crosses).matrix)
        whole, some = (misfit(place.layer, place.outputs, place.inputs, one, *asked[0]) for one in matrices)
        found[place.layer.name] = len(part.batches) / len(carried.batches), some / whole
        return part

    with monkeypatch.context() as patch:
        patch.setattr(sequential, "enough", watched)
        (merged,) = PLeaS(excess=excess, rounds=0).merge(problem, [1.0])
    for name, (share, _) in found.items():
        assert merged.layers[name]["pictures"] == pytest.approx(share)
    return found


def test_the_excess_is_kept_with_fewer_pictures(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate from few batches: within three times what was allowed for each layer, and below it on average."""
    spent = {}
    for excess in (0.005, 0.2):
        found = compared(problem, excess, monkeypatch)
        shares, ratios = (torch.tensor(column) for column in zip(*found.values(), strict=True))
        assert float(ratios.max()) < 1 + 3 * excess
        assert float(ratios.mean()) < 1 + excess
        assert float(ratios.min()) > 1 - 1e-3, "nothing fits all pictures better than a fit to them, but for the ridge"
        spent[excess] = float(shares.mean())
    assert spent[0.2] < spent[0.005]
    assert float(shares.min()) <= 1 / 4, "layers with samples to spare look at few of them"


def test_all_pictures_where_there_are_too_few_to_tell(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem.pictures is not None
    few = Problem(**{**vars(problem), "pictures": {name: some[:3] for name, some in problem.pictures.items()}})
    assert {share for share, _ in compared(few, 0.5, monkeypatch).values()} == {1.0}


@pytest.mark.parametrize(("excess", "fit"), [(0.0, "sequential"), (-1.0, "sequential"), (0.1, "joint")])
def test_impossible_excess(excess: float, fit: str) -> None:
    with pytest.raises(ConfigurationError, match=f"excess is {excess}"):
        PLeaS(excess=excess, fit=fit)  # type: ignore[arg-type]
