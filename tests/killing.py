"""Commands in processes of their own, some of which are ended before they are done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run_to_the_end(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "project", *command],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def killed_anew(
    command: Sequence[str], folder: Path, sign: str, by: signal.Signals = signal.SIGKILL, victim: str = "all"
) -> str:
    """Run a command, and end it by a signal as soon as a file shows below a folder; returns what its processes said.

    Args:
        command: After the program's name.
        folder: Where the file shows.
        sign: What it is called.
        by: The signal.
        victim: Who gets it: ``all`` processes of the run, as from a terminal; the ``first``; or the ``second``, which
            the first has started.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "project", *command],
        env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(folder.glob(sign)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            assert process.stderr is not None
            raise AssertionError(f"no {sign} in {folder}: {process.stderr.read()[-2000:]}")
        time.sleep(0.002)
    others = psutil.Process(process.pid).children()
    if victim == "all":
        os.killpg(process.pid, by)
    else:
        (process if victim == "first" else others[0]).send_signal(by)
    told: str = process.communicate(timeout=60)[1]
    assert not psutil.wait_procs(others, timeout=60)[1], "nobody stays behind"
    if victim == "second":
        assert process.returncode in (1, -signal.SIGKILL)  # Lightning kills the first where it finds the second gone
    else:
        assert process.returncode == (-by if by == signal.SIGKILL else 128 + by), told[-2000:]
    return told
