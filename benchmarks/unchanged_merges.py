"""What ``unchanged.py`` merges: the configurations of both pairs, and the random sources."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from project.models import Architecture

DOMAINS = ("clipart", "sketch")
CLASSES = 12  # of Shapes
TRAINER = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_model_summary": False, "enable_progress_bar": False,
}  # fmt: skip


@dataclass(frozen=True)
class Merge:
    """One ``pleas merge`` of two sources of one architecture.

    Args:
        name: In tables and files.
        pair: ``random`` or ``demo``.
        sources: Files of the sources, one for each domain, relative to the folder of the pair's sources.
        methods: As the command's configuration names them.
        budgets: Largest sizes of the students.
        base: File relative to the same folder, ``mean``, or None.
        label_space: ``shared`` or ``different``.
        data: Further arguments of the data module.
    """

    name: str
    pair: str
    sources: tuple[str, str]
    methods: Sequence[Mapping[str, Any]]
    budgets: Sequence[float] = (1.0,)
    base: str | None = None
    label_space: str = "shared"
    data: Mapping[str, Any] | None = None

    @property
    def image_size(self) -> int:
        """Side of its pictures in pixels."""
        return 40 if self.pair == "demo" else 32

    @property
    def files(self) -> list[str]:
        """The files that it reads, relative to the folder of the pair's sources."""
        return [*self.sources, *([] if self.base in (None, "mean") else [str(self.base)])]

    def config(self, sources: Path, data: Path) -> dict[str, Any]:
        """The command's configuration, without the run's folder.

        What depends on the moment is fixed: memory is what the configuration says and not what is free, and no copies
        of unfinished statistics are made, before which what waits is added up.

        Args:
            sources: Folder of the pair's sources.
            data: Folder of the pair's pictures, which are drawn there if they are missing.
        """
        shapes: dict[str, Any] = {"root": str(data), "domains": list(DOMAINS)}
        loading: dict[str, Any] = {
            "image_size": 40,
            "batch_size": 64,
            "calibration": 384,
            "calibration_views": 1,
            "calibration_batch_size": 192,
        }
        if self.pair == "random":
            shapes |= {"size": 32, "train_per_class": 4, "test_per_class": 1}
            loading = {"image_size": 32, "batch_size": 6, "calibration": 24, "validation_fraction": 0}
            loading["calibration_views"] = 1
        base = self.base if self.base in (None, "mean") else str(sources / self.base)
        return {
            "trainer": TRAINER,
            "model": {
                "class_path": "project.modules.MergeModule",
                "init_args": {
                    "sources": [
                        {"path": str(sources / file), "domains": [domain]}
                        for file, domain in zip(self.sources, DOMAINS, strict=True)
                    ],
                    "base": base,
                    "budgets": list(self.budgets),
                    "methods": list(self.methods),
                    "memory": "6 GB",
                    "keep_every": 1_000_000_000,
                },
            },
            "data": {
                "class_path": "project.data.DomainDataModule",
                "init_args": {
                    "sets": {"class_path": "project.data.Shapes", "init_args": shapes},
                    "label_space": self.label_space,
                    **loading,
                    **(self.data or {}),
                },
            },
        }  # fmt: skip


