"""How much memory a merge takes, planned before it begins: what is gathered together, and what waits on disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import psutil
import torch

from project.errors import ConfigurationError
from project.runtime.units import POWERS, split_amount


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimate of the bytes that making students, or running them, holds at its peak.

    Args:
        whole: With everything in memory.
        least: With all that waits on disk.
    """

    whole: int = 0
    least: int = 0

    def adding(self, count: int) -> "MemoryEstimate":
        """Add bytes that are in memory in any case."""
        return MemoryEstimate(self.whole + count, self.least + count)

    @staticmethod
    def most(*estimates: "MemoryEstimate") -> "MemoryEstimate":
        """Combine estimates of steps that run one after the other: the largest of each figure."""
        whole, least = max(step.whole for step in estimates), max(step.least for step in estimates)
        return MemoryEstimate(whole, least)


@dataclass(frozen=True)
class MemoryPlan:
    """Division of a merge into passes over the pictures, and choice of what waits on disk, within a memory limit.

    Args:
        room: Bytes that it may take.
        statistics: Bytes of all moments to be gathered.
        gathering: Bytes that running the sources on one batch takes, with the pictures that are kept in memory.
        estimate: Of making and running students.
        shares: Names of the moments that each pass over the pictures gathers.
        shelve: Whether statistics wait on disk once they are gathered.
        spill: Whether pictures, and what networks compute of them, wait on disk.
        peak: Bytes at most at any time.
    """

    room: int
    statistics: int
    gathering: int
    estimate: MemoryEstimate
    shares: tuple[tuple[str, ...], ...]
    shelve: bool
    spill: bool
    peak: int

    def __str__(self) -> str:
        """Describe the plan in one sentence."""
        clauses = [
            f"memory: at most {size(self.peak)} of {size(self.room)} beside what the process has: statistics "
            f"{size(self.statistics)}, and with them gathering {size(self.gathering)}, then students "
            f"{size(self.estimate.whole)}"
        ]
        if len(self.shares) > 1:
            clauses.append(f"statistics are gathered in {len(self.shares)} passes over the pictures and wait on disk")
        elif self.shelve:
            clauses.append("statistics wait on disk while students are fitted")
        if self.spill:
            clauses.append(f"the fit's waiting batches lie on disk, so that students take {size(self.estimate.least)}")
        return "; ".join(clauses)


def plan_memory(
    moments: Mapping[str, int], batch: int, estimate: MemoryEstimate, room: int, kept: int = 0
) -> MemoryPlan:
    """Divide what is to be gathered into as few passes as the memory allows, and settle what waits on disk.

    Args:
        moments: Bytes of every moment to be gathered, by name.
        batch: Bytes that running the sources on one batch takes, see :func:`gather_bytes`.
        estimate: Of making and running students, the pictures that are kept included.
        room: Bytes that the merge may take.
        kept: Bytes of pictures that are kept from the first pass to the fit, unless they wait on disk.

    Raises:
        ConfigurationError: If it takes more, whatever waits on disk.
    """
    largest = max(moments.values(), default=0)
    for what, needed in (("gathering statistics", batch + largest), ("making and running students", estimate.least)):
        if needed > room:
            raise ConfigurationError(
                f"memory is {size(room)}, but {what} takes about {size(needed)} even with all that waits on disk; use "
                f"smaller batches, smaller budgets, or a machine with more."
            )
    spill = max(estimate.whole, batch + kept + largest) > room
    gathering = batch + (0 if spill else kept)
    shares: list[list[str]] = []
    left = 0
    for name, needed in moments.items():
        if not shares or needed > left:
            shares.append([])
            left = room - gathering
        shares[-1].append(name)
        left -= needed
    total = sum(moments.values())
    shelve = len(shares) > 1 or total + estimate.whole > room
    pass_bytes = gathering + max((sum(moments[name] for name in share) for share in shares), default=0)
    fitting = (0 if shelve else total) + (estimate.least if spill else estimate.whole)
    return MemoryPlan(
        room,
        total,
        gathering,
        estimate,
        tuple(map(tuple, shares)),
        shelve=shelve,
        spill=spill,
        peak=max(pass_bytes, fitting),
    )


def free_bytes(device: torch.device | str = "cpu", processes: int = 1) -> int:
    """Measure the memory that is free on the host, or on the GPU that is used, for each process.

    Args:
        device: Where the merge runs.
        processes: Processes that share it.

    Returns:
        Bytes for each process; on the host no more than its control groups leave.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // processes
    free = int(psutil.virtual_memory().available)  # caches that can be dropped count as free
    return min(free, *_group_bytes()) // processes


def _group_bytes() -> list[int]:
    """Read the bytes that Linux' control groups (version 2), as batch systems and containers set them, leave free."""
    table = Path("/proc/self/cgroup")
    match = re.search(r"^0::/(.*)$", table.read_text(), re.MULTILINE) if table.exists() else None
    if match is None:
        return [2**62]
    folder, left = Path("/sys/fs/cgroup", match[1]), [2**62]
    for group in (folder, *folder.parents):
        limit, used = group / "memory.max", group / "memory.current"
        if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
            continue
        caches = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        left.append(int(limit.read_text()) - int(used.read_text()) + (int(caches[1]) if caches else 0))
    return [max(0, count) for count in left]


def read_bytes(text: str) -> int:
    """Parse an amount of memory such as '16 GB' or '500 MB' into bytes, in powers of ten.

    Raises:
        ConfigurationError: If it is something else.
    """
    amount = split_amount(text, "kMGT", ("b",))
    if amount is None or not 0 < amount[0] < inf:
        raise ConfigurationError(f"memory is {text!r}; allowed: an amount above 0, such as '16 GB' or '500 MB'.")
    number, prefix, _ = amount
    return int(number * POWERS[prefix])


def size(count: int) -> str:
    """Format bytes for a message, in powers of ten: '1.5 GB'."""
    scale, name = next(((s, n) for s, n in ((10**9, "GB"), (10**6, "MB")) if count >= s), (10**3, "kB"))
    return f"{count / scale:.1f} {name}"
