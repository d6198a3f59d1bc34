"""Latency of students over one source's, for every way to spend a budget; random weights, no data.

    python benchmarks/latency.py --out benchmarks/results/latency.json
    python benchmarks/latency.py --like benchmarks/results/allocation_real.json --out benchmarks/results/latency.json

Without data nobody knows what a unit gains by being kept apart, so that ``gain`` spends at random here; ``--like`` adds
students in which as much of every group is separate as in those of a merge of two sources, from its results.json or
from what ``allocation.py`` has written. Every round runs every network once, in turn, so that what else the machine
does falls on all alike; the figures are medians over rounds, as multiples of one source's in the same run.

On Linux, glibc hands the memory of every large map back to the system as soon as a layer is done with it, and the next
layer waits while the system zeroes as much again. PyTorch's performance tuning guide therefore has CPUs serve with
jemalloc or tcmalloc, which keep freed memory, as this benchmark has glibc do; ``--allocator system`` leaves it be.
"""

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from merge_quality import machine
from torch import nn

from project.alignment import Alignment, UnitMap
from project.allocation import Budget, by_gain, nominal_macs, source_macs, stagewise, uniform
from project.models import Architecture
from project.runtime import atomic_text
from project.student import blank_network
from project.symmetry import Spec, trace

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measure what the arguments ask for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 1.2, 1.5, 1.8, 2.0])
    parser.add_argument("--separate", nargs="+", default=["front", "back", "uniform", "gain"])
    parser.add_argument("--step", type=int, help="units of a group separated at once; default: as the methods have it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--like", type=Path, nargs="+", default=[], help="results of merges of two sources")
    parser.add_argument("--channels-last", action="store_true", help="lay pictures out with their channels last")
    parser.add_argument(
        "--allocator", choices=["keeping", "system"], default="keeping", help="of freed memory on a CPU"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a machine in use")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.json"))
    arguments = parser.parse_args()
    if arguments.allocator == "keeping":
        keep_freed_memory()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        plain = Architecture(arguments.architecture, 345).build().eval()
    spec = trace(plain, (3, arguments.image_size, arguments.image_size))
    students = {
        f"{separate}-{budget:g}": allocated(spec, arguments.sources, budget, separate, arguments.step)
        for separate in arguments.separate
        for budget in arguments.budgets
    }
    for file in arguments.like:
        students |= {f"{name} of {file}": alike(spec, shares) for name, shares in separate_shares(file).items()}
    networks, nominal = {"source": built(plain, spec, merged(spec, 1), device)}, {"source": 1.0}
    for name, maps in students.items():
        networks[name] = built(plain, spec, maps, device)
        nominal[name] = nominal_macs(spec, maps) / source_macs(spec, maps)
    rows = []
    for batch in arguments.batches:
        layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        pictures = torch.randn(batch, *spec.picture, device=device).contiguous(memory_format=layout)
        seconds = measured(networks, pictures, arguments.rounds, CLOCKS[arguments.clock])
        for name, taken in seconds.items():
            ratio = taken / seconds["source"]
            row = {"network": name, "batch": batch, "nominal": round(nominal[name], 3), "milliseconds": 1e3 * taken}
            rows.append({**row, "latency": round(ratio, 3), "over nominal": round(ratio / nominal[name], 3)})
            print(*(f"{key} {value:.4g}" if isinstance(value, float) else value for key, value in rows[-1].items()))
    order = "channels last" if arguments.channels_last else "channels first"
    found: dict[str, Any] = {"machine": machine(), "clock": arguments.clock, "step": arguments.step, "order": order}
    found |= {"allocator": arguments.allocator, "table": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory for what is asked for next, as jemalloc and tcmalloc do."""
    if platform.libc_ver()[0] != "glibc":
        raise SystemExit("--allocator keeping needs glibc; use --allocator system.")
    trim_threshold, mmap_max, most = -1, -4, 2**31 - 1  # of mallopt(3)
    malloc = ctypes.CDLL(None)
    if not (malloc.mallopt(mmap_max, 0) and malloc.mallopt(trim_threshold, most)):
        raise SystemExit("glibc refused to keep freed memory; use --allocator system.")


def merged(spec: Spec, sources: int) -> dict[str, UnitMap]:
    """Unit maps of a full merge."""
    return {group.name: UnitMap.identity(group.size, sources) for group in spec.groups.values()}


def allocated(spec: Spec, sources: int, budget: float, separate: str, step: int | None) -> dict[str, UnitMap]:
    """Unit maps of a student whose units match and gain at random."""
    maps = merged(spec, sources)
    fixed = {group.name: maps[group.name] for group in spec.groups.values() if group.fixed}
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in spec.free}
    apart = {name: score[:, None, None].expand(-1, sources, sources) for name, score in scores.items()}
    alignment = Alignment({name: maps[name].members for name in scores}, scores, apart)
    if separate == "gain":
        return by_gain(spec, alignment, fixed, Budget(budget), scores, step=step)
    if separate == "uniform":
        return uniform(spec, alignment, fixed, Budget(budget), step=step)
    return stagewise(spec, alignment, fixed, Budget(budget), front=separate == "front", step=step)


def separate_shares(file: Path) -> dict[str, dict[str, float]]:
    """Student -> group -> share of its rows that is separate, of the students of which any is."""
    found = json.loads(file.read_text())
    parts = [found] if "separated" in found else [part for part in found.values() if "separated" in part]
    return {name: shares for part in parts for name, shares in part["separated"].items() if any(shares.values())}


def alike(spec: Spec, shares: dict[str, float]) -> dict[str, UnitMap]:
    """Unit maps of two sources in which these shares of every group's rows are separate, the first ones."""
    if not spec.groups.keys() <= shares.keys():
        raise SystemExit(f"--like holds a merge of another architecture than --architecture {sorted(shares)[:3]} …")
    maps = merged(spec, 2)
    for group in spec.free:
        maps[group.name] = maps[group.name].split(torch.arange(round(shares[group.name] * group.size)))
    return maps


def built(plain: nn.Module, spec: Spec, maps: dict[str, UnitMap], device: torch.device) -> nn.Module:
    """A network of these unit maps with random weights."""
    with torch.device("meta"):
        network = blank_network(plain, spec, maps)
    network = network.to_empty(device=device).eval()
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand_like(tensor.float()) / tensor.numel() ** 0.5)
    return network


@torch.inference_mode()
def measured(
    networks: dict[str, nn.Module], pictures: torch.Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of one pass of every network."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(rounds + 1):  # the first warms up
        for name, network in networks.items():
            start = clock()
            network(pictures)
            if pictures.is_cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return {name: median(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
