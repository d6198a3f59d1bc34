"""Run the suite as other processors round, one configuration after the other: ``python tests/rounding.py [pytest's]``.

Sums of floating-point numbers differ in their last digits with the instruction set and with the number of threads. What
hangs on those digits fails here and not at somebody else's. Other arguments go to pytest, such as ``tests/methods``.
"""

import os
import subprocess
import sys
from itertools import product

# What torch's own loops, oneDNN's convolutions, MKL's and OpenBLAS's products may use; without a word: all there is.
SETS = {
    "sse": ("default", "SSE41", "SSE4_2", "Nehalem"),
    "avx2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "native": None,
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
THREADS = (1, 2)
DISTURB = "1e-6"


def environment(words: tuple[str, ...] | None, threads: int, disturb: str) -> dict[str, str]:
    """The environment of a run."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    chosen = dict(zip(VARIABLES, words, strict=True)) if words else {}
    # Threads that wait give their core away, or two processes on two cores would wait for each other.
    others = {"PLEAS_TEST_THREADS": str(threads), "PLEAS_TEST_DISTURB": disturb, "OMP_WAIT_POLICY": "PASSIVE"}
    return {**kept, **chosen, **others}


def main(arguments: list[str]) -> int:
    """Run every configuration, print which failed, and return 1 if any did."""
    runs = {
        f"{name}, {threads} thread{'s' * (threads > 1)}": environment(words, threads, "0")
        for (name, words), threads in product(SETS.items(), THREADS)
    }
    runs[f"native, 1 thread, disturbed by {DISTURB}"] = environment(None, 1, DISTURB)
    failed = []
    for name, variables in runs.items():
        print(f"==== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments], env=variables, check=False).returncode:
            failed.append(name)
    for name in runs:
        print(f"{'failed' if name in failed else 'passed'}: {name}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
