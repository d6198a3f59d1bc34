"""The sequential fit against least squares on the stacked data, and what its parts promise."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PICTURE, Case, make_problem, merge_case, pictures, random_network
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit import SequentialFit, damping
from project.fit.neighbours import LayerContext, context_of
from project.methods import PLeaS
from project.moments import ForwardPass
from project.student import Student
from project.student.graph import student_graph
from project.symmetry import graph_of


class Small(nn.Module):
    """One convolution with its norm and rectifier, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=bool(seed % 2))
        self.norm = nn.BatchNorm2d(6)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def problem(count: int) -> Case:
    return make_problem([Small(2 * seed).eval() for seed in range(count)])


def fitted(problem: Case, rounds: int, *, ridge: float = 0.3, own: bool = True) -> Student:
    names = [group.name for group in problem.spec.free]
    maps = {**problem.fixed, names[0]: UnitMap.identity(6, len(problem.sources)).split(torch.tensor([1, 4]))}
    student = problem.start(maps)
    walk = SequentialFit(
        student, problem.sources, problem.owners, problem.pictures, ridge=ridge, own=own, rounds=rounds
    )
    walk.run()
    return student


def rows(values: Tensor) -> np.ndarray:
    return values.transpose(0, 1).flatten(1).T.double().numpy()


def data(problem: Case, own: bool) -> list[tuple[int, np.ndarray, list[np.ndarray]]]:
    """For every domain: its owner, patches with a 1, and each source's normalised outputs, one row a position."""
    found = []
    for domain, batches in problem.pictures.items():
        x = torch.cat(list(batches))
        patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).double().numpy()
        patches = np.concatenate([patches, np.ones((len(patches), 1))], 1)
        with torch.no_grad():
            outputs = [source.norm(source.conv(x)).permute(0, 2, 3, 1).flatten(0, 2) for source in problem.sources]  # type: ignore[operator, union-attr]
        found.append((problem.owners[domain], patches, [y.double().numpy() for y in outputs]))
    return found


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_the_first_layer_is_least_squares_towards_the_normalised_outputs(count: int, own: bool) -> None:
    it = problem(count)
    student = fitted(it, 0, own=own)
    units = student.maps["conv"]
    folded = []
    for source in it.sources:
        scale = source.norm.weight / (source.norm.running_var + source.norm.eps).sqrt()  # type: ignore[operator, union-attr]
        shift = source.norm.bias - source.norm.running_mean * scale  # type: ignore[operator, union-attr]
        folded.append(torch.cat([source.conv.weight.flatten(1) * scale[:, None], shift[:, None]], 1).detach().double())
    probe = pictures(5, 99)
    with torch.no_grad():
        found = rows(student.network.norm(student.network.conv(probe)))  # type: ignore[operator, union-attr]
    patches = nn.functional.unfold(probe, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).double().numpy()
    # rows() runs over pictures and positions of one unit, as unfold does
    patches = np.concatenate([patches, np.ones((len(patches), 1))], 1)
    for row, members in enumerate(units.members.tolist()):
        present = [s for s, unit in enumerate(members) if unit >= 0]
        start = np.mean([folded[s][members[s]].numpy() for s in present], 0)
        xs, ts = [], []
        for owner, x, outputs in data(it, own):
            if own and owner not in present:
                continue
            sources = [owner] if own else present
            xs.append(x)
            ts.append(np.mean([outputs[s][:, members[s]] for s in sources], 0))
        x, t = np.concatenate(xs), np.concatenate(ts)
        weight = np.sqrt(damping(0.3, x.shape[1], len(x)) * np.mean(x[:, :-1] ** 2) * len(x))
        system = np.concatenate([x, weight * np.eye(x.shape[1])])
        solution = np.linalg.lstsq(system, np.concatenate([t, weight * start]), rcond=None)[0]
        assert np.allclose(found[:, row], patches @ solution, atol=2e-4)


