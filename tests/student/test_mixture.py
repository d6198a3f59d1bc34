"""Layers weighed for every picture: against sums over the sources, counted by hand and by torch, from their file."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    DOMAINS,
    PICTURE,
    close,
    make_problem,
    merge_case,
    pictures,
    random_network,
    resnet,
    same_state,
    traced,
)
from kinds import SIDE, kind
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import LayerNorm2d

from project import load_student, save_student
from project.allocation import executed_macs, nominal_macs, nominal_size
from project.errors import CheckpointError, ConfigurationError
from project.methods import EMR, SMILE, Average, Method, WEMoE
from project.models import Architecture, Preprocessing
from project.modules import RefineModule
from project.student import (
    BlendedLayer,
    Block,
    Learnt,
    LearntRouter,
    LowRankLayer,
    MixtureStudent,
    Projected,
    ProjectionRouter,
    RoutedNorm,
    experts,
    load_source,
)
from project.symmetry import sites

LAYERS = {
    "convolution": (nn.Conv2d(6, 4, 3, 2, 1), (6, 7, 5)),
    "dilated": (nn.Conv2d(6, 4, (3, 1), dilation=2, padding="same", bias=False), (6, 7, 5)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (6, 7, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 5)),
    "linear": (nn.Linear(6, 4), (6,)),
    "linear at positions": (nn.Linear(6, 4, bias=False), (3, 5, 6)),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    for index, one in enumerate(module.parameters()):
        one.data = random(*one.shape, seed=seed + index)
    return module.requires_grad_(False)


def changed(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    found = copy.deepcopy(layer)
    found.weight.data += weight
    if bias is not None:
        found.bias.data += bias
    return found


def counted(module: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("held", "positions"), [(1, 43), (2**26, 43), (1, 42)])
def test_a_blended_layer_is_another_for_every_picture(
    name: str, held: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels are put together one picture at a time, or of all pictures, or applied side by side."""
    monkeypatch.setattr(experts, "MAX_KERNEL_WEIGHTS", held)
    layer, shape = LAYERS[name]
    mixed = filled(BlendedLayer(copy.deepcopy(layer), 3, positions))
    values, gates = random(5, *shape, seed=9), random(5, 3, seed=8)
    assert isinstance(mixed, BlendedLayer)
    biases = torch.zeros(3) if mixed.constants is None else mixed.constants
    for picture, gate, found in zip(values, gates, mixed(values, gates), strict=True):
        bias = None if mixed.constants is None else gate @ biases
        expected = changed(mixed.layer, torch.einsum("s,s...->...", gate, mixed.experts), bias)(picture[None])[0]
        assert close(found, expected)
    plain = counted(mixed.layer, values[:1])
    there = plain // layer.weight.numel()
    assert counted(mixed, values[:1], gates[:1]) == plain + mixed.added(there, 3)
    if positions == 43:  # of three sources
        assert mixed.added(there, 3) == 3 * sum(one.numel() for one in layer.parameters())


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("grouped", "depthwise")])
def test_a_low_rank_layer_runs_the_experts_that_have_a_gate(name: str) -> None:
    layer, shape = LAYERS[name]
    mixed = filled(LowRankLayer(copy.deepcopy(layer), 3, 2))
    assert isinstance(mixed, LowRankLayer)
    values, gates = random(4, *shape, seed=9), torch.tensor([[1.0, 0, 0], [0, 0.3, 0.7], [0, 0, 0], [0, 0, 1]])
    for picture, gate, found in zip(values, gates, mixed(values, gates), strict=True):
        weight = torch.einsum("s,sor,sr...->o...", gate, mixed.up, mixed.down)
        bias = None if mixed.constants is None else gate @ mixed.constants
        assert close(found, changed(mixed.layer, weight, bias)(picture[None])[0])
    plain = counted(mixed.layer, values[:1])
    positions = mixed.layer(values[:1])[0].numel() // 4
    costs = [counted(mixed, values[i : i + 1], gates[i : i + 1]) - plain for i in range(4)]
    inputs = layer.weight[0].numel()
    assert costs == [kept * positions * 2 * (inputs + 4) for kept in (1, 2, 0, 1)]
    assert [mixed.added(positions, kept) for kept in (1, 2, 0)] == costs[:3]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(4), (4, 5, 3)),
        (nn.BatchNorm2d(4, affine=False), (4, 5, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), (4, 5, 3)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.GroupNorm(2, 4), (4, 5, 3)),
        (nn.LayerNorm(4), (5, 4)),
        (LayerNorm2d(4), (4, 5, 3)),
    ],
)
def test_a_routed_norm_weighs_the_sources(norm: nn.Module, shape: tuple[int, ...]) -> None:
    sources = [copy.deepcopy(norm) for _ in range(3)]
    for index, source in enumerate(sources):
        for name, one in source.state_dict().items():
            if one.is_floating_point():
                one.copy_(random(4, seed=index).abs() + 0.5 if name == "running_var" else random(4, seed=index))
        source.eval()
    mixed = RoutedNorm(norm, 4, 3).requires_grad_(False)
    mixed.load([source.state_dict() for source in sources])
    values, gates = random(5, *shape, seed=9), random(5, 3, seed=8).softmax(1)
    expected = sum(gates[:, i].view(-1, *(1,) * len(shape)) * source(values) for i, source in enumerate(sources))
    assert isinstance(expected, Tensor)
    assert close(mixed(values, gates), expected.detach())
    assert counted(mixed, values[:1], gates[:1]) == mixed.added(1, 1) == 2 * 3 * 4


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("top", [1, 2, 3])
def test_a_projection_router_follows_its_formula(name: str, top: int) -> None:
    layer, shape = LAYERS[name]
    router = filled(ProjectionRouter(layer, 3, 2, top))
    assert isinstance(router, ProjectionRouter)
    values = random(4, *shape, seed=9)
    for picture, gates in zip(values, router(values), strict=True):
        scores = []
        for mine in router.directions.chunk(3):
            found = (
                F.linear(picture, mine)
                if isinstance(layer, nn.Linear)
                else F.conv2d(picture[None], mine, None, layer.stride, layer.padding, layer.dilation)[0].movedim(0, -1)
            )
            scores.append(float(found.square().sum(-1).sqrt().mean()))
        best = sorted(range(3), key=lambda one: -scores[one])[:top]
        shares = torch.tensor([scores[one] for one in best]).double().softmax(0)
        assert [int(one) for one in gates.nonzero()[:, 0]] == sorted(best)
        assert torch.allclose(gates[best].double(), shares, atol=1e-5)
    assert counted(router, values[:1]) == router.added(layer(values[:1])[0].numel() // len(layer.weight))


def test_a_learnt_router_starts_from_one_number() -> None:
    for layer, shape in LAYERS.values():
        router = LearntRouter(layer, 3, 5).requires_grad_(False)
        router.reset(0.3, 0.0, torch.Generator())
        values = random(4, *shape)
        assert torch.equal(router(values), torch.full((4, 3), 0.3))
        router.reset(0.3, 0.5, torch.Generator().manual_seed(1))
        read = values if values.dim() == 2 else values.mean((2, 3) if isinstance(layer, nn.Conv2d) else (1, 2))
        hidden = (read @ router.inner.weight.mT).relu()
        assert torch.allclose(router(values), hidden @ router.outer.weight.mT + 0.3, atol=1e-6)
        assert counted(router, values[:1]) == router.added(1) == 6 * 5 + 5 * 3


def blocks_of(network: nn.Module, shape: tuple[int, int, int]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    spec = traced(network, shape)
    layers = {layer.name for layer in spec.layers}
    for one in sites(network, spec):
        if one.apart and one.name in layers:
            found.setdefault(one.block, []).append(one.name)
    return list(found.values())


def test_blocks_are_what_lies_between_values_that_all_passes_through() -> None:
    found = blocks_of(resnet("resnet18"), (3, 64, 64))
    assert found[:2] == [["conv1"], ["layer1.0.conv1", "layer1.0.conv2"]]
    assert found[3] == ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]
    assert len(found) == 10
    assert found[-1] == ["fc"]
    shape = (3, SIDE, SIDE)
    transformer = blocks_of(kind("transformer", 0), shape)
    assert [len(block) for block in transformer] == [1, 4, 2, 4, 2, 1], "patches, attention, perceptron, …, head"
    assert [len(block) for block in blocks_of(kind("concatenated", 0), shape)] == [1, 2, 1]
    assert blocks_of(kind("attention", 0), shape) == [["stem", "other"], ["head"]], "its batch is on the second axis"


def student_of(
    method: Method, mode: str = "shared", structure: int = 0, base: nn.Module | None = None
) -> MixtureStudent:
    sources = [random_network(structure, i + 1) for i in range(3)]
    it = make_problem(sources, mode, needs=(), base=random_network(structure, 0) if base is None else base)
    (merged,) = merge_case(method, it, [1.0])
    assert isinstance(merged.student, MixtureStudent)
    return merged.student


METHODS = {
    "smile": lambda: SMILE(rank=1),
    "smile, full": lambda: SMILE(rank=99, gate_rank=2, top=2),
    "smile, merged norms": lambda: SMILE(rank=2, norms="merged"),
    "wemoe": lambda: WEMoE(steps=1, hidden=3),
    "wemoe, all": lambda: WEMoE(steps=0, blocks=1.0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("structure", "mode"),
    [
        (0, "shared"), (1, "different"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, "shared"), (3, "different"))),
    ],
)  # fmt: skip
def test_sizes_are_what_torch_counts(name: str, structure: int, mode: str) -> None:
    student = student_of(METHODS[name](), mode, structure)
    assert student.macs == executed_macs(student, PICTURE)
    assert student.macs > nominal_macs(student.spec, student.maps)
    parameters, buffers = (list(it) for it in (student.network.parameters(), student.network.buffers()))
    assert student.held == sum(one.numel() for one in parameters)
    assert student.bytes == sum(one.numel() * one.element_size() for one in (*parameters, *buffers))
    features = student.outputs(pictures(2, 0))[1]
    assert features.shape == (2, student.features)


