"""The memory plan, by arithmetic: everything once, no pass above the room, and what waits on disk."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from helpers import Case, estimate_case, make_problem, merge_case, pictures, random_network, same_state
from torch import nn

from project.errors import ConfigurationError
from project.fit.memory_estimate import gather_bytes
from project.methods import PLeaS
from project.models import Architecture, LabelSpace
from project.moments import LAYERS, UNITS, Collector, Lockstep
from project.runtime import MemoryEstimate, free_bytes, memory, plan_memory, read_bytes
from project.runtime.spill import OnDisk, Spilled, waiting
from project.symmetry import trace

GB = 10**9


def resnet152() -> tuple[Case, Mapping[str, int]]:
    """Two ResNet-152 of 224 px without values, and the bytes of what both fits need of two domains."""
    with torch.device("meta"):
        sources = [Architecture("resnet152", 345).build().eval() for _ in range(2)]
        spec = trace(sources[0], (3, 224, 224))
    classes = {domain: tuple(map(str, range(345))) for domain in ("photo", "sketch")}
    problem = Case(tuple(sources), {"photo": 0, "sketch": 1}, spec, LabelSpace(classes, "shared"))
    collector = Collector(spec, Lockstep(sources), (UNITS, LAYERS), list(classes), problem.owners, device="meta")
    return problem, {name: moment.bytes for name, moment in collector.statistics.named().items()}


@pytest.mark.slow
def test_two_resnet152_at_224_pixels_within_16_gigabytes() -> None:
    problem, moments = resnet152()
    assert sum(moments.values()) > 16 * GB, "the statistics alone are more"
    counts, batch = {"photo": 512, "sketch": 512}, 32
    estimate = estimate_case(PLeaS(), problem, counts, [1.0, 1.5], batch)
    gathering = gather_bytes(problem.spec, 2, batch)
    plan = plan_memory(moments, gathering, estimate, 16 * GB)
    assert sorted(name for share in plan.shares for name in share) == sorted(moments)
    assert all(gathering + sum(moments[name] for name in share) <= 16 * GB for share in plan.shares)
    assert len(plan.shares) == np.ceil(sum(moments.values()) / (16 * GB - gathering)), "no more passes than it takes"
    assert plan.shelve
    assert plan.spill
    assert max(estimate.least, gathering) < plan.peak <= 16 * GB
    assert estimate.least <= 16 * GB < estimate.whole
    widest = 112 * 112 * 64 * 2 * 4  # bytes of the stem's output on one picture, both sources
    assert estimate.whole > 2 * widest * 1024
    assert f"{len(plan.shares)} passes" in str(plan)
    assert "waiting batches lie on disk" in str(plan)
    with pytest.raises(ConfigurationError, match=r"memory is 2\.0 GB, but gathering statistics takes about"):
        plan_memory(moments, gather_bytes(problem.spec, 2, 64), estimate, 2 * GB)


@pytest.mark.parametrize("seed", range(20))
def test_passes_hold_everything_once_and_nothing_is_split_without_need(seed: int) -> None:
    random = np.random.default_rng(seed)
    moments = {str(name): int(random.integers(1, 50)) for name in range(30)}
    batch, whole = int(random.integers(1, 20)), int(random.integers(0, 400))
    estimate, total = MemoryEstimate(whole, whole // 10), sum(moments.values())
    for room in (batch + 50, batch + total // 2, batch + total - 1, batch + total, batch + total + whole):
        plan = plan_memory(moments, batch, estimate, max(room, estimate.least))
        room = max(room, estimate.least)
        assert [name for share in plan.shares for name in share] == list(moments)
        assert all(batch + sum(moments[name] for name in share) <= room for share in plan.shares)
        neighbours = zip(plan.shares, plan.shares[1:], strict=False)
        assert all(batch + sum(moments[n] for n in (*one, other[0])) > room for one, other in neighbours)
        assert (len(plan.shares) > 1) == (batch + total > room)
        assert plan.spill == (whole > room)
        assert plan.shelve == (len(plan.shares) > 1 or total + whole > room)
        held = 0 if plan.shelve else total
        assert held + (estimate.least if plan.spill else whole) <= plan.peak <= room, "what is held during the fit"


@pytest.mark.parametrize("seed", range(20))
def test_pictures_that_are_kept_leave_less_for_statistics(seed: int) -> None:
    random = np.random.default_rng(seed)
    moments = {str(name): int(random.integers(1, 50)) for name in range(10)}
    batch, kept = int(random.integers(1, 20)), int(random.integers(1, 200))
    estimate = MemoryEstimate(kept + int(random.integers(0, 50)), 5)
    largest = max(moments.values())
    for room in range(batch + largest, batch + kept + sum(moments.values()) + 100, 7):
        plan = plan_memory(moments, batch, estimate, room, kept)
        assert plan.spill == (max(estimate.whole, batch + kept + largest) > room)
        assert plan.gathering == batch + (0 if plan.spill else kept)
        assert [name for share in plan.shares for name in share] == list(moments)
        passes = [plan.gathering + sum(moments[name] for name in share) for share in plan.shares]
        assert max(passes) <= plan.peak <= room


def test_nothing_to_gather_takes_no_pass() -> None:
    assert plan_memory({}, 0, MemoryEstimate(), 1).shares == ()


def test_amounts_of_memory() -> None:
    written = {"16 GB": 16 * GB, "500 MB": 5 * 10**8, "1.5g": 15 * 10**8, "7": 7, "2 TB": 2000 * GB, "64kB": 64000}
    assert {text: read_bytes(text) for text in written} == written
    for text in ("", "much", "-1 GB", "0 GB", "1 GiB", "1e3 MB", "inf", "nan GB", "16x"):
        with pytest.raises(ConfigurationError, match="memory is"):
            read_bytes(text)


def test_free_memory_is_shared() -> None:
    assert free_bytes() > 2**20
    assert free_bytes("cpu", 10**6) < 2**30


def test_free_memory_is_what_programs_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped caches included, and with nothing asked of the system that only Linux answers."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12 * GB, free=GB))
    monkeypatch.setattr(os, "sysconf", lambda name: pytest.fail(f"macOS may not know {name}"))
    monkeypatch.setattr(memory, "_group_bytes", lambda: [2**62])
    assert free_bytes("cpu", 3) == 4 * GB
    monkeypatch.setattr(memory, "_group_bytes", lambda: [6 * GB, 2**62])
    assert free_bytes("cpu", 3) == 2 * GB, "where a control group leaves less"


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 6))])
def test_a_fit_that_waits_on_disk_is_the_same_fit(tmp_path: Path, seed: int) -> None:
    """Random networks, in-place sums and all."""
    sources: list[nn.Module] = [random_network(seed, weights) for weights in range(2 + seed % 2)]
    problem = make_problem(sources, batches=[(d, pictures(5, i)) for i, d in enumerate(("art", "birds", "art"))])
    made = [next(merge_case(PLeaS(), one, [1.4])) for one in (problem, replace(problem, scratch=tmp_path / "scratch"))]
    held, spilled = (merged.student.network.state_dict() for merged in made)
    assert same_state(held, spilled)
    assert not list((tmp_path / "scratch").iterdir()), "the files have no names"


def test_what_waits_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = [pictures(2, 1), pictures(2, 2).to(memory_format=torch.channels_last), torch.arange(5), torch.tensor(3.0)]
    for tensor, back in zip(tensors, waiting(tensors, tmp_path), strict=True):
        assert torch.equal(tensor, back)
        assert tensor.stride() == back.stride()
    assert torch.equal(waiting(tensors, tmp_path)[1:2][0], tensors[1])
    graph = torch.fx.Graph()
    node, other = graph.placeholder("x"), graph.placeholder("y")
    values = OnDisk(tmp_path)
    values[node] = tensors[0]
    values[other] = (tensors[0], 3)
    assert isinstance(dict.get(values, node), Spilled)
    assert torch.equal(values[node], tensors[0])
    assert values.get(other) == (tensors[0], 3)
    del values[node]
    assert values.get(node) is None
    assert not list(tmp_path.iterdir())
