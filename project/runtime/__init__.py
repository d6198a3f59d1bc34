"""What any long run needs, whatever it computes: processes, memory, disk, unfinished work, time."""

from project.runtime.lock import alone_in, only_writer
from project.runtime.memory import MemoryEstimate, MemoryPlan, free_bytes, plan_memory, read_bytes
from project.runtime.messages import LOGGER, tell, warn
from project.runtime.phases import PhaseClock
from project.runtime.processes import ALONE, Reduce, World, deal_out
from project.runtime.progress import Progress
from project.runtime.saving import atomic_file, atomic_save, atomic_text
from project.runtime.spill import lengths, waiting

__all__ = [
    "ALONE", "LOGGER", "MemoryEstimate", "MemoryPlan", "PhaseClock", "Progress", "Reduce", "World", "alone_in",
    "atomic_file", "atomic_save", "atomic_text", "deal_out", "free_bytes", "lengths", "only_writer", "plan_memory",
    "read_bytes", "tell", "waiting", "warn",
]  # fmt: skip