@pytest.mark.parametrize("own", [True, False])
def test_what_is_left_of_the_targets_is_told_of_every_domain(own: bool) -> None:
    it = problem(3)
    names = [group.name for group in it.spec.free]
    student = it.start({**it.fixed, names[0]: UnitMap.identity(6, 3).split(torch.tensor([1, 4]))})
    walk = SequentialFit(student, it.sources, it.owners, it.pictures, ridge=0.3, own=own, rounds=2)
    fits = walk.run()
    assert list(walk.domain_residuals) == list(it.pictures)
    units = student.maps["conv"]
    plain = fitted(it, 0, own=own).network  # rounds aim at other targets, which cannot be compared
    power = energy = 0.0
    for domain, (owner, _, outputs) in zip(it.pictures, data(it, own), strict=True):
        with torch.no_grad():
            found = rows(plain.norm(plain.conv(torch.cat(list(it.pictures[domain])))))  # type: ignore[operator, union-attr]
        left = asked = 0.0
        for row, members in enumerate(units.members.tolist()):
            present = [s for s, unit in enumerate(members) if unit >= 0]
            if own and owner not in present:
                continue
            sources = [owner] if own else present
            target = np.mean([outputs[s][:, members[s]] for s in sources], 0)
            left += float(np.mean((found[:, row] - target) ** 2))
            asked += float(np.mean(target**2))
        assert walk.domain_residuals[domain]["conv"] == pytest.approx(left / asked, rel=1e-3, abs=1e-6)
        power, energy = power + asked, energy + left
    if not own:
        assert fits["conv"].residual_after == pytest.approx(energy / power, rel=1e-3, abs=1e-6)
        assert all(set(found) == set(fits) for found in walk.domain_residuals.values())


@pytest.mark.parametrize("count", [2, 3])
def test_rounds_lower_the_error_that_a_rectifier_lets_through(count: int) -> None:
    """Each round minimises an upper bound that touches the error, where a negative target asks for no more than 0."""
    it = problem(count)

    def error(student: Student) -> float:
        total = 0.0
        for owner, _, outputs in data(it, True):
            domain = next(name for name, index in it.owners.items() if index == owner)
            with torch.no_grad():
                y = student.network.norm(student.network.conv(torch.cat(list(it.pictures[domain]))))  # type: ignore[operator, union-attr]
            y = y.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
            for row, members in enumerate(student.maps["conv"].members.tolist()):
                if members[owner] >= 0:
                    target = outputs[owner][:, members[owner]]
                    missed = np.where(target < 0, np.maximum(y[:, row], 0), y[:, row] - target)
                    total += float(np.square(missed).sum())
        return total

    errors = [error(fitted(it, rounds, ridge=1e-9)) for rounds in (0, 1, 3, 8)]
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_norms_hold_the_statistics_of_what_they_read() -> None:
    sources = [random_network(3, weights) for weights in (0, 1)]
    it = make_problem(sources)
    (merged,) = merge_case(PLeaS(), it, [1.2])
    everything = torch.cat([batch for batches in it.pictures.values() for batch in batches])
    seen: dict[str, Tensor] = {}
    norms = {norm.name: merged.student.network.get_submodule(norm.name) for norm in it.spec.norms}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0].clone()}))
    with torch.no_grad():
        merged.student(everything)
    for name, norm in norms.items():
        values = seen[name].double().transpose(0, 1).flatten(1)
        scale = float(values.square().mean())
        assert np.allclose(norm.running_mean, values.mean(1), atol=1e-3 * scale**0.5)
        assert np.allclose(norm.running_var, values.var(1, correction=0), atol=1e-3 * scale)


