"""Which layers lose what: a student up to some value, its own source from there on.

    python benchmarks/depth.py --real FOLDER --out benchmarks/results/depth.json

The student is merged by the command's defaults. At every value that carries a residual stream, what it computes is
handed to the source that owns a picture's domain, unit by unit as the unit map has it, and the source finishes. Where
the accuracy falls from one value to the next, the layers between them lose it; where it rises, they put right what
earlier ones got wrong. Scored on training pictures that took no part in calibration, so that nothing is learnt from
the test lists.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from fits import held_out
from merge_quality import machine, real_arguments, unpacked
from torch import Tensor, fx, nn

from project.cli import MergeCLI
from project.cli import main as pleas
from project.data import DomainDataModule
from project.data.sets import DomainNet
from project.moments import ForwardPass
from project.runtime import atomic_text
from project.student import Student
from project.student.graph import student_graph
from project.symmetry import graph_of


def main() -> None:
    """Score every handover and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder of the real pair")
    parser.add_argument("--seed", type=int, default=0, help="draw of the calibration pictures")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth.json"))
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = held_out(unpacked(arguments.real, Path(scratch)), Path(scratch) / "held", arguments.seed)
        done: MergeCLI = pleas(
            [
                "merge", *real_arguments(arguments.real, data, arguments.seed), "--run", str(Path(scratch) / "run"),
                "--data.init_args.validation_fraction", "0",
                "--model.init_args.budgets", json.dumps([arguments.budget]),
                "--model.init_args.methods", json.dumps([{"class_path": "project.methods.PLeaS"}]),
            ]
        )  # fmt: skip
        student, problem = done.model.merged[0].student, done.model.engine.problem
        for domain, index in problem.owners.items():
            network = problem.sources[index]
            module = DomainDataModule(DomainNet(data), domains=[domain], image_size=student.preprocessing.image_size)
            for pictures, labels in module.test_dataloader()[0]:
                for value, right in handovers(student, network, index, pictures, labels).items():
                    found.setdefault(value, {}).setdefault(domain, 0.0)
                    found[value][domain] += 100 * right / len(module.samples(domain, "test"))
    atomic_text(json.dumps({"machine": machine(), "accuracy": found}, indent=2), arguments.out)
    for value, scores in found.items():
        print(f"{value:24}", "  ".join(f"{domain} {score:.1f}" for domain, score in scores.items()))


@torch.no_grad()
def handovers(student: Student, source: nn.Module, index: int, pictures: Tensor, labels: Tensor) -> dict[str, int]:
    """Right answers of the source after each value it takes over from the student."""
    mine, theirs = student_graph(student.network), graph_of(source)
    found = {}
    for node in streams(student, mine):
        group = next(group for group in student.spec.groups.values() if node.name in group.nodes)
        rows = student.maps[group.name].present[:, index].nonzero()[:, 0]
        units = student.maps[group.name].members[rows, index]
        ahead, behind, handed = ForwardPass(mine, pictures), ForwardPass(theirs, pictures), False
        for step in mine.graph.nodes:
            twin = behind.nodes[step.name]
            if step.op == "output":
                found[node.name] = int(behind.env[twin.args[0]].argmax(1).eq(labels).sum())
                break
            behind.step(twin)
            if not handed:
                ahead.step(step)
            if step is node:
                taken = torch.empty_like(behind.env[twin])
                taken[:, units] = ahead.env[step][:, rows]
                behind.env[twin], handed = taken, True
    return found


def streams(student: Student, graph: fx.GraphModule) -> list[fx.Node]:
    """The last value of every residual block: what a sum is turned into; and what the head reads."""
    nodes = list(graph.graph.nodes)
    after = [user for node in nodes if "add" in node.name for user in node.users]
    head = next(node for node in nodes if node.name == student.spec.layers[-1].node)
    return [node for node in nodes if node in after and node.op != "output"] + [head.args[0]]


if __name__ == "__main__":
    main()
