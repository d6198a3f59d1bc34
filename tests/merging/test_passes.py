"""The pass that re-estimates batch norms: with room for the pictures or without, in one process or several."""

from pathlib import Path

import pytest
import torch
from helpers import DOMAINS, make_problem, pictures, random_network, same_state, space_of
from meeting import together

import project
from project.allocation import Budget
from project.merging.memory_plan import Planner
from project.merging.passes import ReestimationPass, Site
from project.methods import TIES, Average, Interpolation, Merged, Permutation, TaskArithmetic, WEMoE, ZipIt
from project.runtime import ALONE, MemoryEstimate, World
from project.student import batch_norms

GIVEN = {domain: pictures(13, index) for index, domain in enumerate(DOMAINS[:2])}


def students() -> list[Merged]:
    """Two averages, of other networks."""
    cases = [make_problem([random_network(n, seed) for seed in range(2)], needs=(), batches=[]) for n in (1, 3)]
    return [Merged("average", Budget(1.0), case.start(space_of(case, "none").maps)) for case in cases]


def driven(it: ReestimationPass, world: World = ALONE, size: int = 4, scratch: Path | None = None) -> int:
    """Bring a pass to its end, as often as it asks for; returns how often that was."""
    site = Site(world, torch.device("cpu"), Planner(0, 0, MemoryEstimate(), ""), scratch)
    passes = 0
    while not it.finished:
        it.start(site)
        parts = [part[world.rank :: world.size].split(size) for part in GIVEN.values()]
        for number, batch in enumerate(zip(*parts, strict=True)):
            it.step(number, {domain: (part, None) for domain, part in zip(GIVEN, batch, strict=True)})
        it.end(world)
        passes += 1
    return passes


def apart(one: list[Merged], other: list[Merged]) -> float:
    """Largest difference of statistics, over the largest of the norm."""
    found = 0.0
    for mine, theirs in zip(one, other, strict=True):
        norms = zip(batch_norms(mine.student).values(), batch_norms(theirs.student).values(), strict=True)
        for a, b in norms:
            for name in ("running_mean", "running_var"):
                x, y = a.get_buffer(name), b.get_buffer(name)
                found = max(found, float((x - y).abs().max() / y.abs().max()))
    return found


def test_without_room_for_the_pictures_there_is_a_pass_for_every_norm(tmp_path: Path) -> None:
    whole, before = students(), students()
    assert driven(ReestimationPass(whole, 10**9)) == 1
    assert apart(whole, before) > 0.1
    some = sum(part.nbytes for part in GIVEN.values())
    norms = max(len(batch_norms(merged.student)) for merged in before)
    for room, scratch, expected in ((0, None, norms), (some, None, norms), (2 * some, None, 1), (0, tmp_path, 1)):
        found = students()
        assert driven(ReestimationPass(found, room), scratch=scratch) == expected
        assert apart(found, whole) < 1e-5, (room, scratch)


@pytest.mark.parametrize("rooms", [(10**9, 10**9), (10**9, 0), (0, 10**9)])
def test_processes_agree_on_how_often_they_look(rooms: tuple[int, int]) -> None:
    whole, both = students(), [students() for _ in range(2)]
    driven(ReestimationPass(whole, 10**9))
    passes = [ReestimationPass(mine, room) for mine, room in zip(both, rooms, strict=True)]  # traced one by one
    counts = together(2, lambda world: driven(passes[world.rank], world, size=3))
    assert len(set(counts)) == 1
    assert (counts[0] == 1) == (min(rooms) > 0)
    for mine in both:
        assert apart(mine, whole) < 1e-5
    assert all(same_state(one.student.state_dict(), two.student.state_dict()) for one, two in zip(*both, strict=True))


def test_a_pass_that_broke_off_leaves_nothing_behind() -> None:
    whole, found = students(), students()
    driven(ReestimationPass(whole, 10**9))
    for room in (10**9, 0):
        it = ReestimationPass(found := students(), room)
        it.start(Site(ALONE, torch.device("cpu"), Planner(0, 0, MemoryEstimate(), ""), None))
        it.step(0, {DOMAINS[0]: (100 + GIVEN[DOMAINS[0]], None)})
        it.abandon()
        assert apart(found, students()) == 0.0
        driven(it)
        assert apart(found, whole) < 1e-5


def test_students_of_a_merge_do_not_hang_on_the_size_of_batches() -> None:
    """Of methods that leave their norms to be re-estimated and look at no picture themselves; points on a line too."""
    sources = {domain: random_network(1, seed) for seed, domain in enumerate(DOMAINS[:2])}
    methods = [
        Average(), Interpolation(2, align="weights"), TaskArithmetic(), TIES(), ZipIt("weights"),
        Permutation("weights"), WEMoE(steps=0),
    ]  # fmt: skip
    few, many = (
        project.merges(sources, GIVEN, [1.0, 1.5], methods, base="mean", batch_size=size, progress=False, device="cpu")
        for size in (3, 13)
    )
    assert len(few) == len(methods) + 3
    for name, one in few.items():
        state = many[name].network.state_dict()
        for key, tensor in one.network.state_dict().items():
            # Rounding, of what a network computes on a batch, which depends on its size.
            bound = 1e-5 * float(tensor.abs().max())
            assert not tensor.is_floating_point() or float((tensor - state[key]).abs().max()) <= bound, (name, key)
