"""What fusions of federated clients make of honest clients, and of two in six that lie.

    python benchmarks/fusions.py --out benchmarks/results/fusions.json

Every cell trains ``configs/scopes/fit_robust.yaml`` through ``pleas`` with another fusion and another lie, and tests
the server after its last round; draws are of clients, weights and orders alike.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from merge_quality import CONFIGS, machine

from project.cli import main as pleas
from project.runtime import atomic_text

FUSIONS: dict[str, dict[str, Any]] = {
    "WeightedMean": {},
    "TrimmedMean": {"share": 0.34},
    "Median": {},
    "SearchedMean": {"evaluations": 32},
    "ActorCriticFusion": {"evaluations": 26},  # and each of six clients alone
}
LIARS = ("clipart-0", "clipart-1")


def main() -> None:
    """Train and test, and write one JSON file, anew after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fusions", nargs="+", choices=list(FUSIONS), default=list(FUSIONS))
    parser.add_argument("--attacks", nargs="+", default=["none", "sign_flip", "scale"])
    parser.add_argument("--seeds", type=int, default=2, help="draws")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--architecture", default="resnet20")
    parser.add_argument("--data", default="runs/demo/data", help="where Shapes lies, or is drawn")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fusions.json"))
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "arguments": {k: str(v) for k, v in vars(given).items()}}
    del found["arguments"]["out"], found["arguments"]["data"]  # of this machine alone
    found["table"] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for attack in given.attacks:
            for fusion in given.fusions:
                scores = [tested(fusion, attack, seed, given, Path(scratch)) for seed in range(given.seeds)]
                spread = stdev(scores) if len(scores) > 1 else None
                found["table"].append({"attack": attack, "fusion": fusion, "accuracy": mean(scores), "±": spread})
                print(found["table"][-1], flush=True)
                atomic_text(json.dumps(found, indent=2), given.out)
    print(f"wrote {given.out}")


def tested(fusion: str, attack: str, seed: int, given: argparse.Namespace, scratch: Path) -> float:
    """Top-1 of the server after its last round, in percent."""
    made = {"class_path": f"project.modules.fusion.{fusion}", "init_args": FUSIONS[fusion]}
    attacks = {} if attack == "none" else dict.fromkeys(LIARS, attack)
    trained = pleas([
        "fit", "--config", str(CONFIGS / "scopes" / "fit_robust.yaml"), "--seed_everything", str(seed + 1),
        "--run", str(scratch / f"{fusion}-{attack}-{seed}"), "--trainer.max_epochs", str(given.rounds),
        "--trainer.enable_progress_bar", "false", "--model.init_args.fusion", json.dumps(made),
        "--model.init_args.attacks", json.dumps(attacks), "--model.init_args.architecture", given.architecture,
        "--data.init_args.seed", str(seed), "--data.init_args.sets.init_args.root", given.data,
    ])  # fmt: skip
    assert trained is not None
    (scores,) = trained.trainer.test(trained.model, datamodule=trained.datamodule, verbose=False)[:1]
    return 100 * float(scores["test/accuracy"])


if __name__ == "__main__":
    main()
