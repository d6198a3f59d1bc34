"""Whether two commits make the same students: equal bits, or how far apart.

    python benchmarks/unchanged.py --before REV --after .

Both commits merge a random pair, and the sources of the demo, by every method (``unchanged_merges.py``), each in a
checkout of its own, with one interpreter, one thread and fixed seeds; then the weights of all students are compared,
and their logits of random pictures. A commit is driven by ``python -m project merge --config FILE`` and
``project.load_student`` alone, so that modules may move in between and files of students change their format.

What a merge made is kept in the cache, under the hash of the commit's folder ``project``, so that a commit is run once
and an interrupted run goes on. Exit status: 0 where all bits are equal, 1 where any differ, 2 where a merge failed.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from unchanged_merges import DOMAINS, MERGES, Merge, draw_sources

from project.runtime import atomic_file, atomic_text

REPOSITORY = Path(__file__).resolve().parent.parent
PLACEHOLDER = Path("-")


def main() -> None:
    """Run what the cache lacks, print the table, and exit by whether the students are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="a commit")
    parser.add_argument("--after", default="HEAD", help="a commit, or '.' for the working tree as it is")
    parser.add_argument("--pairs", nargs="+", choices=["random", "demo"], default=["random", "demo"])
    parser.add_argument("--only", nargs="+", metavar="MERGE", help="these merges alone, by name or its beginning")
    parser.add_argument(
        "--sources", type=Path, help="the demo's sources, as in runs/demo/sources; default: trained once"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/unchanged"), help="folder of all that is kept")
    parser.add_argument("--all", action="store_true", help="show equal students one by one, too")
    arguments = parser.parse_args()
    merges = chosen(arguments.pairs, arguments.only)
    bench = Bench(arguments.cache.resolve(), arguments.sources and arguments.sources.resolve())
    before, after = (bench.students(revision, merges) for revision in (arguments.before, arguments.after))
    equal = True
    print(f"\n{'merge':16} {'method':28} {'budget':>6}  students")
    for merge in merges:
        rows = bench.compare(before[merge.name], after[merge.name])
        same = [student for student, words in rows.items() if words is None]
        equal &= len(same) == len(rows) > 0
        for student, words in rows.items():
            if words is not None or arguments.all:
                name, _, budget = student.rpartition("-")
                print(f"{merge.name:16} {name:28} {budget:>6}  {words or 'equal bits'}")
        print(f"{merge.name:16} {len(same)} of {len(rows)} students have equal bits")
    sys.exit(0 if equal else 1)


def chosen(pairs: Sequence[str], only: Sequence[str] | None) -> list[Merge]:
    """The merges of some pairs whose names begin as asked for."""
    found = [merge for merge in MERGES if merge.pair in pairs]
    found = [merge for merge in found if only is None or any(merge.name.startswith(start) for start in only)]
    if not found:
        sys.exit(f"--only is {' '.join(only or [])}; there are: {', '.join(merge.name for merge in MERGES)}.")
    return found


class Bench:
    """Runs merges in checkouts and keeps what they made.

    A file of one student is named by the hash of its content, so that students that never change are kept once.

    Args:
        cache: Folder of all that is kept: ``random`` and ``demo`` with sources and pictures, ``results`` with what a
            merge made, ``students``.
        demo: Folder of the demo's sources; None: below the cache, trained if they are missing.
    """

    def __init__(self, cache: Path, demo: Path | None) -> None:
        self.cache = cache
        self.trained = demo is None
        self.sources = {"random": cache / "random" / "sources", "demo": demo or cache / "demo" / "sources"}

    def students(self, revision: str, merges: Sequence[Merge]) -> dict[str, dict[str, str]]:
        """Merge -> student -> hash of its file; merges what the cache lacks.

        Args:
            revision: A commit, or ``.``.
            merges: Of which pairs.
        """
        tree = tree_of(revision)
        made: dict[str, dict[str, str]] = {}
        with checkout(tree) as folder:
            for merge in merges:
                self._prepare(merge, folder)
                index = self.cache / "results" / git("rev-parse", f"{tree}:project")[:16] / f"{self._key(merge)}.json"
                if not index.exists():
                    start = processor_seconds()
                    made[merge.name] = self._run(merge, folder)
                    atomic_text(json.dumps({"merge": merge.name, "students": made[merge.name]}, indent=2), index)
                    count, seconds = len(made[merge.name]), processor_seconds() - start
                    print(f"{revision}: {merge.name}: {count} students, {seconds:.0f} s of processor time", flush=True)
                made[merge.name] = json.loads(index.read_text())["students"]
        return made

    def compare(self, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
        """Student -> what differs in words; None where all bits are equal."""
        rows: dict[str, str | None] = {}
        for student in dict.fromkeys((*before, *after)):
            if student not in before or student not in after:
                rows[student] = f"made {'after' if student in after else 'before'} alone"
            elif before[student] == after[student]:
                rows[student] = None
            else:
                rows[student] = difference(*(load_file(self._file(side[student])) for side in (before, after)))
        return rows

    def _file(self, digest: str) -> Path:
        return self.cache / "students" / f"{digest}.safetensors"

    def _key(self, merge: Merge) -> str:
        """What a merge is known by in the cache: its configuration, the files of its sources, and the machine."""
        hashes = [hashlib.sha256((self.sources[merge.pair] / file).read_bytes()).hexdigest() for file in merge.files]
        machine = [platform.python_version(), str(torch.__version__), *platform.uname()[4:], processor()]
        content = [merge.config(PLACEHOLDER, PLACEHOLDER), hashes, machine]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _prepare(self, merge: Merge, folder: Path) -> None:
        """Draw or train the sources that are missing."""
        if merge.pair == "random":
            draw_sources(self.sources["random"])
            return
        for domain in DOMAINS:
            run = self.sources["demo"] / domain
            if not self.trained or (run / "finished").exists():
                continue
            print(f"training the demo's source {domain} into {run}", flush=True)
            options = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--overwrite", "true"]
            data = ["--data.init_args.sets.init_args.root", str(self.cache / "demo" / "data")]
            config = ["--config", f"configs/demo/fit_{domain}.yaml", "--run", str(run)]
            run_in(folder, "-m", "project", "fit", *config, *data, *options)
            (run / "finished").touch()

    def _run(self, merge: Merge, folder: Path) -> dict[str, str]:
        """Student -> hash of its file, which is kept."""
        with tempfile.TemporaryDirectory(prefix="unchanged-") as scratch:
            run, tensors = Path(scratch) / "run", Path(scratch) / "tensors"
            tensors.mkdir()
            config = {**merge.config(self.sources[merge.pair], self.cache / merge.pair / "data"), "run": str(run)}
            (Path(scratch) / "merge.yaml").write_text(json.dumps(config, indent=2))  # which is YAML, too
            run_in(folder, "-m", "project", "merge", "--config", str(Path(scratch) / "merge.yaml"))
            students = sorted(str(file) for file in (run / "students").iterdir() if file.suffix != ".json")
            child = str(Path(__file__).with_name("unchanged_tensors.py"))
            run_in(folder, child, str(folder), str(merge.image_size), str(tensors), *students)
            made = {}
            for file in sorted(tensors.iterdir()):
                content = file.read_bytes()
                made[file.stem] = hashlib.sha256(content).hexdigest()
                with atomic_file(self._file(made[file.stem])) as kept:
                    kept.write(content)
            return made


def difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """How far the tensors of two files are apart, in words; None where all bits are equal.

    Args:
        before: By name, ``logits`` among them.
        after: The same, perhaps.
    """
    if alone := sorted(before.keys() ^ after.keys()):
        return f"{len(alone)} tensors on one side alone, such as {alone[0]}"
    shaped = [name for name, tensor in before.items() if (tensor.shape, tensor.dtype) != _kind(after[name])]
    if shaped:
        name = shaped[0]
        shapes = " and ".join(f"{list(side[name].shape)} {side[name].dtype}" for side in (before, after))
        return f"{len(shaped)} tensors of another shape or type, such as {name}: {shapes}"
    unequal = [name for name, tensor in before.items() if tensor.numpy().tobytes() != after[name].numpy().tobytes()]
    if not unequal:
        return None
    gaps = {name: (before[name].double() - after[name].double()).abs().max().item() for name in unequal}
    relative = {
        name: gap / max(before[name].double().abs().max().item(), torch.finfo(torch.float32).tiny)
        for name, gap in gaps.items()
        if name != "logits"
    }
    worst = max(relative, key=lambda name: relative[name], default=None)
    weights = "weights equal" if worst is None else f"weights {relative[worst]:.1e} of their largest ({worst})"
    return f"{weights}, logits {gaps.get('logits', 0.0):.1e}, {len(unequal)} of {len(before)} tensors"


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def processor_seconds() -> float:
    """Processor time of all children that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def processor() -> str:
    """Which instructions torch takes, and the processor's name where Linux tells it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = {line for line in lines if line.startswith("model name")}
    return " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(names)])


def tree_of(revision: str) -> str:
    """Hash of a commit's tree, or of the working tree's files that git does not ignore, as they are now."""
    if revision != ".":
        return git("rev-parse", "--verify", f"{revision}^{{tree}}")
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}  # of our own: the user's stays as it is
        git("add", "--all", "project", "configs", environment=index)
        return git("write-tree", environment=index)


@contextmanager
def checkout(tree: str) -> Iterator[Path]:
    """A folder that holds ``project`` and ``configs`` of a tree, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="unchanged-") as scratch:
        command = ["git", "-C", str(REPOSITORY), "archive", tree, "project", "configs"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(scratch, filter="data")
        yield Path(scratch)


def git(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What a git command says of the repository."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(2)
    return done.stdout.strip()


def run_in(folder: Path, *arguments: str) -> None:
    """Run this interpreter in a checkout, with one thread and no accelerator.

    Args:
        folder: Whose ``project`` it imports.
        arguments: Of the interpreter.
    """
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **fixed, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-5000:])
        sys.stderr.write(f"\nexit status {done.returncode} of: {' '.join(arguments)}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
