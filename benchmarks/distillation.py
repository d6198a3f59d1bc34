"""Why not simply distil? The closed form against end-to-end distillation from the same start, on the same pictures.

    python benchmarks/distillation.py --real FOLDER --out benchmarks/results/distillation.json

Every student has one source's size, and none sees a label. Distillation starts where the closed form starts (units
permuted and averaged, batch norm re-estimated) and runs for as many seconds as the closed form took in this run, and
for multiples of that. It also goes on from the closed form, in the same way and as ``pleas fit`` refines: in small
steps, the batch norms at rest. The released code of PLeaS, 400 Adam steps of each layer alone, is here too. A row that
is written stays if the rest is interrupted; FOLDER: see merge_quality.py.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from merge_cost import BATCH as BATCH_OF_ALL
from merge_cost import STEPS, adam_steps
from merge_quality import CONFIGS, machine, real_arguments, unpacked
from torch import Tensor

from project.cli import MergeCLI
from project.cli import main as pleas
from project.data import DomainDataModule
from project.fit import Distillation
from project.modules.refine import warmup_cosine
from project.report.results import text_table
from project.runtime import atomic_text
from project.student import Student, batch_norms, reestimate
from project.symmetry import permute_state

BATCH = 32  # pictures of each domain
FRESH, REFINED = 1e-3, 3e-5  # learning rates from the permuted average and from the closed form


def main() -> None:
    """Run what the arguments ask for; one JSON file, written anew after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair")
    parser.add_argument("--shapes", action="store_true", help="the sources of 'make demo' too")
    parser.add_argument("--seed", type=int, default=0, help="draw of the real pair's calibration pictures")
    parser.add_argument("--times", type=float, nargs="+", default=[1, 10], help="seconds over those of the closed form")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/distillation.json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = {}
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            pairs["real"] = real_arguments(arguments.real, data, arguments.seed)
        if arguments.shapes:
            pairs["shapes"] = ["--config", str(CONFIGS / "demo" / "merge.yaml")]
        for name, pair in pairs.items():
            found[name] = []
            for row in rows(pair, Path(scratch, name), arguments.times, arguments.seed):
                found[name].append(row)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                atomic_text(json.dumps(found, indent=2), arguments.out)
            print(text_table(found[name]))
    print(f"wrote {arguments.out}")


def rows(pair: Sequence[str], scratch: Path, times: Sequence[float], seed: int) -> Iterator[dict[str, Any]]:
    """One row a student, as soon as it is scored."""
    start, aligned = merged(pair, scratch / "start", "Permutation")
    fit, seconds = merged(pair, scratch / "fit", "PLeaS")
    seconds -= aligned  # both have aligned the units
    yield row("start: permuted average", start, start.model.merged[0].student, 0.0, 0)
    yield row("closed form", fit, fit.model.merged[0].student, seconds, 0)
    student = copy.deepcopy(start.model.merged[0].student)
    yield row("each layer alone, 400 Adam steps", start, student, layer_by_layer(student, start, seed), STEPS)
    for name, done, before in (
        ("distillation from the start", start, 0.0),
        ("closed form, then distillation", fit, seconds),
    ):
        for factor in times:
            student = copy.deepcopy(done.model.merged[0].student)
            steps = distil(student, done, factor * seconds, seed, fresh=True)
            yield row(f"{name}, {factor:g}×", done, student, before + factor * seconds, steps)
    student = copy.deepcopy(fit.model.merged[0].student)
    steps = distil(student, fit, seconds, seed, fresh=False)
    yield row("closed form, then refined, 1×", fit, student, 2 * seconds, steps)


def merged(pair: Sequence[str], run: Path, method: str) -> tuple[Any, float]:
    """Merge by one method at one source's size; the command, with all it made, and the seconds of its fit."""
    done: MergeCLI = pleas(
        [
            "merge", *pair, "--run", str(run),
            "--model.init_args.budgets", "[1.0]",
            "--model.init_args.methods", json.dumps([{"class_path": f"project.methods.{method}"}]),
        ]
    )  # fmt: skip
    phases = json.loads((run / "results.json").read_text())["phases"]
    return done, sum(phase["seconds"] for phase in phases if phase["phase"] == "fit")


