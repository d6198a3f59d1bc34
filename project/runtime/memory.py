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
    """About how many bytes a fit holds at its peak.

    Args:
        whole: With everything in memory.
        least: With all that waits on disk.
    """

    whole: int = 0
    least: int = 0

    @staticmethod
    def most(*estimates: "MemoryEstimate") -> "MemoryEstimate":
        """Of what happens one after the other."""
        return MemoryEstimate(max(one.whole for one in estimates), max(one.least for one in estimates))


@dataclass(frozen=True)
class MemoryPlan:
    """How a merge keeps within its memory.

    Args:
        room: Bytes that it may take.
        statistics: Bytes of all moments to be gathered.
        batch: Bytes that running the sources on one batch takes.
        estimate: Of the fit that takes most.
        shares: Names of the moments that each pass over the pictures gathers.
        shelve: Whether statistics wait on disk once they are gathered.
        spill: Whether the sequential fit's batches wait on disk.
        peak: Bytes at most at any time.
    """

    room: int
    statistics: int
    batch: int
    estimate: MemoryEstimate
    shares: tuple[tuple[str, ...], ...]
    shelve: bool
    spill: bool
    peak: int

    def __str__(self) -> str:
        """In one sentence."""
        told = [
            f"memory: at most {size(self.peak)} of {size(self.room)} beside what the process has: statistics "
            f"{size(self.statistics)}, and with them gathering {size(self.batch)}, then the fit "
            f"{size(self.estimate.whole)}"
        ]
        if len(self.shares) > 1:
            told.append(f"statistics are gathered in {len(self.shares)} passes over the pictures and wait on disk")
        elif self.shelve:
            told.append("statistics wait on disk while students are fitted")
        if self.spill:
            told.append(f"the fit's waiting batches lie on disk, so that it takes {size(self.estimate.least)}")
        return "; ".join(told)


def plan_memory(moments: Mapping[str, int], batch: int, estimate: MemoryEstimate, room: int) -> MemoryPlan:
    """Divide what is to be gathered into as few passes as the memory allows, and settle what waits on disk.

    Args:
        moments: Bytes of every moment to be gathered, by name.
        batch: Bytes that running the sources on one batch takes, see :func:`gather_bytes`.
        estimate: Of the fit that takes most.
        room: Bytes that the merge may take.

    Raises:
        ConfigurationError: If it takes more, whatever waits on disk.
    """
    largest = max(moments.values(), default=0)
    for what, needed in (("gathering statistics", batch + largest), ("the fit", estimate.least)):
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
    shelve, spill = len(shares) > 1 or total + estimate.whole > room, estimate.whole > room
    gathering = batch + max((sum(moments[name] for name in share) for share in shares), default=0)
    fitting = (0 if shelve else total) + (estimate.least if spill else estimate.whole)
    return MemoryPlan(
        room,
        total,
        batch,
        estimate,
        tuple(map(tuple, shares)),
        shelve=shelve,
        spill=spill,
        peak=max(gathering, fitting),
    )


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
    amount = split_amount(text, "kMGT", ("b",))
    if amount is None or not 0 < amount[0] < inf:
        raise ConfigurationError(f"memory is {text!r}; allowed: an amount above 0, such as '16 GB' or '500 MB'.")
    number, prefix, _ = amount
    return int(number * POWERS[prefix])


def size(count: int) -> str:
    """Bytes in words, in powers of ten."""
    scale, name = next(((s, n) for s, n in ((10**9, "GB"), (10**6, "MB")) if count >= s), (10**3, "kB"))
    return f"{count / scale:.1f} {name}"
