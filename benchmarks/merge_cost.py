"""What merging costs, part by part, as ratios within one run; random weights, random pictures.

    python benchmarks/merge_cost.py --out benchmarks/results/merge_cost.json
    python benchmarks/merge_cost.py --only moments --architecture resnet50 --image-size 224 --pictures 6400

Every row has its ratio and what the ratio is of; gathering and budgets also what bounds them: the multiply-adds and the
bytes of every operation, counted in a run of its own, over the rates of one large product and of one large copy on this
machine. The larger of the two is the time that this machine needs for the same operations at those rates. Beside them
stands the way of the released code (arXiv 2407.02447): unit matching on 100 batches of 16, then 400 Adam steps through
all layers for every budget. Its steps cost the same each, so some are timed and the rest is counted.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from merge_quality import machine
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from project.alignment import UnitMap
from project.allocation import Budget
from project.fit import View
from project.fit.grouped import BlockSolver
from project.fit.solver import LayerSolver
from project.methods import Evidence, PLeaS, Problem, Run
from project.models import Architecture, LabelSpace
from project.moments import LAYERS, UNITS, Collector, Lockstep, Statistics
from project.runtime import atomic_text
from project.student import Student, start_student
from project.symmetry import trace

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MATCHING, STEPS, BATCH = 100, 400, 16  # the released code's


def main() -> None:
    """Measure what the arguments ask for and write one JSON file, anew after every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--width", type=int, default=1, help="factor on the channels of networks for small pictures")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=1024, help="over all sources")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 1.2, 1.5, 1.8, 2.0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="repetitions whose median counts")
    parser.add_argument("--plain-steps", type=int, default=8, help="steps of the plain way that are timed")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a machine in use")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/merge_cost.json"))
    arguments = parser.parse_args()
    bench = Bench(arguments)
    found: dict[str, Any] = {"machine": machine(), "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    del found["arguments"]["out"]  # of this machine alone
    found["multiply-adds a second"] = {str(kind): rate for kind, rate in bench.rates.items()}
    found["bytes a second"] = bench.copy_rate
    found["table"] = []
    for name in arguments.only:
        for row in PARTS[name](bench):
            found["table"].append(row)
            print(
                *(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


class Bench:
    """Sources, pictures and a clock.

    Args:
        arguments: From the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.clock = arguments, CLOCKS[arguments.clock]
        self._gathering: dict[tuple[str, ...], float] = {}
        self.device = torch.device(arguments.device)
        torch.manual_seed(0)
        shape = (3, arguments.image_size, arguments.image_size)
        network = Architecture(arguments.architecture, 7, width=arguments.width)
        self.sources = [network.build().eval() for _ in range(arguments.sources)]
        for source in self.sources:
            self._settle(source.to(self.device), shape)
        each = arguments.pictures // arguments.sources
        self.pictures = {
            f"domain{index}": list(torch.randn(each, *shape, device=self.device).split(arguments.batch))
            for index in range(arguments.sources)
        }
        self.problem = Problem(
            sources=tuple(self.sources),
            owners={domain: index for index, domain in enumerate(self.pictures)},
            spec=trace(self.sources[0], shape),
            labels=LabelSpace({domain: tuple("abcdefg") for domain in self.pictures}, "shared"),
        )

    def seconds(self, work: Callable[[], object]) -> float:
        """Median time of some work, after one run to warm up."""
        found = []
        for turn in range(self.arguments.rounds + 1):
            start = self.now()
            work()
            if turn:
                found.append(self.now() - start)
        return median(found)

    def now(self) -> float:
        """The clock, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    @cached_property
    def rates(self) -> dict[torch.dtype, float]:
        """Multiply-adds a second in one product of 2,048 × 2,048 matrices."""
        found = {}
        for kind in (torch.float32, torch.float64):
            left, right = (torch.randn(2048, 2048, dtype=kind, device=self.device) for _ in range(2))
            found[kind] = 2048**3 / self.seconds(partial(torch.matmul, left, right))
        return found

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second, read and written, in one copy of 256 MiB."""
        values = torch.randn(2**26, device=self.device)
        target = torch.empty_like(values)
        return 2 * values.nbytes / self.seconds(lambda: target.copy_(values))

    def bound(self, work: Callable[[], object], beyond: "Counted | None" = None) -> tuple[dict[str, float], "Counted"]:
        """What some work does beyond other work, with the seconds at this machine's rates; and what was counted."""
        with Counted() as counted:
            work()
        return self.bounded(counted, beyond), counted

    def bounded(self, counted: "Counted", beyond: "Counted | None" = None) -> dict[str, float]:
        """What was counted beyond something else, with the seconds at this machine's rates."""
        less, moved = (beyond.products, beyond.bytes) if beyond else ({}, 0)
        products = {kind: counted.products[kind] - less.get(kind, 0.0) for kind in self.rates}
        seconds = sum(count / self.rates[kind] for kind, count in products.items())
        traffic = counted.bytes - moved
        counts = {f"G multiply-adds {kind}": 1e-9 * count for kind, count in products.items()}
        return {**counts, "GB": 1e-9 * traffic, "bound": max(seconds, traffic / self.copy_rate)}

    def gather(self, needs: Sequence[str]) -> Statistics:
        """One pass over the pictures."""
        collector = Collector(
            self.problem.spec, Lockstep(self.sources), needs, tuple(self.pictures), self.problem.owners
        )
        for domain, batches in self.pictures.items():
            for batch in batches:
                collector.gather(domain, batch)
        found = collector.statistics
        for moment in found.moments():
            assert moment.totals  # with what was waiting
        return found

    def gathering(self, *needs: str) -> float:
        """Median time of a pass that gathers some kinds of statistics."""
        if needs not in self._gathering:
            self._gathering[needs] = self.seconds(partial(self.gather, needs))
        return self._gathering[needs]

    def merge(self, **settings: Any) -> tuple[Callable[[Sequence[float]], object], float]:
        """A merge by PLeaS to some budgets, behind a pass over the pictures, and the time of that pass."""
        method = PLeaS(**settings)
        needs = sorted(method.needs & {LAYERS, UNITS})
        evidence = Evidence(self.gather(needs), self.pictures)
        return (
            lambda budgets: list(method.merge(self.problem, evidence, Run(), list(map(Budget, budgets)))),
            self.gathering(*needs),
        )

    @cached_property
    def forward_seconds(self) -> float:
        """Median time of the sources' own forwards."""
        return self.seconds(self.forwards)

    @torch.no_grad()
    def forwards(self) -> None:
        """Every source on every picture."""
        for batches in self.pictures.values():
            for batch in batches:
                for source in self.sources:
                    source(batch)

    @torch.no_grad()
    def _settle(self, source: nn.Module, shape: tuple[int, int, int]) -> None:
        """Give a random network's batch norms the statistics of random pictures, so that its values stay in range."""
        source.train()
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        source(torch.randn(16, *shape, device=self.device))
        source.eval()


class Counted(TorchDispatchMode):
    """Counts multiply-adds by precision, and the bytes of all that operations read and write, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[torch.dtype, float] = defaultdict(float)
        self.bytes = 0

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose operations are counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        written = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        name = func.overloadpacket.__name__
        if func.is_view or not written or "empty" in name:
            return out
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        overwritten = name in ("copy_", "zero_", "fill_") or name.startswith("new_")  # or asked for its kind alone
        self.bytes += sum(map(held, written)) + sum(map(held, read[overwritten:]))
        packet = getattr(torch.ops.aten, name.rstrip("_"), func.overloadpacket)  # in place or not
        if packet in flop_registry:
            count = flop_registry[packet](*args, **(kwargs or {}), out_val=out) / 2
        elif packet is torch.ops.aten.linalg_cholesky_ex:
            count = written[0].shape[-1] * written[0].numel() / 6
        elif packet is torch.ops.aten.linalg_solve_triangular:
            count = read[1].numel() * read[0].shape[-1] / 2
        else:
            return out
        self.products[written[0].dtype] += count
        return out


def held(tensor: Tensor) -> int:
    """Bytes in memory, an expanded tensor's once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def moments(bench: Bench) -> Iterator[dict[str, Any]]:
    """Gathering every layer's joint moment beyond the sources' own forwards on the same pictures, over those."""
    forwards, (_, least) = bench.forward_seconds, bench.bound(bench.forwards)
    for needs in ((UNITS,), (LAYERS,), (LAYERS, UNITS)):
        taken, (bound, _) = bench.gathering(*needs), bench.bound(partial(bench.gather, needs), least)
        row = {"part": f"moments of {' and '.join(needs)}", "seconds": taken - forwards}
        yield {**row, "over": f"the sources' forwards, {forwards:.1f} s", "ratio": taken / forwards - 1, **bound}


def budgets(bench: Bench) -> Iterator[dict[str, Any]]:
    """Both fits at several budgets: the first with all it needs, a further one, and the solves among it.

    Those of all sources side by side cost next to nothing, since nothing is
    merged: they count for "all of it" alone.
    """
    asked, turns = bench.arguments.budgets, bench.arguments.rounds
    between = sum(1 for budget in asked[1:] if budget < len(bench.sources))
    taken: dict[str, tuple[float, float]] = {}
    for name in ("joint", "sequential"):
        merge, gathered = bench.merge(fit=name)
        one = bench.seconds(partial(merge, asked[:1]))
        first = one + gathered
        sweeps = []
        for _ in range(turns):
            with stopwatch(bench) as watch:
                start = bench.now()
                merge(asked)
                sweeps.append((bench.now() - start + gathered, sum(watch)))
        every, solves = map(median, zip(*sweeps, strict=True))
        taken[name] = first, every
        bound, single = bench.bound(partial(merge, asked[:1]))
        row = {"part": f"{name}: first budget, gathered", "seconds": one, "over": "gathering", "ratio": one / gathered}
        yield row | bound
        if between:
            further = (every - first) / between
            row = {
                "part": f"{name}: a further budget",
                "seconds": further,
                "over": "the first",
                "ratio": further / first,
            }
            yield row | bench.bound(partial(merge, asked[:2]), single)[0]
        counted = Counted()
        with around_solves(counted.counting):
            merge(asked)
        row = {"part": f"{name}: solves", "seconds": solves, "over": "all of it", "ratio": solves / every}
        yield row | bench.bounded(counted)
    seconds = taken["sequential"][0]
    yield {"part": "sequential", "seconds": seconds, "over": "joint, one budget", "ratio": seconds / taken["joint"][0]}
    plain = plain_way(bench)
    for name, (first, every) in taken.items():
        for count, ours in ((1, first), (len(asked), every)):
            whole = plain["matching"] + plain["steps"] * count
            part = f"plain way, {count} budget{'s' * (count > 1)}"
            yield {"part": part, "seconds": whole, "over": f"ours, {name}", "ratio": whole / ours}


@contextmanager
def stopwatch(bench: Bench) -> Iterator[list[float]]:
    """Seconds of every factorisation and solve, and of what brings the sources' weights through the moments."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = bench.now()
            result = function(*args, **kwargs)
            seconds.append(bench.now() - start)
            return result

        return run

    with around_solves(timed):
        yield seconds


@contextmanager
def around_solves(wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap every factorisation and solve, and what brings the sources' weights through the moments."""
    with ExitStack() as patches:
        solvers = ((one, name) for one in (LayerSolver, BlockSolver) for name in ("__init__", "solve"))
        for owner, name in (*solvers, (View, "crossed")):
            patches.enter_context(patch.object(owner, name, wrapped(getattr(owner, name))))
        yield


def plain_way(bench: Bench) -> dict[str, float]:
    """Seconds of the released code's matching and steps, written plainly."""
    pictures = torch.cat([batch for batches in bench.pictures.values() for batch in batches])
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> Iterator[Tensor]:
        for _ in range(count):
            yield pictures[torch.randint(len(pictures), (BATCH,), generator=draw)]

    timed = bench.arguments.plain_steps
    seconds = {}
    collector = Collector(bench.problem.spec, Lockstep(bench.sources), [UNITS], ("all",), {})
    start = bench.now()
    for batch in some(timed):
        collector.gather("all", batch)
    seconds["matching"] = (bench.now() - start) / timed * MATCHING
    steps = adam_steps(bench.sources, start_at(bench), some(timed + 1))
    next(steps)
    start = bench.now()
    for _ in steps:
        pass
    seconds["steps"] = (bench.now() - start) / timed * STEPS
    return seconds


def start_at(bench: Bench) -> Student:
    """A full merge with units in any order: what a step costs does not depend on it."""
    spec, count = bench.problem.spec, len(bench.sources)
    maps = {group.name: UnitMap.identity(group.size, count) for group in spec.groups.values()}
    return start_student(bench.sources, spec, maps, bench.problem.labels)


def adam_steps(sources: Sequence[nn.Module], student: Student, batches: Iterable[Tensor]) -> Iterator[float]:
    """Every layer on the mean of the sources' inputs, towards the mean of their outputs; yields each step's loss.

    Args:
        sources: Their units in the student's order.
        student: Of one source's size; changed in place.
        batches: Pictures, one batch a step.
    """
    layers = [student.network.get_submodule(layer.name) for layer in student.spec.layers]
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    hooks = [
        source.get_submodule(layer.name).register_forward_hook(
            lambda _, inputs, output, index=index: seen[index].append((inputs[0], output))
        )
        for source in sources
        for index, layer in enumerate(student.spec.layers)
    ]
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=5e-4)
    try:
        for batch in batches:
            with torch.no_grad():
                for source in sources:
                    source(batch)
            optimizer.zero_grad()
            loss = batch.new_zeros(())
            for layer, pairs in zip(layers, seen, strict=True):
                inputs, outputs = (torch.stack(values).mean(0) for values in zip(*pairs, strict=True))
                loss = loss + (layer(inputs) - outputs).square().mean()
                pairs.clear()
            loss.backward()
            optimizer.step()
            yield float(loss.detach())
    finally:
        for hook in hooks:
            hook.remove()


def excess(bench: Bench) -> Iterator[dict[str, Any]]:
    """The sequential fit on as few samples as some excess allows, over the fit on all of them.

    Pictures are smooth, as photographs are: noise of an eighth of their size, enlarged.
    """
    size, whole = bench.arguments.image_size, 0.0
    smooth = {
        domain: [F.interpolate(one[:, :, : size // 8, : size // 8], (size, size), mode="bicubic") for one in batches]
        for domain, batches in bench.pictures.items()
    }
    evidence = Evidence(pictures=smooth)
    for allowed in (None, 0.005, 0.02):
        method = PLeaS("weights", excess=allowed)
        fits: list[dict[str, dict[str, float]]] = []

        def work(method: PLeaS = method, fits: list[dict[str, dict[str, float]]] = fits) -> None:
            fits.append(next(iter(method.merge(bench.problem, evidence, Run(), [Budget(1.0)]))).layers)

        seconds = bench.seconds(work)
        whole = whole or seconds
        yield {
            "part": f"sequential, excess {allowed}",
            "seconds": seconds,
            "over": "sequential, all samples",
            "ratio": seconds / whole,
            "pictures, positions": {
                name: f"{fit['pictures']:.3g}, {fit['positions']:.3g}"
                for name, fit in fits[-1].items()
                if fit["pictures"] * fit["positions"] < 1
            },
        }


PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "moments": moments,
    "budgets": budgets,
    "excess": excess,
}

if __name__ == "__main__":
    main()