def method(name: str, label: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A method as the command's configuration names it."""
    given = {**arguments, **({} if label is None else {"label": label})}
    return {"class_path": f"project.methods.{name}", **({"init_args": given} if given else {})}


FROM_BASE = [
    method("Average"),
    method("Average", "average-weighted", weights=[2, 1]),
    method("Interpolation", steps=2),
    method("TaskArithmetic"),
    method("TIES"),
    method("TIES", "ties-tensor", trim="tensor", keep=0.5),
    method("PCB"),
    method("EMR"),
    method("Fisher"),
    method("Fisher", "fisher-exact", classes="exact"),
    method("Fisher", "fisher-labels", classes="labels", weights=[2, 1]),
    method("RegMean"),
    method("MaTS", "mats-average", estimate="average", start="zero"),
    method("MaTS", "mats-diagonal", estimate="diagonal", classes="labels", start="base", iterations=5),
    method("MaTS", "mats-gram", estimate="gram", start="regmean", iterations=5, watch=5),
    method("MaTS", "mats-kfac", start="ties", iterations=5, precondition=True),
    method("AdaMerging", steps=3),
    method("AdaMerging", "adamerging-plus", coefficients="task", plus=True, norms="domain", steps=3),
    method("Concrete", steps=3),
    method("Concrete", "concrete-learned", coefficients="learned", norms="running", binarise=True, steps=4),
    method("SMILE", rank=4, gate_rank=4),
    method("SMILE", "smile-merged", rank=4, gate_rank=2, top=2, norms="merged"),
    method("WEMoE", hidden=8, steps=3),
    method("Tuned", method=method("TaskArithmetic"), grid={"scale": [0.2, 0.5, 1.0]}),
    method(
        "Tuned", "regmean-by-labels", method=method("RegMean"), criterion="accuracy",
        grid={"off_diagonal": [0.1, 0.9], "ridge": [0.001, 0.1]},
    ),
]  # fmt: skip

ALIGNED = [
    method("Average"),
    *(method("Average", f"average-{by}", align=by) for by in ("weights", "activations", "both")),
    method("Interpolation", steps=2, align="weights"),
    method("TaskArithmetic", align="activations"),
    method("TIES", align={"alpha": 0.3}),
    method("PCB", align="both"),
    method("EMR", align="activations"),
    method("Fisher", align="weights"),
    method("RegMean", align="weights"),
    method("RegMean", "regmean-correlation", align={"by": "activations", "similarity": "correlation"}),
    method("MaTS", start="regmean", align="weights", iterations=3),
    method("AdaMerging", align="activations", steps=2),
    method("Concrete", align="weights", steps=2),
    method("WEMoE", align="weights", hidden=8, steps=2),
    method("ZipIt"),
    method("ZipIt", "zipit-weights", space="weights"),
    method("ZipIt", "zipit-both", space="both", within=0.5),
    method("Tuned", method=method("Average", align="weights"), grid={"weights": [[1, 3], [3, 1]]}),
]

SIZES = [
    *(method("Permutation", f"permutation-{share}", separate=share) for share in ("front", "back", "uniform", "gain")),
    method("Permutation", "permutation-weights", matching="weights"),
    method("Permutation", "permutation-both", matching="both", similarity="correlation", alpha=0.3, step=3),
    *(method("PLeaS", f"pleas-{share}", separate=share) for share in ("front", "uniform", "gain")),
    *(method("PLeaS", f"joint-{share}", fit="joint", separate=share) for share in ("front", "uniform", "gain")),
]

OPTIONS = [
    method("PLeaS", "pleas-mean", targets="mean"),
    method("PLeaS", "pleas-before", norm="before", compensate=False, rounds=0),
    method("PLeaS", "pleas-squares", logits="squares", ridge=0.2, weights={"clipart": 2.0}),
    method("PLeaS", "pleas-excess", excess=0.2),
    method("PLeaS", "pleas-both", matching="both", alpha=0.3),
    method("PLeaS", "joint-mean", fit="joint", targets="mean"),
    method("PLeaS", "joint-weights", fit="joint", matching="weights", ridge=0.001, weights={"sketch": 0.5}),
]

HEADS = [
    method("Permutation"),
    method("PLeaS"),
    method("PLeaS", "pleas-gain", separate="gain"),
    method("PLeaS", "joint", fit="joint"),
    method("PLeaS", "joint-fitted", fit="joint", separate="uniform", heads="fitted"),
]

PUBLIC = {
    "class_path": "project.data.Shapes",
    "init_args": {"size": 32, "train_per_class": 4, "test_per_class": 1, "domains": ["painting"]},
}

DEMO = [
    method("Average"),
    method("Permutation"),
    method("PLeaS"),
    method("PLeaS", "joint", fit="joint"),
    method("RegMean"),
    method("ZipIt"),
]

RELATED = ("related-0.safetensors", "related-1.safetensors")
UNRELATED = ("unrelated-0.safetensors", "unrelated-1.safetensors")
BASE = "base.safetensors"
BEST = tuple(f"{domain}/checkpoints/best.ckpt" for domain in DOMAINS)

MERGES = (
    Merge("base", "random", RELATED, FROM_BASE, base=BASE),
    Merge("base, heads", "random", RELATED, FROM_BASE, base=BASE, label_space="different"),
    Merge("aligned", "random", UNRELATED, ALIGNED, base="mean"),
    Merge("aligned, heads", "random", UNRELATED, ALIGNED, base="mean", label_space="different"),
    Merge("sizes", "random", UNRELATED, SIZES, (1.0, 1.4)),
    Merge("options", "random", UNRELATED, OPTIONS, (1.4,)),
    Merge("sizes, heads", "random", UNRELATED, HEADS, (1.0, 1.4), label_space="different"),
    Merge(
        "public pictures", "random", UNRELATED, [method("PLeaS", restyle_steps=3)], (1.0, 1.4),
        data={"calibration": "public", "public": PUBLIC, "public_pictures": 24},
    ),
    Merge("demo", "demo", (BEST[0], BEST[1]), DEMO, (1.0, 1.5)),
)  # fmt: skip


def draw_sources(folder: Path) -> None:
    """Write ResNet-20s of random weights that are missing: two unrelated ones, a base, and two that were moved from it.

    Args:
        folder: Where to.
    """
    if all((folder / name).exists() for name in (*UNRELATED, *RELATED, BASE)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    base = random_network(0)
    networks = {BASE: base, UNRELATED[0]: random_network(1), UNRELATED[1]: random_network(2)}
    networks |= {name: moved(base, 3 + index) for index, name in enumerate(RELATED)}
    for name, network in networks.items():
        save_file(network.state_dict(), folder / name)


def random_network(seed: int) -> nn.Module:
    """A ResNet-20 with random weights, biases and scales, its batch norms those of random pictures."""
    generator = torch.Generator().manual_seed(seed)

    def randomise(name: str, one: nn.Parameter) -> None:
        if one.ndim > 1:
            one.normal_(0.0, (3.0 / one[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("weight"):
            one.uniform_(0.5, 1.5, generator=generator)
        else:
            one.normal_(0.0, 0.3, generator=generator)

    return _rewritten(Architecture("resnet20", CLASSES).build(), randomise)


def moved(base: nn.Module, seed: int, length: float = 0.3) -> nn.Module:
    """A copy as if it had been fine-tuned: each tensor moved at random by a share of its own spread."""
    generator = torch.Generator().manual_seed(seed)

    def move(name: str, one: nn.Parameter) -> None:
        one += length * one.std() * torch.randn(one.shape, generator=generator)

    return _rewritten(copy.deepcopy(base), move)


@torch.no_grad()
def _rewritten(network: nn.Module, change: Callable[[str, nn.Parameter], None]) -> nn.Module:
    """Change every parameter, then let the batch norms take the statistics of random pictures."""
    for name, one in network.named_parameters():
        change(name, one)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()(torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return network.eval()
