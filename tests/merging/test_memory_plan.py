"""What a merge may take of a device: less what its networks will take there."""

from types import SimpleNamespace
from typing import cast

import pytest
from helpers import make_problem, random_network

from project.allocation import Budget, stored_bytes
from project.data import DomainDataModule
from project.merging import memory_plan
from project.merging.memory_plan import Planner
from project.methods import Average, PLeaS
from project.runtime import MemoryEstimate

GB = 10**9


def test_an_accelerator_has_room_for_the_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem([random_network(1, weights) for weights in range(2)], batches=[])
    data = cast(
        DomainDataModule, SimpleNamespace(calibration_counts=lambda: {"art": 8, "clipart": 8}, calibration_batch_size=4)
    )
    methods, budgets = [PLeaS("weights"), Average()], [Budget(1.0), Budget(1.5)]
    one = stored_bytes(problem.sources[0].state_dict())
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: GB)
    there = Planner.of(problem, methods, budgets, data, MemoryEstimate(), device="cuda")
    assert there.room == GB - one * (2 + 2 * (1.0 + 1.5))
    assert there.free.startswith("1.0 GB are free on cuda, 1.0 GB on the host, ")
    assert Planner.of(problem, methods, budgets, data, MemoryEstimate()).room == GB, "on the host they lie already"
    assert Planner.of(problem, methods, budgets, data, MemoryEstimate(), "1 MB", "cuda").room == 10**6
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: one)
    assert Planner.of(problem, methods, budgets, data, MemoryEstimate(), device="cuda").room == 0