def test_sizes_by_hand() -> None:
    """conv 3 → 8, 3×3, on 6×6; norm; linear 8 → 5: one of 3 experts of rank 1 runs, all of them are held."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip
    sources = [filled(copy.deepcopy(network), seed) for seed in (10, 20, 30)]
    it = make_problem(sources, needs=(), shape=(3, 8, 8), base=network, batches=[("art", pictures(2, 0, (3, 8, 8)))])
    (merged,) = merge_case(SMILE(rank=1, gate_rank=1), it, [1.0])
    convolution = 36 * (8 * 27 + 3 * 27 + (27 + 8))  # W₀, three directions, one expert
    norm = 2 * 3 * 8
    linear = 8 * 5 + 3 * 8 + (8 + 5)
    assert merged.student.macs == executed_macs(merged.student, (3, 8, 8)) == convolution + norm + linear
    held = 8 * 27 + 3 * (27 + 27 + 8) + 2 * 3 * 8 + (8 * 5 + 5) + 3 * (8 + (8 + 5) + 5)
    assert merged.student.held == held
    assert merged.student.bytes == 4 * held
    router = 3 * 2 + 2 * 3
    for side, weighing in ((8, 3 * 36 * 216), (16, 3 * 216)):  # on 6×6, side by side; on 14×14, as one kernel
        shape, positions = (3, side, side), (side - 2) ** 2
        it = make_problem(sources, needs=(), shape=shape, base=network, batches=[("art", pictures(2, 0, shape))])
        student = next(merge_case(WEMoE(steps=0, hidden=2), it, [1.0])).student
        assert student.macs == executed_macs(student, shape) == positions * 216 + router + weighing + 40
        held = 216 + 3 * 216 + (router + 2 + 3) + 2 * 8 + 45
        assert student.held == held
        assert student.bytes == 4 * (held + 2 * 8) + 8, "mean and variance, and the batch counter"


def test_sizes_of_other_students() -> None:
    it = make_problem([random_network(0, i) for i in range(2)], needs=(), base="mean")
    for method in (Average(), EMR()):
        (merged,) = merge_case(method, it, [1.0])
        student = merged.student
        assert student.macs == nominal_macs(it.spec, student.maps)
        plain = nominal_size(it.spec, student.maps, "bytes")
        beside = [] if student.plain else [one for name, one in student.named_buffers() if "." not in name]
        assert student.bytes == plain + sum(one.numel() * one.element_size() for one in beside)
        assert (student.bytes == plain) == student.plain


@pytest.mark.parametrize(("name", "mode"), list(zip(METHODS, itertools.cycle(["different", "shared"]), strict=False)))
def test_from_its_file_alone(name: str, mode: str, tmp_path: Path) -> None:
    sources = [resnet("resnet20", i + 1) for i in range(3)]
    shape = (3, 16, 16)
    it = make_problem(
        sources, mode, needs=(), base=resnet("resnet20", 0), shape=shape, architecture=Architecture("resnet20", 5),
        preprocessing=Preprocessing(16),
    )  # fmt: skip
    (merged,) = merge_case(METHODS[name](), it, [1.0])
    student, batch, path = merged.student, pictures(3, 7, shape), tmp_path / "mixture.ckpt"
    if mode == "different":
        student.fit_gate([student.outputs(pictures(12, i, shape))[1].detach() for i in range(3)])
    save_student(student, path)
    loaded = load_student(path)
    assert isinstance(loaded, MixtureStudent)
    assert not any(module.training for module in loaded.modules())
    assert same_state(loaded.state_dict(), student.state_dict())
    assert (loaded.macs, loaded.bytes, loaded.entries) == (student.macs, student.bytes, student.entries)
    with torch.no_grad():
        assert torch.equal(loaded(batch), student(batch))
    for domain in DOMAINS[:3]:
        assert torch.equal(loaded.probabilities(batch, domain), student.probabilities(batch, domain))
    assert torch.equal(loaded.probabilities(batch), student.probabilities(batch)), "nobody tells the domain"
    assert abs(path.stat().st_size - student.bytes) < 0.15 * student.bytes + 1e5
    with pytest.raises(CheckpointError, match="others for every picture"):
        load_source(path)
    content = torch.load(path, weights_only=True)
    spoils = ({"layers": {"nothing": 0}}, {"router": {}}, {"router": {"hidden": 7}})
    for spoil in spoils if name in ("smile", "wemoe") else spoils[:0]:  # one of each kind
        spoilt = {**content, "mixture": [{**content["mixture"][0], **spoil}, *content["mixture"][1:]]}
        torch.save(spoilt, path)
        with pytest.raises(CheckpointError, match=r"not its architecture's|does not fit the architecture"):
            load_student(path)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the file of a mixture of three ResNets holds."""
    shape, path = (3, 16, 16), tmp_path_factory.mktemp("mixture") / "mixture.ckpt"
    it = make_problem(
        [resnet("resnet20", i + 1) for i in range(3)], needs=(), base=resnet("resnet20", 0), shape=shape, batches=[],
        architecture=Architecture("resnet20", 5), preprocessing=Preprocessing(16),
    )  # fmt: skip
    (merged,) = merge_case(SMILE(rank=1), it, [1.0])
    save_student(merged.student, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"layers": {}}, "cannot be put together: a block has no layers"),
        ({"layers": {"conv1": -1}}, "'conv1' of a block is -1; allowed: integers from 0"),
        ({"layers": {"conv1": 1.5}}, "'conv1' of a block is 1.5; allowed: integers from 0"),
        ({"layers": {"conv1": 10**17}}, "not its architecture's"),
        ({"layers": {"fc": 0, "conv1": 0}}, "not its architecture's"),
        ({"layers": {"bn1": 0}}, "not its architecture's"),
        ({"router": {"rank": -2, "top": 1}}, "'rank' of a block is -2; allowed: integers from 1"),
        ({"router": {"rank": 1, "top": 0}}, "'top' of a block is 0; allowed: integers from 1"),
        ({"router": {"rank": 1, "top": 4}}, "'top' of a block is 4, but there are 3 sources"),
        ({"router": {"hidden": "many"}}, "'hidden' of a block is 'many'; allowed: integers from 1"),
        ({"router": 3}, "not its architecture's"),
        ({"norms": ["conv1"]}, "not its architecture's"),
    ],
)
def test_spoilt_files_are_told_in_a_sentence(
    spoil: dict[str, object], words: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "mixture.ckpt"
    torch.save({**content, "mixture": [{**content["mixture"][0], **spoil}, *content["mixture"][1:]]}, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_student(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_it_cannot_be_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(SMILE(rank=1))
    monkeypatch.setattr("project.modules.refine.load_student", lambda path, architecture: student)
    monkeypatch.setattr("project.modules.refine.data_labels", lambda module: student.labels)
    module = RefineModule(tmp_path / "smile.ckpt", [])
    module._trainer = type("Nothing", (), {"datamodule": None})()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="not one network for all pictures"):
        module.setup("fit")


def test_a_block_as_plain_values() -> None:
    for block in (Block(Learnt(4), {"a": 0, "b": 0}), Block(Projected(1, 2), {"a": 3}, ("n",))):
        assert Block.of(block.plain) == block
