"""What weight scope alignment (WSA) does: barriers between networks, and federated rounds.

    python benchmarks/scopes.py --out benchmarks/results/scopes.json

For every strength two ResNet-20 are trained on one domain of Shapes by ``configs/scopes/fit.yaml``, with unlike seeds,
from one start and from two, pulled towards the scopes of one untrained network; strength 0 trains without. Then
``configs/scopes/merge.yaml`` walks from one to the other. Rounds are those of ``configs/scopes/fit_federated.yaml``,
where the target follows the clients. Everything goes through ``pleas``; accuracies are on the test pictures.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from merge_quality import CONFIGS, machine

from project.cli import main as pleas
from project.models import Architecture
from project.runtime import atomic_text


def main() -> None:
    """Train and walk, and write one JSON file, anew after every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.1, 1.0, 10.0])
    parser.add_argument("--seeds", type=int, default=2, help="pairs of networks, and draws of the clients")
    parser.add_argument("--data", default="runs/demo/data", help="where Shapes lies, or is drawn")
    parser.add_argument("--only", nargs="+", choices=("connectivity", "rounds"), default=["connectivity", "rounds"])
    parser.add_argument("--epochs", type=int, help="of every training, or rounds; default: those of the configs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scopes.json"))
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "arguments": {k: str(v) for k, v in vars(given).items()}}
    del found["arguments"]["out"], found["arguments"]["data"]  # of this machine alone
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        for name in given.only:
            found[name] = []
            for strength in given.strengths:
                for row in {"connectivity": connectivity, "rounds": rounds}[name](strength, given, runs):
                    found[name].append(row)
                    print(row)
                    atomic_text(json.dumps(found, indent=2), given.out)
    print(f"wrote {given.out}")


def connectivity(strength: float, given: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """The mean barrier, and its standard deviation, between networks of one start and of two."""
    rows = []
    for starts in ("one start", "two starts"):
        found = [walked(strength, starts, 10 * number, given, runs) for number in range(given.seeds)]
        barriers = {name: [one[name]["barrier"]["mean"] for one in found] for name in found[0]}
        ends = [value for one in found for place in (0, -1) for value in [first(one)["accuracy"]["mean"][place]]]
        row = {"strength": strength, "starts": starts, "accuracy of the ends": mean(ends)}
        for name, values in barriers.items():
            row[f"barrier, {name.split(':')[0]}"] = mean(values)
            row[f"± {name.split(':')[0]}"] = stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def first(paths: dict[str, Any]) -> Any:
    """The first path."""
    return next(iter(paths.values()))


def walked(strength: float, starts: str, seed: int, given: argparse.Namespace, runs: Path) -> Any:
    """Train two networks and walk from one to the other."""
    files = []
    for number in (1, 2):
        start = untrained(runs, seed + (number if starts == "two starts" else 1))
        files.append(trained(strength, start, seed + number, given, runs))
    sources = [{"path": str(file), "name": name} for file, name in zip(files, ("first", "second"), strict=True)]
    pleas([
        "merge", "--config", str(CONFIGS / "scopes" / "merge.yaml"), "--run", str(runs / "connect"),
        "--model.init_args.sources", json.dumps(sources), "--overwrite", "true", *data(given),
    ])  # fmt: skip
    return json.loads((runs / "connect" / "results.json").read_text())["connectivity"]


def trained(strength: float, start: Path, seed: int, given: argparse.Namespace, runs: Path) -> Path:
    """A network's file."""
    run = runs / f"fit-{strength}-{start.stem}-{seed}"
    scope = {"strength": strength, "target": [str(untrained(runs, 99))]} if strength else None
    file = run / "checkpoints" / "last.ckpt"
    if not file.exists():  # the first of two starts is the one start
        common = ["--config", str(CONFIGS / "scopes" / "fit.yaml"), "--model.init_args.base", str(start), *data(given)]
        common += ["--model.init_args.scope", json.dumps(scope), "--seed_everything", str(seed), *epochs(given)]
        pleas(["fit", *common, "--run", str(run)])
    return file


def untrained(runs: Path, seed: int) -> Path:
    """The file of a network as it is before any training."""
    path = runs / f"start{seed}.pth"
    if not path.exists():
        torch.manual_seed(seed)
        torch.save(Architecture("resnet20", 12).build().state_dict(), path)
    return path


def rounds(strength: float, given: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """Accuracy of the server after its last round, mean over draws of the clients."""
    scope = {"strength": strength} if strength else None
    found = []
    for seed in range(given.seeds):
        run = runs / f"rounds-{strength}-{seed}"
        common = ["--config", str(CONFIGS / "scopes" / "fit_federated.yaml"), *data(given)]
        common += ["--data.init_args.seed", str(seed), "--model.init_args.scope", json.dumps(scope)]
        trained_by = pleas(["fit", *common, "--run", str(run), "--seed_everything", str(seed + 1), *epochs(given)])
        assert trained_by is not None
        gap = float(trained_by.trainer.callback_metrics["round/scope gap"])
        (scores,) = trained_by.trainer.test(trained_by.model, datamodule=trained_by.datamodule, verbose=False)[:1]
        found.append((100 * scores["test/accuracy"], gap))
    accuracies, gaps = zip(*found, strict=True)
    spread = stdev(accuracies) if len(accuracies) > 1 else None
    return [{"strength": strength, "accuracy": mean(accuracies), "±": spread, "scope gap": mean(gaps)}]


def epochs(given: argparse.Namespace) -> list[str]:
    """How long to train."""
    return [] if given.epochs is None else ["--trainer.max_epochs", str(given.epochs)]


def data(given: argparse.Namespace) -> list[str]:
    """Where Shapes lies."""
    return ["--data.init_args.sets.init_args.root", given.data, "--trainer.enable_progress_bar", "false"]


if __name__ == "__main__":
    main()
