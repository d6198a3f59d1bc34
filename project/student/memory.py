"""Whether the sequential fit will fit into memory, before it begins."""

import os
from pathlib import Path

import torch

from project.symmetry import Spec

HELD = 5  # values held at once around the widest layer: what student and source read and write, and the target


def walk_bytes(spec: Spec, pictures: int, times: float) -> int:
    """About how many bytes of activations the sequential fit holds at its widest layer.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        pictures: Calibration pictures over all domains.
        times: Width of the student's widest layer over a source's, at most.
    """
    widest = max(layer.positions * spec.sizes[layer.outputs] for layer in spec.layers)
    return int(4 * HELD * times * widest * pictures)


def free_bytes() -> int:
    """Memory that is free on the host or, where that is more, on the GPU."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    table = Path("/proc/meminfo")  # on Linux, caches that can be dropped count as free
    if table.exists():
        line = next((line for line in table.read_text().splitlines() if line.startswith("MemAvailable")), None)
        free = int(line.split()[1]) * 1024 if line else free
    return max(free, torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0)
