"""What a merge may take of a device: less what its networks will take there."""

from dataclasses import replace

import pytest
from helpers import make_problem, random_network

from project.allocation import Budget, stored_bytes
from project.merging import memory_plan
from project.merging.memory_plan import Planner
from project.merging.settings import Place, Settings
from project.methods import Average, PictureCounts, PLeaS
from project.runtime import MemoryEstimate

GB = 10**9


def test_an_accelerator_has_room_for_the_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem([random_network(1, weights) for weights in range(2)], batches=[])
    settings = Settings([PLeaS("weights"), Average()], [Budget(1.0), Budget(1.5)])
    given = (problem, settings, PictureCounts({"art": 8, "clipart": 8}, 4), MemoryEstimate())
    one = stored_bytes(problem.sources[0].state_dict())
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: GB)
    there = Planner.of(*given, Place(device="cuda"))
    assert there.room == GB - one * 2
    assert there.free.startswith("1.0 GB are free on cuda, 1.0 GB on the host, ")
    assert Planner.of(*given, Place()).room == GB, "on the host they lie already"
    little = replace(settings, memory="1 MB")
    assert Planner.of(problem, little, *given[2:], Place(device="cuda")).room == 10**6
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: one)
    assert Planner.of(*given, Place(device="cuda")).room == 0