def distil(student: Student, done: Any, seconds: float, seed: int, *, fresh: bool) -> int:
    """Train a student end to end on the merge's calibration pictures for some seconds; the number of steps it took.

    A fresh student is trained as usual: batch norm takes the statistics of its batches and is re-estimated at the end.
    A fitted one keeps its statistics, which was better on held-out training pictures.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = calibration(done.datamodule, device)
    sources = [source.to(device) for source in done.model.engine.problem.sources]
    distillation = Distillation(student.to(device), sources, done.model.engine.problem.owners)
    for norm in batch_norms(student.network).values():
        norm.train(fresh)
    lr = FRESH if fresh else REFINED
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    batches, steps = shuffled(pictures), 0
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        optimizer.param_groups[0]["lr"] = lr * warmup_cosine(spent / seconds, 0.1)
        optimizer.zero_grad()
        distillation(next(batches)).total.backward()
        optimizer.step()
        steps += 1
    if fresh:
        mixed = torch.cat(list(pictures.values()))
        reestimate(student.network, mixed[torch.randperm(len(mixed))].split(128))
    return steps


def layer_by_layer(student: Student, done: Any, seed: int) -> float:
    """Train every layer alone on the mean of the sources' inputs and outputs, as PLeaS' released code does; seconds."""
    device = next(student.parameters()).device
    sources, draw = [], torch.Generator().manual_seed(seed)
    for index, source in enumerate(done.model.engine.problem.sources):
        aligned = copy.deepcopy(source).to(device)
        orders = {group.name: student.maps[group.name].members[:, index] for group in student.spec.free}
        aligned.load_state_dict(permute_state(aligned.state_dict(), student.spec, orders))
        sources.append(aligned)
    pictures = torch.cat(list(calibration(done.datamodule, device).values()))
    batches = (pictures[torch.randint(len(pictures), (BATCH_OF_ALL,), generator=draw)] for _ in range(STEPS))
    begin = time.perf_counter()
    for _ in adam_steps(sources, student, batches):
        pass
    spent = time.perf_counter() - begin
    reestimate(student.network, pictures[torch.randperm(len(pictures), generator=draw)].split(128))
    return spent


def calibration(data: DomainDataModule, device: torch.device) -> dict[str, Tensor]:
    """Domain -> its calibration pictures."""
    batches = [batch for batch in data.calibration_dataloader()]
    return {
        name: torch.cat([batch[name] for batch in batches if batch[name] is not None]).to(device)
        for name in data.domain_names
    }


def shuffled(pictures: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Batches of all domains without end, in a new order every epoch, pictures mirrored by lot."""
    while True:
        orders = {name: torch.randperm(len(x)).split(BATCH) for name, x in pictures.items()}
        for parts in zip(*orders.values(), strict=False):
            chosen = {name: x[part.to(x.device)] for (name, x), part in zip(pictures.items(), parts, strict=True)}
            yield {name: torch.where(coins(x) < 0.5, x.flip(3), x) for name, x in chosen.items()}


def coins(pictures: Tensor) -> Tensor:
    """A random number for each picture."""
    return torch.rand(len(pictures), 1, 1, 1).to(pictures.device)


@torch.no_grad()
def row(name: str, done: Any, student: Student, seconds: float, steps: int) -> dict[str, Any]:
    """Test accuracy of a student in per cent, and what it cost after the units had been aligned."""
    student.eval()
    device, accuracy = next(student.parameters()).device, {}
    data: DomainDataModule = done.datamodule
    for domain, loader in zip(data.domain_names, data.test_dataloader(), strict=True):
        columns = student.labels.columns(domain)
        right = [student(x.to(device))[:, columns].argmax(1).cpu() == y for x, y in loader]
        accuracy[domain] = round(100 * float(torch.cat(right).float().mean()), 1)
    mean = round(sum(accuracy.values()) / len(accuracy), 1)
    return {"network": name, "seconds": round(seconds, 1), "steps": steps, **accuracy, "mean": mean}


if __name__ == "__main__":
    main()
