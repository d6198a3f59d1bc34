"""Random networks, unit maps and problems, all from seeds."""

import copy
import hashlib
import itertools
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from disturbing import disturb, disturbed
from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import Budget
from project.methods import Evidence, Merged, Method, PictureCounts, Preparation, Problem, Run
from project.methods.shared.aligned import Align, Space
from project.models import Architecture, LabelSpace
from project.moments import INPUTS, LAYERS, UNITS, Collector, Lockstep, Statistics
from project.runtime import ALONE, MemoryEstimate, Progress, World
from project.student import Student
from project.symmetry import Spec, permute_state, random_orders, trace

PICTURE = (3, 11, 13)
DOMAINS = ("art", "birds", "cars", "dogs")


class Residual(nn.Module):
    """A body and a shortcut that are added, in place or not."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, inplace: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.inplace = body, shortcut, inplace

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        if self.inplace:
            out += self.shortcut(x)
        else:
            out = self.shortcut(x) + out
        return torch.relu(out)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Draw:
    """Random choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def pick(self, *options: Any) -> Any:
        return options[int(self.random.integers(len(options)))]

    def width(self) -> int:
        return int(self.random.integers(4, 8))

    def act(self) -> nn.Module:
        return self.pick(nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.1))

    def norm(self, width: int) -> nn.Module:
        norm = nn.BatchNorm2d(width, affine=self.pick(True, True, False))
        return self.pick(norm, norm, nn.Identity())

    def conv(self, inputs: int, outputs: int) -> nn.Conv2d:
        stride, bias = self.pick(1, 1, 2, (1, 2)), self.pick(True, False)
        padding = self.pick(0, 1, (2, 1), "valid", "same" if stride == 1 else 1)
        kernels = (1, 3, (3, 1)) if padding == "same" else (1, 2, 3, (3, 1), (2, 3))  # torch warns of even kernels
        kernel, dilation = self.pick(*kernels), self.pick(1, 1, 2, (1, 2))
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)


