"""Run many cases: ``PYTHONPATH=tests python -m fuzzing --help``.

Every case runs in a process that is forked off one in which all is imported already, so that it can be killed when it
hangs, has memory of its own, and leaves nothing behind in the next.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from fuzzing import world
from fuzzing.cases import KINDS, SOUND, draw
from fuzzing.judging import faults, perform

MEMORY = 8 * 2**30
"""Address space that a case may take beside what it begins with."""


@dataclass
class Running:
    """A case under way.

    Args:
        number: Of the case.
        folder: Of all that belongs to it.
        since: When it began.
    """

    number: int
    folder: Path
    since: float = field(default_factory=time.monotonic)


def fork(work: Callable[[], None]) -> int:
    """Do some work in a process of its own, in a group of its own; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _bound_memory()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _bound_memory() -> None:
    """Let what would take all memory of the machine fail by itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (OSError, ValueError):
        pass  # no Linux: without a bound


def prepare(base: Path) -> None:
    """Make the world, each part in a process of its own."""
    for part in world.PARTS:
        _, status = os.waitpid(fork(lambda part=part: _quietly(base, part)), 0)  # type: ignore[misc]
        if status:
            sys.exit(f"the good inputs cannot be made: {part}\n{(base / 'log').read_text()[-2000:]}")


def _quietly(base: Path, part: str) -> None:
    log = os.open(base / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["pleas"]
    world.make(base, part)


def run_case(seed: int, number: int, base: Path, folder: Path, kinds: list[str]) -> None:
    """Draw a case, run it and write down what does not hold."""
    inputs, scratch = folder / "inputs", folder / "scratch"
    inputs.mkdir(parents=True)
    scratch.mkdir()
    try:
        torch.manual_seed(seed)
        case = draw(seed, number, base, inputs, kinds)
        (folder / "case.json").write_text(json.dumps({**asdict(case), "named": sorted(case.named)}))
        outcome = perform(case, inputs, scratch)
        found = faults(case, outcome, inputs)
        if case.kind == "sound" and outcome.status:
            found.append("it is refused, though nothing is wrong")
        report = {"status": outcome.status, "faults": found, "err": outcome.err[-4000:]}
    except BaseException:
        report = {"status": None, "faults": [f"the harness failed: {traceback.format_exc()}"], "err": ""}
    (folder / "report.json").write_text(json.dumps(report))


def main() -> int:
    """Run the cases; returns how many do not hold, at most 100."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--cases", type=int, default=400, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--case", type=int, help="this one alone, its folder kept")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of what kinds")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4), help="processes at once")
    parser.add_argument("--bound", type=float, default=120.0, help="seconds after which a case hangs")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of cases that do not hold")
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = (
        [given.case]
        if given.case is not None
        else [*_sound(given.first), *range(given.first, given.first + given.cases)]
    )
    keep = given.keep or (Path(tempfile.mkdtemp(prefix="pleas-fuzzing-")) if given.case is not None else None)
    with tempfile.TemporaryDirectory(prefix="pleas-fuzzing-") as place:
        base = Path(place, "world")
        base.mkdir()
        prepare(base)
        return min(_run(numbers, given, Path(place), keep), 100)


def _sound(first: int) -> range:
    """Numbers of the cases in which nothing is wrong, which go first where a run begins at its beginning."""
    return range(-1, -1 - len(SOUND), -1) if first == 0 else range(0)


def _run(numbers: list[int], given: argparse.Namespace, place: Path, keep: Path | None) -> int:
    started, waiting, running, outcomes, bad = time.monotonic(), numbers[::-1], dict[int, Running](), Counter[str](), 0
    while waiting or running:
        while waiting and len(running) < given.workers:
            number = waiting.pop()
            folder = place / f"case-{number}"
            work = Running(number, folder)
            child = fork(lambda n=number, f=folder: run_case(given.seed, n, place / "world", f, given.kinds))  # type: ignore[misc]
            running[child] = work
        child, status = _ended(running, given.bound)
        work = running.pop(child)
        outcome, told = _judged(work, status)
        outcomes[outcome] += 1
        if told:
            bad += 1
            _tell(work, told, given)
        if keep is not None and (told or given.case is not None):
            shutil.copytree(work.folder, keep / work.folder.name, symlinks=True, ignore=_special, dirs_exist_ok=True)
            print(f"  kept: {keep / work.folder.name}")
        shutil.rmtree(work.folder, ignore_errors=True)
    seconds = time.monotonic() - started
    figures = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    print(f"{len(numbers)} cases of seed {given.seed} in {seconds:.0f} s: {figures}; {bad} do not hold")
    return bad


def _ended(running: dict[int, Running], bound: float) -> tuple[int, int | None]:
    """Wait for a process to end; one that hangs is killed, with all that it has started, and has no status."""
    while True:
        for child, work in running.items():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return child, status
            if time.monotonic() - work.since > bound:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return child, None
        time.sleep(0.02)


def _judged(work: Running, status: int | None) -> tuple[str, list[str]]:
    """How a case ended, and what does not hold."""
    report = work.folder / "report.json"
    if status is None:
        return "hung", ["it hangs"]
    if not report.exists():
        return "died", [f"its process ended with {os.waitstatus_to_exitcode(status)}"]
    content = json.loads(report.read_text())
    how = "accepted" if content["status"] == 0 else "refused"
    return how, content["faults"]


def _tell(work: Running, told: list[str], given: argparse.Namespace) -> None:
    """Print a case that does not hold, and how it is run again."""
    try:
        case = json.loads((work.folder / "case.json").read_text())
    except OSError:
        case = {"kind": "?", "notes": [], "words": []}
    print(f"case {work.number} ({case['kind']}): {'; '.join(told)}")
    print(f"  inputs: {'; '.join(case['notes'])}")
    print(f"  command: {shlex.join(['pleas', *case['words']])!r}")
    kinds = f" --kinds {shlex.join(given.kinds)}" if given.kinds != list(KINDS) else ""
    print(f"  again: PYTHONPATH=tests python -m fuzzing --seed {given.seed} --case {work.number}{kinds}", flush=True)


def _special(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes and sockets."""
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


if __name__ == "__main__":
    sys.exit(main())
