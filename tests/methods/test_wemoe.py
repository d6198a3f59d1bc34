"""WEMoE: task arithmetic before it is trained, the owner's layers with its gate, more certain once it is trained."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    DOMAINS,
    Case,
    close,
    estimate_case,
    make_problem,
    merge_case,
    message_of,
    permuted_copy,
    pictures,
    prepare_case,
    random_network,
    resnet,
    same_state,
)
from meeting import dealt, together
from torch import Tensor, nn

from project.allocation import Budget
from project.errors import ConfigurationError, MergeError
from project.fit.memory_estimate import picture_bytes
from project.merging.students import fitted
from project.methods import Merged, TaskArithmetic, WEMoE
from project.methods.shared.routing import Curves, train_routers
from project.moments import PICTURES
from project.runtime import Progress, World
from project.student import MixtureStudent, batch_norms, experts, reestimate
from project.symmetry import trace


def only(method: WEMoE, it: Case) -> tuple[Merged, MixtureStudent]:
    prepare_case(method, it, {}, [1.0])
    (merged,) = merge_case(method, it, [2.0])
    assert merged.name == f"{method.name}-1.00"
    assert not merged.settled
    assert isinstance(merged.student, MixtureStudent)
    return merged, merged.student


@torch.no_grad()
def run(network: nn.Module, batch: Tensor) -> Tensor:
    return network(batch)


def problem(structure: int, mode: str = "shared", count: int = 3) -> Case:
    sources = [random_network(structure, i + 1) for i in range(count)]
    return make_problem(sources, mode, needs=(), base=random_network(structure, 0))


def gated(student: MixtureStudent, gates: list[float]) -> None:
    """Routers that say this of every picture."""
    for router in student.routers:
        for one in router.parameters():
            one.data.zero_()
        router.outer.bias.data.copy_(torch.tensor(gates))  # type: ignore[union-attr]


@pytest.mark.parametrize("structure", range(4))
@pytest.mark.parametrize("mode", ["shared", "different"])
def test_untrained_it_is_task_arithmetic(structure: int, mode: str) -> None:
    it, batch = problem(structure, mode), pictures(4, 7)
    (expected,) = merge_case(TaskArithmetic(0.4), it, [1.0])
    for blocks in (0.5, 1.0, r"\d"):
        _, student = only(WEMoE(0.4, blocks, steps=0), it)
        for router in student.routers:
            assert torch.equal(router.outer.bias, torch.full((3,), 0.4))  # type: ignore[union-attr]
            assert 0 < float(router.inner.weight.detach().std()) < 0.02, "near 0, so that it can be trained"  # type: ignore[union-attr, operator]
        gated(student, [0.4] * 3)
        assert close(run(student, batch), run(expected.student, batch), 1e-4)
        reestimate(student.network, [pictures(20, 1)])
        other = copy.deepcopy(expected.student)
        reestimate(other.network, [pictures(20, 1)])
        assert close(run(student, batch), run(other, batch), 1e-3)


def test_with_the_gate_of_one_source_the_layers_are_its_own() -> None:
    it = problem(1)
    _, student = only(WEMoE(blocks=1.0, steps=0), it)
    chosen = [name for block in student.blocks for name in block.layers]
    assert len(chosen) == len(it.spec.layers) - 1, "all but the head"
    (expected,) = merge_case(TaskArithmetic(), it, [1.0])
    for index, source in enumerate(it.sources):
        gated(student, [float(index == i) for i in range(3)])
        network = expected.student.network
        for name in chosen:
            network.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
        assert close(run(student, pictures(4, 7)), run(network, pictures(4, 7)), 1e-4)


def test_by_hand() -> None:
    """Kernels (2, 1) and (1, 3) from the base's (1, 1), gates 0.5 and 2: 1.5 · 3 + 5 · 10."""

    def network(*kernel: float) -> nn.Module:
        plain = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        state = {
            "0.weight": torch.tensor([*kernel, 0.0]).view(1, 3, 1, 1),
            "3.weight": torch.tensor([[2.0], [-1.0]]),
            "3.bias": torch.zeros(2),
        }
        plain.load_state_dict(state)
        return plain.eval()

    it = make_problem([network(2, 1), network(1, 3)], needs=(), base=network(1, 1))
    _, student = only(WEMoE(blocks=1.0, steps=0), it)
    gated(student, [0.5, 2.0])
    batch = torch.tensor([3.0, 10.0, 7.0]).view(1, 3, 1, 1).expand(1, 3, 5, 5)
    assert run(student, batch)[0].tolist() == pytest.approx([2 * 54.5, -54.5])


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_equal_sources_come_back_however_they_are_routed(mode: str) -> None:
    source, batch = random_network(2, 2), pictures(4, 7)
    it = make_problem([source] * 3, mode, needs=(), base="mean")
    _, student = only(WEMoE(steps=3, rate=0.1), it)
    assert close(run(student, batch), run(source, batch).repeat(1, 3 if mode == "different" else 1), 1e-4)
    other = make_problem([source] * 3, mode, needs=(), base=random_network(2, 5))
    _, student = only(WEMoE(1 / 3, steps=0), other)
    gated(student, [0.5, 0.2, 0.3])
    assert close(run(student, batch), run(source, batch).repeat(1, 3 if mode == "different" else 1), 1e-4)


