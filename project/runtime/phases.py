"""What each phase of a run costs: seconds and peak memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class PhaseClock:
    """Seconds and peak memory of named phases.

    Attributes:
        seconds: phase -> wall-clock seconds, added up over all its runs.
        peak: phase -> largest memory in MiB seen during them: on a GPU what torch allocated there, else the
            process's resident memory.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what runs inside the ``with`` statement.

        Args:
            name: Of the phase; one that comes again is added up.
        """
        _forget_peak()
        _synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            _synchronise()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.peak[name] = max(self.peak.get(name, 0.0), _peak())

    def rows(self) -> list[dict[str, float | str]]:
        """Tabulate the phases, one row each, in the order in which they came: ``phase``, ``seconds``, ``peak_mib``."""
        return [{"phase": n, "seconds": round(s, 2), "peak_mib": round(self.peak[n])} for n, s in self.seconds.items()]


def _on_gpu() -> bool:
    """Whether this process has used a GPU; a merge on the CPU beside one has not."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _synchronise() -> None:
    """Wait for what a GPU was given to do."""
    if _on_gpu():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
        return
    clear = Path("/proc/self/clear_refs")  # Linux: "5" sets the high-water mark back to what is resident now
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:
            return  # not permitted in some containers: the peak is then that of the process so far


def _peak() -> float:
    if _on_gpu():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
