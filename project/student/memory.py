"""How much memory a merge takes, planned before it begins: what is gathered together, and what waits on disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil
import torch

from project.errors import ConfigurationError
from project.moments import drawn_count
from project.moments.patches import CHUNK_BYTES
from project.symmetry import Spec

HELD = 5  # values held at once around the widest layer: what student and source read and write, and the target
SOLVING = 4  # matrices of the unknowns' size beside the domains' own: their sum, with the ridge, its factor, a moment
SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Demand:
    """About how many bytes a fit holds at its peak.

    Args:
        whole: With everything in memory.
        least: With all that waits on disk.
    """

    whole: int = 0
    least: int = 0

    @staticmethod
    def most(*demands: "Demand") -> "Demand":
        """Of what happens one after the other."""
        return Demand(max(one.whole for one in demands), max(one.least for one in demands))


@dataclass(frozen=True)
class MemoryPlan:
    """How a merge keeps within its memory.

    Args:
        room: Bytes that it may take.
        statistics: Bytes of all moments to be gathered.
        batch: Bytes that running the sources on one batch takes.
        demand: Of the fit that takes most.
        shares: Names of the moments that each pass over the pictures gathers.
        shelve: Whether statistics wait on disk once they are gathered.
        spill: Whether the sequential fit's batches wait on disk.
        peak: Bytes at most at any time.
    """

    room: int
    statistics: int
    batch: int
    demand: Demand
    shares: tuple[tuple[str, ...], ...]
    shelve: bool
    spill: bool
    peak: int

    def __str__(self) -> str:
        """In one sentence."""
        told = [
            f"memory: at most {size(self.peak)} of {size(self.room)} beside what the process has: statistics "
            f"{size(self.statistics)}, and with them gathering {size(self.batch)}, then the fit "
            f"{size(self.demand.whole)}"
        ]
        if len(self.shares) > 1:
            told.append(f"statistics are gathered in {len(self.shares)} passes over the pictures and wait on disk")
        elif self.shelve:
            told.append("statistics wait on disk while students are fitted")
        if self.spill:
            told.append(f"the fit's waiting batches lie on disk, so that it takes {size(self.demand.least)}")
        return "; ".join(told)


def plan_memory(moments: Mapping[str, int], batch: int, demand: Demand, room: int) -> MemoryPlan:
    """Divide what is to be gathered into as few passes as the memory allows, and settle what waits on disk.

    Args:
        moments: Bytes of every moment to be gathered, by name.
        batch: Bytes that running the sources on one batch takes, see :func:`gather_bytes`.
        demand: Of the fit that takes most.
        room: Bytes that the merge may take.

    Raises:
        ConfigurationError: If it takes more, whatever waits on disk.
    """
    largest = max(moments.values(), default=0)
    for what, needed in (("gathering statistics", batch + largest), ("the fit", demand.least)):
        if needed > room:
            raise ConfigurationError(
                f"memory is {size(room)}, but {what} takes about {size(needed)} even with all that waits on disk; use "
                f"smaller batches, smaller budgets, or a machine with more."
            )
    shares: list[list[str]] = []
    left = 0
    for name, needed in moments.items():
        if not shares or needed > left:
            shares.append([])
            left = room - batch
        shares[-1].append(name)
        left -= needed
    total = sum(moments.values())
    shelve, spill = len(shares) > 1 or total + demand.whole > room, demand.whole > room
    gathering = batch + max((sum(moments[name] for name in share) for share in shares), default=0)
    fitting = (0 if shelve else total) + (demand.least if spill else demand.whole)
    return MemoryPlan(
        room,
        total,
        batch,
        demand,
        tuple(map(tuple, shares)),
        shelve=shelve,
        spill=spill,
        peak=max(gathering, fitting),
    )


def gather_bytes(spec: Spec, sources: int, pictures: int) -> int:
    """About how many bytes all sources hold around their widest layer, and its inputs written out, on one batch.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        sources: Number of sources N.
        pictures: Pictures in the batch.
    """
    units = {name: sources * size for name, size in spec.sizes.items()}
    return walk_bytes(widest(spec, units), pictures) + patch_bytes(spec, units, pictures)


def gradient_bytes(spec: Spec, pictures: int, chunk: int, parameters: int) -> int:
    """About how many bytes gradients take on the way back through one source, beside what :func:`gather_bytes` tells.

    Args:
        spec: Groups of the source, traced at the pictures' size.
        pictures: Pictures in the batch, whose activations wait in every layer.
        chunk: Of how many pictures the gradients of all parameters are held, and squared, at once.
        parameters: Of the source.
    """
    values = sum(layer.positions * spec.sizes[layer.outputs] for layer in spec.layers)
    return 4 * (HELD * values * pictures + 2 * parameters * min(chunk, pictures))


def picture_bytes(spec: Spec, pictures: int) -> int:
    """How many bytes pictures take that are kept in memory.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        pictures: How many.
    """
    return 4 * pictures * prod(spec.picture)


def widest(spec: Spec, units: Mapping[str, int]) -> int:
    """Most values that a layer puts out for one picture.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
    """
    return max(layer.positions * units[layer.outputs] for layer in spec.layers)


def walk_bytes(values: int, pictures: int) -> int:
    """About how many bytes of activations are held around one layer.

    Args:
        values: What it puts out for one picture.
        pictures: How many pictures stand there.
    """
    return 4 * HELD * values * pictures


def patch_bytes(spec: Spec, units: Mapping[str, int], pictures: int) -> int:
    """About how many bytes a layer's inputs take at most, a patch for every position, in chunks of limited size.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
        pictures: Pictures in the batch.
    """
    each = max(4 * layer.positions * layer.taps * units[layer.inputs] for layer in spec.layers)
    return min(max(CHUNK_BYTES, each), each * pictures)


def drawn_bytes(spec: Spec, units: Mapping[str, int], pictures: int, step: int) -> int:
    """About how many bytes a layer's inputs take at most at positions that are drawn from pictures and wait.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
        pictures: How many.
        step: One position in so many is drawn.
    """
    layers = [layer for layer in spec.layers if layer.positions > 1]
    each = (drawn_count(layer.positions, step) * layer.taps * units[layer.inputs] for layer in layers)
    return 4 * pictures * max(each, default=0)


def solve_bytes(unknowns: int, domains: int, blocks: int = 1) -> int:
    """About how many bytes solving a layer takes.

    Args:
        unknowns: Of its widest row.
        domains: Number of calibration domains, each of which has equations of its own.
        blocks: Of a grouped convolution, each of which is a system of its own.
    """
    return 8 * (SOLVING + domains) * blocks * unknowns**2


def free_bytes(device: torch.device | str = "cpu", processes: int = 1) -> int:
    """Memory that is free on the host, or on the GPU that is used.

    Args:
        device: Where the merge runs.
        processes: Processes that share it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // processes
    free = int(psutil.virtual_memory().available)  # caches that can be dropped count as free
    return min(free, *_group_bytes()) // processes