@pytest.mark.parametrize("mode", [pytest.param("shared", marks=pytest.mark.slow), "different"])
def test_training_makes_predictions_certain_and_touches_routers_alone(mode: str) -> None:
    it = problem(0, mode)
    _, before = only(WEMoE(steps=0), it)
    merged, student = only(WEMoE(steps=40, rate=0.01), it)
    curve = merged.curves["entropy"]["all layers"]
    assert list(curve) == list(range(40))
    assert sum(curve[step] for step in range(35, 40)) < 0.9 * sum(curve[step] for step in range(5))
    assert set(merged.curves["own gate"]) == {next(iter(block.layers)) for block in student.blocks}
    assert merged.curves["own gate"][next(iter(student.blocks[0].layers))][0] == pytest.approx(0.3, abs=0.05)
    for name, one in student.state_dict().items():
        same = torch.equal(one, before.state_dict()[name])
        assert same != name.startswith("network.routers."), name
    assert all(one.requires_grad and one.grad is None for one in student.parameters())
    assert not any(module.training for module in student.modules())
    _, again = only(WEMoE(steps=40, rate=0.01), it)
    assert same_state(again.state_dict(), student.state_dict())
    _, other = only(WEMoE(steps=40, rate=0.01, seed=1), it)
    assert not same_state(other.state_dict(), student.state_dict())


def test_gradients_are_those_of_the_mean_entropy() -> None:
    """One step of Adam goes by the gradient's sign: of the domains' mean entropies, in statistics of all pictures."""
    shown = {domain: [pictures(n, i)] for i, (domain, n) in enumerate(zip(DOMAINS[:2], (5, 2), strict=True))}
    it = replace(problem(0, count=2), pictures=shown)
    _, before = only(WEMoE(steps=0), it)
    merged, after = only(WEMoE(steps=1, batch=5, rate=1e-4), it)
    student = copy.deepcopy(before)
    for norm in batch_norms(student.network).values():
        norm.train()
    shares = student(torch.cat([pictures(5, 0), pictures(2, 1)])).softmax(1)
    uncertain = -(shares * shares.log()).sum(1)
    loss = (uncertain[:5].mean() + uncertain[5:].mean()) / 2
    loss.backward()
    assert merged.curves["entropy"]["all layers"][0] == pytest.approx(loss.item(), rel=1e-5)
    assert loss.item() != pytest.approx(uncertain.mean().item(), rel=1e-5)
    largest = max(float(one.grad.abs().max()) for router in student.routers for one in router.parameters())  # type: ignore[union-attr]
    pairs = zip(before.routers, after.routers, student.routers, strict=True)
    for old, new, mine in pairs:
        for name, one in mine.named_parameters():
            moved = new.get_parameter(name) - old.get_parameter(name)
            large = one.grad.abs() > 1e-3 * largest  # type: ignore[union-attr]  # the sign of less may be rounding's
            assert torch.equal(moved.sign()[large], -one.grad.sign()[large])  # type: ignore[union-attr]
    assert largest > 0


def test_what_is_no_longer_finite_is_told() -> None:
    with pytest.raises(MergeError, match="no longer finite; take a smaller rate"):
        only(WEMoE(steps=3, rate=1e30), problem(0))


def test_processes_train_what_one_trains() -> None:
    """Entropies and gates of every step, of batches of which each has a share."""
    it = problem(0)
    students = [only(WEMoE(steps=0), it)[1] for _ in range(2)]

    def trained(world: World) -> tuple[Curves, dict[str, Tensor]]:
        student, here = students[world.rank], dealt(it, world)
        curves = train_routers(student, here, here.pictures, world, steps=3, rate=1e-4, batch=9, seed=0)
        return curves, dict(student.state_dict())

    alone = only(WEMoE(steps=3, batch=9), it)[0].curves
    (one, first), (two, second) = together(2, trained)
    assert one == two
    assert same_state(first, second)
    for quantity, curves in alone.items():
        for name, steps in curves.items():
            for step, value in steps.items():
                # Adam's steps of gradients that are but rounding have either sign; a router's rate is 1e-4.
                bound = 1e-5 if step == 0 else 1e-3
                assert one[quantity][name][step] == pytest.approx(value, rel=bound, abs=bound), (quantity, step)


