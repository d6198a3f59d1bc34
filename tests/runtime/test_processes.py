"""Work that processes share: threads that meet at every collective stand for them, and real ones by gloo."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import make_problem, merge_case, random_map, random_network, same_state
from meeting import dealt, together
from torch import Tensor, nn

from project.alignment import UnitMap
from project.fit import LayerFit, SequentialFit, effort, solver
from project.fit.normal_equations import Gram
from project.fit.row_blocks import divide
from project.fit.solver import LayerSolver
from project.methods import Permutation, PLeaS
from project.runtime import World
from project.symmetry import Layer


def solved(world: World, seed: int) -> tuple[LayerFit, list[int]]:
    """A random layer of a partial merge, fitted twice, and the rows that this process solved for the second time."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = random_map(9, 3, seed), random_map(7, 3, seed + 50)
    layer = Layer("layer", "layer", "in", "out", 4, 1, bias=True)
    wide = inputs.units * 4 + 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    grams, crosses, powers = [], [], []
    for owner in range(3):
        x, t = draw(wide, 200), draw(outputs.units, 200)
        grams.append(Gram(x @ x.mT / 200, 200, owner))
        crosses.append(t @ x.mT / 200)
        powers.append(t.square().mean(1))
    start = draw(outputs.units, wide)
    it = LayerSolver(layer, start, outputs, inputs, grams, 0.1, world)
    it.solve([0 * cross for cross in crosses], powers)
    rows = [row for piece in it.local for row in range(piece.rows.start, piece.rows.stop)]
    return it.solve(crosses, powers), rows


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_processes_solve_their_rows_and_are_told_the_others(seed: int, size: int) -> None:
    alone, all_rows = solved(World(), seed)
    found = together(size, lambda world: solved(world, seed))
    assert sorted(row for _, rows in found for row in rows) == sorted(all_rows) == list(range(len(alone.matrix)))
    assert all(len(rows) < len(all_rows) for _, rows in found)
    for fit, _ in found:
        assert torch.equal(fit.matrix, found[0][0].matrix)
        assert torch.allclose(fit.matrix, alone.matrix, rtol=1e-9, atol=1e-9)
        assert (fit.after, fit.before) == pytest.approx((alone.after, alone.before))
        assert (fit.condition, fit.fallbacks) == (pytest.approx(alone.condition), alone.fallbacks)


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """The work of factorising and solving that is done meanwhile."""
    work = {"factors": 0.0, "rows": 0.0}
    factorise, solve = torch.linalg.cholesky_ex, solver.Factor.solve

    def counted_factor(matrix: Tensor) -> Any:
        work["factors"] += len(matrix) ** 3 / 3
        return factorise(matrix)

    def counted_solve(factor: solver.Factor, right: Tensor) -> Tensor:
        work["rows"] += len(right) * right.shape[1] ** 2
        return solve(factor, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver.torch.linalg, "cholesky_ex", counted_factor)
        patch.setattr(solver.Factor, "solve", counted_solve)
        yield work