def random_network(structure: int, weights: int = 0, classes: int = 5) -> nn.Module:
    """A small network for pictures of ``PICTURE``; networks of one structure differ in weights and classes alone."""
    draw = Draw(structure)
    width = draw.width()
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=draw.pick(0, 1), bias=draw.pick(True, False))]
    layers += [draw.norm(width), draw.act()]
    shape = _size(layers)
    for _ in range(3):
        if draw.pick(True, False):  # a stage of plain layers
            wider = draw.width()
            plain = [draw.conv(width, wider), draw.norm(wider), draw.act()]
            if (reached := _size(layers + plain)) is not None:
                layers, width, shape = layers + plain, wider, reached
        inner, outer = draw.width(), draw.pick(width, draw.width())
        stride = draw.pick(1, 1, 2) if shape is not None and min(shape) > 4 else 1
        body = nn.Sequential(
            nn.Conv2d(width, inner, 3, stride, padding=1, bias=False), draw.norm(inner), draw.act(),
            nn.Conv2d(inner, outer, draw.pick(1, 3), padding="same", bias=draw.pick(True, False)), draw.norm(outer),
        )  # fmt: skip
        plain_shortcut = stride == 1 and outer == width
        shortcut = nn.Identity() if plain_shortcut else nn.Conv2d(width, outer, 1, stride, bias=draw.pick(True, False))
        layers.append(Residual(body, shortcut, draw.pick(True, False)))
        width = outer
    layers.append(draw.pick(nn.Identity(), nn.AvgPool2d(2), nn.MaxPool2d(2, padding=1)))
    head = draw.pick("mean", "one", "many", "many")
    layers += {
        "mean": [Mean()],
        "one": [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        "many": [nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()],
    }[head]
    features = width * (6 if head == "many" else 1)
    if draw.pick(True, False):
        hidden = draw.width()
        layers += [nn.Linear(features, hidden, bias=draw.pick(True, False)), nn.BatchNorm1d(hidden), draw.act()]
        features = hidden
    layers.append(nn.Linear(features, classes, bias=draw.pick(True, False)))
    network = nn.Sequential(*layers)
    network.origin = "random", structure  # type: ignore[assignment]
    return randomised(network, weights)


def _size(layers: Sequence[nn.Module]) -> torch.Size | None:
    """Rows and columns that layers leave; None where fewer than three."""
    try:
        with torch.no_grad():
            sides = nn.Sequential(*layers).eval()(torch.zeros(1, *PICTURE)).shape[2:]
    except RuntimeError:
        return None
    return sides if min(sides) > 2 else None


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """The network in eval mode with random weights, biases, affine parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> None:
        tensor.data.normal_(mean, std, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            normal(module.weight, std=(3.0 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                normal(module.bias, std=0.2)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                normal(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            normal(module.running_mean, std=0.3)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return disturb(network).eval()


def resnet(name: str, weights: int = 0, classes: int = 5, width: int = 1) -> nn.Module:
    """A named network with random batch-norm statistics."""
    network = Architecture(name, classes, width=width).build()
    network.origin = name, width  # type: ignore[assignment]
    return randomised(network, weights)


SPECS: dict[tuple[object, ...], Spec] = {}
GATHERED: dict[tuple[object, ...], Statistics] = {}
"""The last statistics of small networks, by all that they follow from; nothing that reads them changes them."""
KEPT, SMALL = 24, 50_000  # statistics, and parameters of all sources


def traced(network: nn.Module, shape: tuple[int, int, int]) -> Spec:
    """The spec of a network, derived once for all of one origin and the same modules, which differ in weights alone."""
    key = spec_key(network, shape)
    if key[0] is None:
        return trace(network, shape)
    if key not in SPECS:
        SPECS[key] = trace(network, shape)
    return SPECS[key]


def spec_key(network: nn.Module, shape: tuple[int, int, int]) -> tuple[object, ...]:
    return getattr(network, "origin", None), shape, network.training, repr(network)


def permuted_copy(network: nn.Module, twin: nn.Module, spec: Spec, seed: int) -> dict[str, Tensor]:
    """Make ``twin`` the network with all its groups permuted; returns, for each old unit, its new number."""
    generator = torch.Generator().manual_seed(seed)
    orders = {group.name: torch.randperm(group.size, generator=generator) for group in spec.free if group.blocks == 1}
    orders |= random_orders(spec, [group for group in spec.free if group.blocks > 1], generator)
    twin.load_state_dict(permute_state(network.state_dict(), spec, orders))
    return {name: order.argsort() for name, order in orders.items()}


def moved(base: nn.Module, seed: int, length: float = 0.2) -> nn.Module:
    """The network with all its parameters moved at random, so far in every entry, as if it had been fine-tuned."""
    network, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in network.parameters():
            one += length * torch.randn(one.shape, generator=generator)
    return disturb(network)


def permuted_family(network: nn.Module, count: int, shape: tuple[int, int, int] = PICTURE) -> list[nn.Module]:
    """The network and copies of it, whose units stand in other orders."""
    spec, copies = traced(network, shape), [copy.deepcopy(network) for _ in range(count - 1)]
    for seed, twin in enumerate(copies):
        permuted_copy(network, twin, spec, seed)
    return [network, *copies]


@dataclass(frozen=True, eq=False)
class Case(Problem):
    """A problem, with what calibration left behind of it and where it runs: what ``replace`` may change in one go."""

    statistics: Statistics = field(default_factory=Statistics)
    pictures: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    picture_labels: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    world: World = ALONE
    progress: Progress | None = None
    scratch: Path | None = None
    made: Mapping[str, Student] = field(default_factory=dict)
    planned: Mapping[str, Method] = field(default_factory=dict)

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.statistics, self.pictures, self.picture_labels)

    @property
    def run(self) -> Run:
        return Run(self.world, self.progress, self.scratch, self.made)


def budgets_of(*amounts: Budget | float | str) -> list[Budget]:
    """Budgets as a user writes them."""
    return [Budget.of(amount) for amount in amounts]


def merge_case(method: Method, case: Case, amounts: Iterable[Budget | float | str]) -> Iterator[Merged]:
    """The students of some budgets."""
    return method.merge(case, case.evidence, case.run, budgets_of(*amounts))


def prepare_case(
    method: Method, case: Case, counts: Mapping[str, int], amounts: Iterable[Budget | float | str], batch: int = 1
) -> Preparation:
    """What a method says before calibration on so many pictures of each domain."""
    return method.prepare(case, PictureCounts(counts, batch), budgets_of(*amounts), case.planned)


def message_of(method: Method, case: Case) -> str | None:
    """What a method says, where there are pictures enough, that it is going to do."""
    return prepare_case(method, case, dict.fromkeys(case.labels.domains, 10**6), [1.0]).message


def estimate_case(
    method: Method, case: Case, counts: Mapping[str, int], amounts: Iterable[Budget | float | str], batch: int
) -> MemoryEstimate:
    """How much memory a method takes."""
    return prepare_case(method, case, counts, amounts, batch).memory


def space_of(case: Case, align: Align) -> Space:
    """The sources, their units matched."""
    return Space.of(case, case.evidence, case.world, align)


def only(method: Method, case: Case) -> Merged:
    """The one student of a method that makes a single size, whatever the budgets."""
    (merged,) = merge_case(method, case, [1.5])
    return merged


@torch.no_grad()
def run(network: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = network(batch)
    return found


def started(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A process that runs a function of a module: a copy of this one where that is safe, which imports nothing anew.

    What it runs must keep to one thread.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=target, args=arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        process.start()
    return process


def pictures(count: int, seed: int, shape: tuple[int, int, int] = PICTURE) -> Tensor:
    return disturbed(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)))


def random_map(size: int, sources: int, seed: int) -> UnitMap:
    """Random matches; every row whole or split at random into rows for some of its sources."""
    random = np.random.default_rng(seed)
    matched = np.stack([random.permutation(size) for _ in range(sources)], 1)
    rows = []
    for row in matched:
        part = random.integers(0, sources, sources) if random.random() < 0.6 else np.zeros(sources, int)
        rows += [np.where(part == block, row, -1) for block in set(part.tolist())]
    return UnitMap.sorted(torch.from_numpy(np.stack(rows)))


def make_problem(
    sources: Sequence[nn.Module],
    mode: str = "shared",
    *,
    shape: tuple[int, int, int] = PICTURE,
    batches: Sequence[tuple[str, Tensor]] | None = None,
    needs: Collection[str] = (LAYERS, UNITS, INPUTS),
    architecture: Architecture | None = None,
    **others: Any,
) -> Case:
    """The sources with statistics of random pictures, source s owning domain s."""
    spec = traced(sources[0], shape)
    classes = {
        domain: tuple(f"{domain if mode == 'different' else ''}{i}" for i in range(logits(source)))
        for domain, source in zip(DOMAINS, sources, strict=False)
    }
    if batches is None:
        batches = [(domain, pictures(40, 100 + i, shape)) for i, domain in enumerate(classes)]
    return Case(
        sources=tuple(sources),
        owners={domain: index for index, domain in enumerate(classes)},
        spec=spec,
        labels=LabelSpace(classes, mode),  # type: ignore[arg-type]
        architecture=architecture,
        statistics=_shared_statistics(sources, spec, batches, tuple(classes), needs),
        pictures={domain: [batch for name, batch in batches if name == domain] for domain in classes},
        **others,
    )


def _shared_statistics(
    sources: Sequence[nn.Module],
    spec: Spec,
    batches: Sequence[tuple[str, Tensor]],
    domains: tuple[str, ...],
    needs: Collection[str],
) -> Statistics:
    """The same statistics for the same numbers: networks are built anew in every test, and often come out the same."""
    named = all(hasattr(source, "origin") for source in sources)
    if not named or sum(one.numel() for source in sources for one in source.parameters()) > SMALL:
        return gathered(sources, spec, batches, domains, needs)
    key = (
        spec_key(sources[0], spec.picture),
        tuple(tensor_hash(one) for source in sources for one in source.state_dict().values()),
        tuple((domain, tensor_hash(batch)) for domain, batch in batches),
        domains,
        frozenset(needs),
    )
    found = GATHERED.pop(key, None)
    GATHERED[key] = gathered(sources, spec, batches, domains, needs) if found is None else found
    if len(GATHERED) > KEPT:
        del GATHERED[next(iter(GATHERED))]
    return GATHERED[key]


def tensor_hash(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, hashlib.sha1(tensor.detach().contiguous().numpy().tobytes()).digest()


def gathered(
    sources: Sequence[nn.Module],
    spec: Spec,
    batches: Sequence[tuple[str, Tensor]],
    domains: Collection[str],
    needs: Collection[str] = (LAYERS, UNITS, INPUTS),
) -> Statistics:
    owners = {domain: index for index, domain in enumerate(domains)}
    collector = Collector(spec, Lockstep(sources), needs, domains, owners)
    for domain, batch in batches:
        if needs:
            collector.gather(domain, batch)
        else:  # the sources need not run
            collector.held.pictures[domain] += len(batch)
    return collector.statistics


def logits(network: nn.Module) -> int:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1].out_features


def unfolded(value: Tensor, layer: nn.Module) -> Tensor:
    """What a layer multiplies, in float64 by ``torch.nn.functional.unfold``: shape (inputs · taps, samples)."""
    value = value.double()
    if not isinstance(layer, nn.Conv2d):
        return value.mT
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        down, right = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        value = F.pad(value, (right // 2, right - right // 2, down // 2, down - down // 2))
    elif not isinstance(layer.padding, str):
        value = F.pad(value, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))
    return F.unfold(value, kernel, dilation, stride=layer.stride).transpose(0, 1).flatten(1)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is below the tolerance times the largest value."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


def same_state(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def brute_start(weights: Sequence[np.ndarray], outputs: UnitMap, inputs: UnitMap, taps: int, bias: bool) -> np.ndarray:
    """W⁰ by its definition, a weight at a time, from the sources' (outputs, inputs · taps (+ 1)) matrices."""
    result = np.zeros((outputs.units, inputs.units * taps + bias))
    for o, i in itertools.product(range(outputs.units), range(inputs.units)):
        out, into = outputs.members[o].tolist(), inputs.members[i].tolist()
        share = 1 / sum(unit >= 0 for unit in out)
        for matrix, a, b in zip(weights, out, into, strict=True):
            if a >= 0 and b >= 0:
                result[o, i * taps : (i + 1) * taps] += share * matrix[a, b * taps : (b + 1) * taps]
    if bias:
        for o, out in enumerate(outputs.members.tolist()):
            result[o, -1] = np.mean([matrix[a, -1] for matrix, a in zip(weights, out, strict=True) if a >= 0])
    return result