def test_the_order_and_size_of_batches_do_not_matter() -> None:
    sources = [random_network(6, weights) for weights in (0, 1)]
    whole = make_problem(sources)
    pieces = replace(whole, pictures={name: list(b[0].flip(0).split(7)) for name, b in whole.pictures.items()})
    probe = pictures(5, 99, PICTURE)
    students = [next(iter(merge_case(PLeaS(), one, [1.3]))).student for one in (whole, pieces)]
    with torch.no_grad():
        a, b = (student(probe) for student in students)
    assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


@pytest.mark.parametrize("fit", ["sequential", "joint"])
@pytest.mark.parametrize("targets", ["own", "mean"])
def test_a_weight_is_so_many_copies_of_a_domain(fit: str, targets: str) -> None:
    sources = [random_network(3, weights) for weights in (0, 1)]
    batches = [(domain, pictures(60, 100 + i, PICTURE)) for i, domain in enumerate(("art", "birds"))]
    once, twice, alone = (
        make_problem(sources, batches=shown, needs=("layers",) if fit == "joint" else ())
        for shown in (batches, [*batches, batches[1]], batches[:1])
    )
    options = {"fit": fit, "targets": targets, "ridge": 0.0, "matching": "weights"}
    if fit == "sequential":
        options |= {"rounds": 1, "logits": "squares"}
    probe = pictures(5, 99, PICTURE)

    def logits(weights: dict[str, float], problem: Case) -> Tensor:
        (merged,) = merge_case(PLeaS(**options, weights=weights), problem, [1.0])  # type: ignore[arg-type]
        with torch.no_grad():
            return merged.student.network(probe)

    plain, weighted = logits({}, once), logits({"birds": 2.0}, once)
    scale = float(plain.abs().max())
    assert torch.allclose(weighted, logits({}, twice), atol=1e-3 * scale)
    assert not torch.allclose(weighted, plain, atol=1e-2 * scale)
    if fit == "joint":  # the sequential fit has its norms from weighted pictures too, and knows no second domain here
        assert torch.allclose(logits({"birds": 0.0}, once), logits({}, alone), atol=1e-3 * scale)


def test_before_the_norm_layers_aim_at_raw_outputs_and_norms_at_their_own() -> None:
    it = problem(2)
    student = it.start({**it.fixed, "conv": UnitMap.identity(6, 2)})
    SequentialFit(student, it.sources, it.owners, it.pictures, ridge=0.0, absorb=False).run()
    network = student.network
    xs, raws, normed = [], [], []
    for (owner, x, outputs), batches in zip(data(it, True), it.pictures.values(), strict=True):
        with torch.no_grad():
            raw = it.sources[owner].conv(torch.cat(list(batches)))  # type: ignore[operator]
        xs.append(x[:, :-1])
        raws.append(raw.permute(0, 2, 3, 1).flatten(0, 2).double().numpy())
        normed.append(outputs[owner])
    x, raw, target = (np.concatenate(parts) for parts in (xs, raws, normed))
    weights = np.linalg.lstsq(x, raw, rcond=None)[0]
    assert np.allclose(network.conv.weight.detach().flatten(1).T, weights, atol=2e-4)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        out = network.norm(network.conv(torch.cat([b for one in it.pictures.values() for b in one])))  # type: ignore[operator]
    out = out.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    for unit in range(6):  # one scale and one shift a unit
        line = np.stack([(x @ weights)[:, unit], np.ones(len(x))], 1)
        best = line @ np.linalg.lstsq(line, target[:, unit], rcond=None)[0]
        assert np.allclose(out[:, unit], best, atol=1e-3)