def _group_bytes() -> list[int]:
    """What Linux' control groups (version 2) leave to this process, as batch systems and containers set them."""
    table = Path("/proc/self/cgroup")
    found = re.search(r"^0::/(.*)$", table.read_text(), re.MULTILINE) if table.exists() else None
    if found is None:
        return [2**62]
    folder, left = Path("/sys/fs/cgroup", found[1]), [2**62]
    for group in (folder, *folder.parents):
        limit, used = group / "memory.max", group / "memory.current"
        if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
            continue
        caches = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        left.append(int(limit.read_text()) - int(used.read_text()) + (int(caches[1]) if caches else 0))
    return [max(0, one) for one in left]


def read_bytes(text: str) -> int:
    """Bytes from '16 GB' or '500 MB', in powers of ten.

    Raises:
        ConfigurationError: If it is something else.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)b?\s*", text.lower())
    if found is None or float(found[1]) == 0:
        raise ConfigurationError(f"memory is {text!r}; allowed: an amount above 0, such as '16 GB' or '500 MB'.")
    return int(float(found[1]) * SCALES[found[2]])


def size(count: int) -> str:
    """Bytes in words, in powers of ten."""
    scale, name = next(((s, n) for s, n in ((10**9, "GB"), (10**6, "MB")) if count >= s), (10**3, "kB"))
    return f"{count / scale:.1f} {name}"
