"""Freed memory goes back to the system where glibc is in use; elsewhere nothing is touched."""

import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anonymous import STATUS, held

from project.runtime import allocator
from project.runtime.allocator import give_back, glibc, held_tight

OTHER_PROCESSES = True  # see tests/conftest.py
with_glibc = pytest.mark.skipif(
    glibc("mallopt") is None or not STATUS.exists() or "RssAnon" not in STATUS.read_text(),
    reason="Linux with glibc alone keeps freed memory so, and tells what is held",
)
LARGE_BLOCKS = """
import torch
from anonymous import held
from project.runtime.allocator import held_tight

def given_back(limited):
    with held_tight(limited):
        blocks = [torch.ones(2**19) for _ in range(100)]  # 2 MiB each
        full = held()
        blocks = blocks[::2]
        return (full - held()) / (len(blocks) * 2**21)

torch.ones(2**22)  # 16 MiB, after which glibc keeps blocks of that size
print(given_back(False), given_back(True))
"""


@with_glibc
def test_freed_memory_goes_back_to_the_system() -> None:
    """Though blocks between are still in use."""
    blocks = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, which glibc maps none of by itself
    full = held()
    del blocks[::2]
    give_back()
    assert full - held() > 1000 * 2**16 // 2
    assert len(blocks) == 1000


@with_glibc
@pytest.mark.slow
def test_under_a_limit_large_blocks_go_back_at_once() -> None:
    """In a process of its own, whose heap has no holes that blocks fill first."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_BLOCKS], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )  # fmt: skip
    without, limited = map(float, done.stdout.split())
    assert without < 0.5
    assert limited > 0.9


@pytest.mark.parametrize(
    ("platform", "library"),
    [("darwin", None), ("win32", None), ("linux", SimpleNamespace()), ("linux", OSError("not a dynamic executable"))],
)
def test_other_systems_are_left_to_themselves(platform: str, library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows; musl, which has no such function; a Python that is one static file."""

    def opened(name: str | None) -> object:
        if library is None:
            pytest.fail("looked for functions of another system")
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", opened)
    give_back()
    for limited in (False, True):
        with held_tight(limited):
            assert torch.ones(2**19).sum() == 2**19


def test_without_a_limit_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def noted(*given: int) -> int:
        calls.append(given)
        return 1

    monkeypatch.setattr(allocator, "glibc", lambda name: noted)
    with held_tight(False):
        pass
    assert not calls
    with suppress(ZeroDivisionError), held_tight(True):
        calls.clear()
        raise ZeroDivisionError
    assert sorted(calls) == [
        (allocator.M_MMAP_THRESHOLD, allocator.USUAL),
        (allocator.M_TRIM_THRESHOLD, allocator.USUAL),
    ]
