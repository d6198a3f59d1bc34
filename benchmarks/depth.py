"""Which layers lose what: a student up to some value, its own source from there on.

    python benchmarks/depth.py STUDENT.ckpt --real FOLDER --out benchmarks/results/depth.json

At every value that carries a residual stream, what the student computes is handed to the source that owns a picture's
domain, unit by unit as the unit map has it, and the source finishes. Where the accuracy falls from one value to the
next, the layers between them lose it; where it rises, they put right what earlier ones got wrong. Scored on training
pictures that took no part in calibration, if the student was made with ``benchmarks/fits.py``'s held-out lists of the
same seed, so that nothing is learnt from the test lists.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from fits import held_out, sources
from merge_quality import machine, unpacked
from torch import Tensor, fx, nn

from project.data import DomainDataModule, DomainNet
from project.models import atomic_text
from project.moments import Run
from project.student import Student, load_source, load_student
from project.student.surroundings import student_graph
from project.symmetry import graph_of


def main() -> None:
    """Score every handover and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--real", type=Path, required=True, help="folder of the real pair")
    parser.add_argument("--seed", type=int, default=0, help="draw of the calibration pictures it was made with")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth.json"))
    arguments = parser.parse_args()
    student = load_student(arguments.student)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = held_out(unpacked(arguments.real, Path(scratch)), Path(scratch) / "held", arguments.seed)
        for index, source in enumerate(sources(arguments.real)):
            (domain,) = source["domains"]
            network = load_source(source["path"]).network
            module = DomainDataModule(DomainNet(data), [domain], image_size=student.preprocessing.image_size)  # type: ignore[union-attr]
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
        ahead, behind, handed = Run(mine, pictures), Run(theirs, pictures), False
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