def test_pictures_without_a_head_are_refused_before_the_run() -> None:
    it = make_problem([resnet("resnet20", i) for i in range(2)], "different", shape=(3, 16, 16), base="mean", needs=())
    with pytest.raises(ConfigurationError, match="which has none"):
        prepare_case(WEMoE(), it, {"public": 4}, [1.0])
    prepare_case(WEMoE(steps=0), it, {"public": 4}, [1.0])


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (0.5, ["layer3.0", "layer3.1", "layer4.0", "layer4.1"]),
        (0.01, ["layer4.1"]),
        (r"layer[34]\.", ["layer3.0", "layer3.1", "layer4.0", "layer4.1"]),
        (r"layer4.*conv2", ["layer4.0", "layer4.1"]),
        ("conv1", ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))]),
    ],
)
def test_blocks(blocks: float | str, expected: list[str]) -> None:
    sources = [resnet("resnet18", i) for i in range(2)]
    it = make_problem(sources, needs=(), shape=(3, 32, 32), base="mean", batches=[])
    method = WEMoE(blocks=blocks, steps=0)
    chosen = method._chosen(it)
    assert [block[0].removesuffix(".conv1").removesuffix(".conv2") for block in chosen] == expected
    if blocks == 0.5:
        assert chosen[0] == ["layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0"]
    told = message_of(method, it)
    assert told is not None
    assert all(", ".join(block) in told for block in chosen)


def test_sources_of_different_bases_are_aligned_to_their_mean() -> None:
    network = random_network(2, 2)
    twin = copy.deepcopy(network)
    permuted_copy(network, twin, trace(network, (3, 11, 13)), 0)
    it, batch = make_problem([network, twin], needs=(), base="mean"), pictures(4, 7)
    merged, student = only(WEMoE(align="weights", steps=2), it)
    assert merged.matches
    assert close(run(student, batch), run(network, batch), 1e-3)


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_an_interrupted_merge_recalls_it(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = replace(problem(0, mode), progress=Progress(tmp_path))
    ((_, first),) = fitted([WEMoE(steps=2)], it, it.evidence, it.run, [Budget(1.0)])
    monkeypatch.setattr(WEMoE, "merge", lambda *_: pytest.fail("it is there"))
    ((_, second),) = fitted([WEMoE(steps=2)], it, it.evidence, it.run, [Budget(1.0)])
    assert isinstance(second.student, MixtureStudent)
    assert same_state(first.student.state_dict(), second.student.state_dict())
    assert torch.equal(run(first.student, pictures(3, 7)), run(second.student, pictures(3, 7)))
    assert (first.curves, first.settled) == (second.curves, second.settled)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": -1.0}, "scale is -1.0; allowed: 0 or more"),
        ({"blocks": 0.0}, "blocks is 0.0; allowed: above 0, up to 1"),
        ({"blocks": "layer["}, r"blocks is 'layer\[', which is no regular expression"),
        ({"hidden": 0}, "hidden is 0; allowed: whole numbers from 1"),
        ({"steps": -1}, "steps is -1; allowed: whole numbers from 0"),
        ({"rate": 0.0}, "rate is 0.0; allowed: above 0"),
        ({"batch": 0}, "batch is 0; allowed: whole numbers from 1"),
        ({"seed": -1}, "seed is -1; allowed: whole numbers from 0"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        WEMoE(**arguments)  # type: ignore[arg-type]


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WEMoE().needs == {PICTURES}
    assert WEMoE(steps=0).needs == set()
    it = problem(0)
    with pytest.raises(ConfigurationError, match="method wemoe needs base"):
        prepare_case(WEMoE(), replace(it, base=None), {}, [1.0])
    with pytest.raises(ConfigurationError, match="blocks of method wemoe is 'layer7', which chooses no layer"):
        prepare_case(WEMoE(blocks="layer7"), it, {}, [1.0])
    with pytest.raises(ConfigurationError, match="align of method wemoe is 'weights'"):
        prepare_case(WEMoE(align="weights"), it, {}, [1.0])
    with pytest.raises(MergeError, match="method wemoe needs the calibration pictures, which"):
        list(merge_case(WEMoE(), replace(it, pictures={}), [1.0]))
    plain, one, two = (
        estimate_case(WEMoE(steps=steps), it, {"art": count}, [1.0], 4) for steps, count in ((0, 20), (9, 20), (9, 21))
    )
    assert two.whole - one.whole == picture_bytes(it.spec, 1) == 4 * 3 * it.spec.picture[1] * it.spec.picture[2]
    step = one.least - plain.least
    assert 0 < step == one.whole - plain.whole - picture_bytes(it.spec, 20), "networks stay while routers are trained"
    monkeypatch.setattr(experts, "MAX_SIDE_BY_SIDE", 0)  # a kernel with its gradient each; or what all sources make
    kernels = estimate_case(WEMoE(steps=9), it, {"art": 20}, [1.0], 4).least - plain.least
    chosen = {name for block in WEMoE()._chosen(it) for name in block}
    layers = [layer for layer in it.spec.layers if layer.name in chosen]
    weights = sum(it.sources[0].get_submodule(layer.name).weight.numel() for layer in layers)  # type: ignore[union-attr, operator]
    values = sum(it.spec.sizes[layer.outputs] * layer.positions for layer in layers)
    assert kernels - step == 4 * WEMoE().batch * (2 * weights - len(it.sources) * values)
    assert (
        estimate_case(WEMoE(), it, {"art": 10}, [1.0], 4).whole
        > estimate_case(WEMoE(steps=0), it, {"art": 10}, [1.0], 4).whole
    )