@pytest.mark.parametrize("absorb", [True, False])
def test_units_of_a_source_without_pictures_stay_at_their_start(absorb: bool) -> None:
    it = problem(3)
    student = it.start({**it.fixed, "conv": UnitMap.identity(6, 3).split(torch.tensor([1, 4]))})
    probe = pictures(5, 99)

    def outputs() -> Tensor:
        with torch.no_grad():
            return student.network.norm(student.network.conv(probe)).clone()  # type: ignore[operator, union-attr]

    start = outputs()
    weights = {domain: 0.0 for domain, owner in it.owners.items() if owner == 2}
    SequentialFit(
        student, it.sources, it.owners, it.pictures, ridge=0.1, absorb=absorb, rounds=0, weights=weights
    ).run()
    stays = ~student.maps["conv"].present[:, :2].any(1)
    assert stays.sum() == 2
    assert torch.allclose(outputs()[:, stays], start[:, stays], atol=1e-4)
    assert not torch.allclose(outputs()[:, ~stays], start[:, ~stays], atol=1e-2)


def test_only_ratios_of_weights_matter() -> None:
    it = problem(2)
    found = []
    for weight in (1.0, 1e-6):
        student = it.start({**it.fixed, "conv": UnitMap.identity(6, 2)})
        weights = dict.fromkeys(it.owners, weight)
        SequentialFit(
            student, it.sources, it.owners, it.pictures, ridge=0.1, absorb=False, divergence=False, weights=weights
        ).run()
        with torch.no_grad():
            found.append(student(pictures(5, 99)))
    assert torch.allclose(*found, atol=1e-4)


def test_without_compensation_a_sum_is_fitted_worse() -> None:
    sources = [random_network(0, weights) for weights in (0, 1)]
    it = make_problem(sources)

    def missed(compensate: bool) -> float:
        (merged,) = merge_case(PLeaS(matching="weights", ridge=0.0, rounds=0, compensate=compensate), it, [1.0])
        graph, total = student_graph(merged.student.network), 0.0
        node = next(node.name for node in graph.graph.nodes if "add" in node.name)
        group = next(group for group in it.spec.groups.values() if node in group.nodes)
        for domain, batches in it.pictures.items():  # type: ignore[union-attr]
            owner = it.owners[domain]
            units = merged.student.maps[group.name].members[:, owner]
            for batch in batches:
                total += float(
                    (value(graph, node, batch) - value(graph_of(sources[owner]), node, batch)[:, units]).square().sum()
                )
        return total

    assert missed(True) < missed(False)


@torch.no_grad()
def value(graph: fx.GraphModule, name: str, batch: Tensor) -> Tensor:
    """What a node of a graph computes, before anything can change it in place."""
    run = ForwardPass(graph, batch)
    for node in graph.graph.nodes:
        found = run.step(node)
        if node.name == name:
            return found.clone()
    raise AssertionError(name)


class Gate(nn.Module):
    """A product, which is no residual sum; and a rectifier behind a layer without norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = torch.relu(x * self.norm(self.gate(x)))
        return self.fc(x.mean((2, 3)))


def test_only_sums_are_taken_for_sums() -> None:
    graph = student_graph(Gate())
    nodes = {node.name: node for node in graph.graph.nodes}
    assert context_of(graph, nodes["conv"], {"x"}) == LayerContext(None, None, True)
    assert context_of(graph, nodes["gate"], set(nodes)) == LayerContext("norm", None, False)
    small = student_graph(random_network(0, 0))
    sums = [node for node in small.graph.nodes if "add" in node.name]
    assert sums, "the example has a residual sum"


def test_networks_with_products_merge_with_themselves() -> None:
    gate = Gate().eval()
    it = make_problem([gate, copy.deepcopy(gate)])
    (merged,) = merge_case(PLeaS(), it, [1.0])
    probe = pictures(4, 5)
    with torch.no_grad():
        assert torch.allclose(merged.student(probe), gate(probe), atol=1e-4)


def test_the_walk_does_without_tf32() -> None:
    """Whatever the default: rounding to ten bits would be carried from layer to layer."""
    seen, given = set(), problem(2)

    def note(*_: object) -> None:
        conv = getattr(torch.backends.cudnn, "conv", None)
        seen.add(torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32")

    for source in given.sources:
        source.get_submodule("conv").register_forward_hook(note)
    fitted(given, 1)
    assert seen == {False}