def merges(world: World) -> dict[str, Any]:
    """Students by both fits, what is known of them, and the work that this process did; rank 1 matches other units."""
    problem = dealt(make_problem([random_network(3, weights) for weights in (0, 1)]), world)
    found: dict[str, Any] = {}
    for fit in ("sequential", "joint"):
        method = PLeaS(fit=fit, separate="uniform")  # type: ignore[arg-type]
        with counted() as work:
            merged = list(merge_case(method, problem, [1.0, 1.5]))
        states = [dict(one.student.state_dict()) for one in merged]
        found[fit] = {"states": states, "layers": [one.layers for one in merged], "work": work}
    others = replace(make_problem([random_network(3, weights) for weights in (0, 1 + world.rank)]), world=world)
    (matched,) = merge_case(Permutation(), others, [1.0])
    found["members"] = {name: units.members for name, units in matched.student.maps.items()}
    return found


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    assert World.current() == World(rank, 2)
    torch.save(merges(World.current()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_share_the_fits_and_make_the_students_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    alone, *both = merges(World()), *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for fit in ("sequential", "joint"):
        one, first, second = (found[fit] for found in (alone, *both))
        assert all(map(same_state, first["states"], second["states"])), "the same in both, bit for bit"
        assert first["layers"] == second["layers"]
        for mine, theirs in zip(one["states"], first["states"], strict=True):
            for name, tensor in mine.items():
                scale = float(tensor.abs().max()) + 1e-2
                assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-3 * scale), f"{fit}: {name}"
        for mine, theirs in zip(one["layers"], first["layers"], strict=True):
            assert list(mine) == list(theirs)
            for name, known in mine.items():
                assert known == pytest.approx(theirs[name], rel=1e-2, abs=1e-5), f"{fit}: {name}"
        whole, shares = one["work"], [first["work"], second["work"]]
        assert sum(share["rows"] for share in shares) == pytest.approx(whole["rows"]), "each row is solved for once"
        assert max(share["rows"] for share in shares) < 0.75 * whole["rows"]
        assert max(share["factors"] for share in shares) <= whole["factors"]
    factors = [share["joint"]["work"]["factors"] for share in both]
    assert sum(factors) == pytest.approx(alone["joint"]["work"]["factors"]), "each layer is factorised once"
    assert all(torch.equal(both[0]["members"][name], both[1]["members"][name]) for name in both[0]["members"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_row_blocks_are_dealt_out_completely_and_evenly(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = [0, *torch.randint(1, 40, (1 + seed,), generator=generator).cumsum(0).tolist()]
    unknowns = torch.randint(1, 200, (1 + seed,), generator=generator).tolist()
    blocks = [(slice(a, b), n) for (a, b), n in zip(itertools.pairwise(edges), unknowns, strict=True)]
    pieces = divide(blocks, size)
    assert [row for piece in pieces for row in range(piece.rows.start, piece.rows.stop)] == list(range(edges[-1]))
    for piece in pieces:
        rows, _ = blocks[piece.block]
        assert rows.start <= piece.rows.start < piece.rows.stop <= rows.stop
        assert 0 <= piece.owner < size
    if size == 1:
        assert [piece.rows for piece in pieces] == [rows for rows, _ in blocks]

    def longest(shares: Sequence[tuple[int, int, int]]) -> float:
        loads = [0.0] * size
        for block, rows, owner in shares:
            loads[owner] += effort(unknowns[block], rows)
        return max(loads)

    mine = longest([(piece.block, piece.rows.stop - piece.rows.start, piece.owner) for piece in pieces])
    assert mine <= sum(effort(n, rows.stop - rows.start) for rows, n in blocks)
    whole = [(index, rows.stop - rows.start) for index, (rows, _) in enumerate(blocks)]
    if size ** len(whole) <= 4096:  # against every way of dealing whole blocks out
        ways = itertools.product(range(size), repeat=len(whole))
        best = min(longest([(*one, owner) for one, owner in zip(whole, way, strict=True)]) for way in ways)
        assert mine <= (4 / 3 - 1 / (3 * size)) * best + 1e-9


def test_dealing_is_within_four_thirds_of_the_best() -> None:
    costs = [5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 3.0]
    owners = World(0, 3).deal(costs)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= 4 / 3 * 9
    assert World().deal(costs) == [0] * 7
    assert World().deal([]) == []


class Plain(nn.Module):
    """One convolution with its norm and rectifier, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@dataclass(frozen=True)
class Counting(World):
    """One process that counts what it would send."""

    sent: list[int] = field(default_factory=list)

    def reduce(self, tensor: Tensor) -> None:
        self.sent.append(tensor.numel() * tensor.element_size())

    def broadcast(self, tensor: Tensor, source: int) -> None:
        self.reduce(tensor)


def test_what_a_fit_sends_is_what_the_documents_say() -> None:
    """docs/cluster.md, with 8 bytes a number: D domains, o outputs, d inputs with taps and constant, R rounds."""
    problem, world = make_problem([Plain().eval() for _ in range(2)]), Counting()
    student = problem.start({**problem.fixed, "conv": UnitMap.identity(6, 2)})
    domains = len(problem.pictures)
    walk = SequentialFit(
        student, problem.sources, problem.owners, problem.pictures, ridge=0.1, divergence=False, rounds=2, world=world
    )
    walk.run()

    def layer(outputs: int, inputs: int, rounds: int) -> int:
        gram = domains * (inputs**2 + 2)  # how many samples, and what the fit leaves of the targets
        return gram + (1 + rounds) * (domains * outputs * (inputs + 1) + outputs * inputs + 5)  # 5 of each row block

    assert sum(world.sent) == 8 * (layer(6, 3 * 9 + 1, 2) + 5 * domains * 6 + layer(4, 6 + 1, 0))
