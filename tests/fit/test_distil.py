"""The distillation's loss against NumPy on what hooks see, and where it must be zero."""

import copy

import numpy as np
import pytest
import torch
from helpers import Case, make_problem, pictures, random_map, random_network, same_state
from torch import Tensor, nn

from project.alignment import UnitMap
from project.errors import ConfigurationError
from project.fit import Distillation
from project.student import Student

CLASSES = {"shared": (5, 5, 5), "different": (3, 7, 4)}


def problem(seed: int, count: int, mode: str = "shared") -> Case:
    return make_problem([random_network(seed, s, CLASSES[mode][s]) for s in range(count)], mode, batches=[])


def partial(it: Case, seed: int) -> Student:
    """Every group merged and split at random."""
    count = len(it.sources)
    free = {group.name: random_map(group.size, count, seed + i) for i, group in enumerate(it.spec.free)}
    return it.start({**it.fixed, **free})


def batch(it: Case, seed: int = 7) -> dict[str, Tensor]:
    return {domain: pictures(3 + index, seed + index) for index, domain in enumerate(it.owners)}


def seen_by_layers(network: nn.Module, it: Case, x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What every layer but those on the picture reads, as the layers themselves get it, and the logits."""
    found: dict[str, np.ndarray] = {}
    layers = [layer for layer in it.spec.layers if layer.inputs != it.spec.input.name]
    handles = [
        network.get_submodule(layer.name).register_forward_pre_hook(
            lambda _module, args, name=layer.name: found.update({name: args[0].detach().double().numpy().copy()})
        )
        for layer in layers
    ]
    with torch.no_grad():
        logits = network(x).double().numpy()
    for handle in handles:
        handle.remove()
    return found, logits


def errors_of(student: Student, it: Case, domain: str, x: Tensor, owner: int | None) -> dict[str, float]:
    """Group -> relative squared error, a unit at a time."""
    mine, _ = seen_by_layers(student.network, it, x)
    theirs = [seen_by_layers(source, it, x)[0] for source in it.sources]
    sums: dict[str, np.ndarray] = {}
    done: list[np.ndarray] = []
    for layer in it.spec.layers:
        if layer.name not in mine or any(np.array_equal(mine[layer.name], other) for other in done):
            continue  # a value that two layers read counts once
        done.append(mine[layer.name])
        units = student.maps[layer.inputs]
        for unit, members in enumerate(units.members.tolist()):
            followed = [s for s, one in enumerate(members) if one >= 0 and owner in (None, s)]
            if not followed:
                continue
            values = mine[layer.name].reshape(len(x), units.units, -1)[:, unit]
            targets = [theirs[s][layer.name].reshape(len(x), units.sizes[s], -1)[:, members[s]] for s in followed]
            target = np.mean(targets, 0)
            sums[layer.inputs] = sums.get(layer.inputs, 0) + np.array(
                [((values - target) ** 2).sum(), (target**2).sum()]
            )
    return {group: float(error / power) for group, (error, power) in sums.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "mode"), [(2, "shared"), (3, "different")])
def test_features_are_those_that_layers_read(seed: int, count: int, mode: str) -> None:
    it = problem(seed, count, mode)
    student = partial(it, seed)
    found = Distillation(student, it.sources, it.owners)(batch(it))
    expected = [errors_of(student, it, domain, x, it.owners[domain]) for domain, x in batch(it).items()]
    assert set(found.features) == {name for one in expected for name in one}
    for group, error in found.features.items():
        assert float(error.detach()) == pytest.approx(np.mean([one[group] for one in expected]), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_logits_are_compared_among_the_domains_classes(mode: str) -> None:
    it = problem(4, 3, mode)
    student = partial(it, 4)
    found = Distillation(student, it.sources, it.owners, features=0.5, logits=2.0, temperature=3.0)(batch(it))
    expected = []
    for domain, x in batch(it).items():
        columns = student.labels.columns(domain)
        mine = seen_by_layers(student.network, it, x)[1][:, columns]
        theirs = seen_by_layers(it.sources[it.owners[domain]], it, x)[1]
        p, q = (np.exp(one / 3) / np.exp(one / 3).sum(1, keepdims=True) for one in (theirs, mine))
        expected.append(9 * (p * np.log(p / q)).sum(1).mean())
        assert np.allclose(found.outputs[domain].detach(), mine, atol=1e-4)
    assert float(found.logits.detach()) == pytest.approx(np.mean(expected), rel=1e-4)
    features = torch.stack(list(found.features.values())).mean()
    assert torch.isclose(found.total, 0.5 * features + 2 * found.logits)


def test_domains_without_owner_follow_the_mean_of_all() -> None:
    it = problem(2, 3)
    student = partial(it, 2)
    first = dict(list(batch(it).items())[:1])
    found = Distillation(student, it.sources, {})(first)
    ((domain, x),) = first.items()
    for group, error in errors_of(student, it, domain, x, None).items():
        assert float(found.features[group].detach()) == pytest.approx(error, rel=1e-3, abs=1e-9)
    mean = np.mean([seen_by_layers(source, it, x)[1] for source in it.sources], 0)
    mine = seen_by_layers(student.network, it, x)[1]
    p, q = (np.exp(one / 2) / np.exp(one / 2).sum(1, keepdims=True) for one in (mean, mine))
    assert float(found.logits.detach()) == pytest.approx(4 * (p * np.log(p / q)).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize(("count", "mode"), [(2, "shared"), (2, "different"), (3, "shared"), (3, "different")])
def test_sources_side_by_side_have_nothing_to_learn(count: int, mode: str) -> None:
    it = problem(5, count, mode)
    apart = {group.name: UnitMap.apart((group.size,) * count) for group in it.spec.free}
    student = it.start({**it.fixed, **apart})
    found = Distillation(student, it.sources, it.owners)(batch(it))
    assert all(float(error.detach()) < 1e-9 for error in found.features.values())
    # shared heads of sources side by side read the mean of all: their logits are the ensemble's
    assert (float(found.logits.detach()) < 1e-6) == (mode == "different")


@pytest.mark.parametrize("seed", [1, 3])
def test_following_the_gradient_lowers_the_loss_and_leaves_the_sources_alone(seed: int) -> None:
    it = problem(seed, 2)
    student = partial(it, seed)
    for source in it.sources:
        source.requires_grad_(False)
    before = [copy.deepcopy(source.state_dict()) for source in it.sources]
    buffers = {name: tensor.clone() for name, tensor in student.named_buffers()}
    distillation, data = Distillation(student, it.sources, it.owners), batch(it)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = distillation(data).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(same_state(source.state_dict(), kept) for source, kept in zip(it.sources, before, strict=True))
    assert same_state(dict(student.named_buffers()), buffers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": -1.0}, "features is -1.0; allowed: 0 or more"),
        ({"logits": float("nan")}, "logits is nan; allowed: 0 or more"),
        ({"features": 0.0, "logits": 0.0}, "features and logits are both 0"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, float], message: str) -> None:
    it = problem(0, 2)
    with pytest.raises(ConfigurationError, match=message):
        Distillation(partial(it, 0), it.sources, it.owners, **options)


def test_all_sources_are_needed() -> None:
    it = problem(0, 3)
    with pytest.raises(ConfigurationError, match="sources holds 2 networks; the student was made of 3"):
        Distillation(partial(it, 0), it.sources[:2], it.owners)
