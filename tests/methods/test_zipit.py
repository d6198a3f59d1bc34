"""ZipIt: on copies and duplicates it changes nothing, and always it is Σ Mᵢ Wᵢ Uᵢ."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import (
    DOMAINS,
    PICTURE,
    Case,
    close,
    estimate_case,
    make_problem,
    message_of,
    only,
    permuted_family,
    pictures,
    prepare_case,
    random_network,
    randomised,
    resnet,
    same_state,
)
from kinds import SIDE, kind
from torch import nn

from project.alignment import UnitMap, Zipping
from project.alignment.zip_sets import Zip
from project.allocation import Budget
from project.errors import ConfigurationError, MergeError
from project.fit import Distillation
from project.merging.students import fitted
from project.methods import MaTS, ZipIt
from project.models import Architecture, Preprocessing
from project.moments import UNITS, Statistics
from project.runtime import Progress
from project.student import load_source, load_student, save_student

SHAPE = (3, SIDE, SIDE)
SLOW = pytest.mark.slow
SPACES = ("activations", "weights", "both")


@cache
def family(structure: int, count: int) -> Case:
    network = random_network(structure, structure)
    return twins(network, count, PICTURE)


def twins(network: nn.Module, count: int, shape: tuple[int, int, int]) -> Case:
    return make_problem(permuted_family(network, count, shape), shape=shape, needs=(UNITS,))


@cache
def strangers(structure: int, count: int, mode: str = "shared") -> Case:
    classes = [5] * count if mode == "shared" else [3 + index for index in range(count)]
    return make_problem(
        [random_network(structure, weights, classes[weights]) for weights in range(count)], mode, needs=(UNITS,)
    )


@pytest.mark.parametrize("within", [0.0, 1.0])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("structure", "count"), [(1, 2), (2, 3), pytest.param(4, 2, marks=SLOW)])
def test_permuted_copies_merge_to_themselves(structure: int, count: int, space: str, within: float) -> None:
    it, batch = family(structure, count), pictures(4, 7)
    merged = only(ZipIt(space, within), it)  # type: ignore[arg-type]
    assert merged.name == "zipit-1.00"
    assert not merged.settled
    assert not merged.student.zipped
    with torch.no_grad():
        assert close(merged.student(batch), it.sources[0](batch), 1e-4)


@pytest.mark.parametrize("within", [0.0, 1.0])
def test_identical_sources_come_back(within: float) -> None:
    network = random_network(2, 0)
    it = make_problem([network, copy.deepcopy(network), copy.deepcopy(network)], needs=(UNITS,))
    for space in SPACES:
        found = only(ZipIt(space, within), it).student.network.state_dict()  # type: ignore[arg-type]
        assert all(torch.allclose(found[name], one) for name, one in network.state_dict().items())


@pytest.mark.parametrize(
    ("structure", "count", "space"),
    [
        *((1, 2, space) for space in SPACES),
        (2, 4, "activations"),
        *(pytest.param(2, 4, space, marks=SLOW) for space in SPACES[1:]),
        *(pytest.param(3, 3, space, marks=SLOW) for space in SPACES),
    ],
)
def test_nothing_within_is_a_permuted_average(structure: int, count: int, space: str) -> None:
    it, method = strangers(structure, count), ZipIt(space, 0.0)  # type: ignore[arg-type]
    found = method.zip(it, it.evidence, it.world)
    maps = {}
    for name, zipped in found.zips.items():
        assert zipped.members is not None
        maps[name] = UnitMap.sorted(zipped.members)
    expected = it.start({**it.fixed, **maps}).network.state_dict()
    merged = only(method, it).student
    assert not merged.zipped
    for name, values in merged.network.state_dict().items():
        assert torch.allclose(values, expected[name], atol=1e-6), name


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("structure", "count"),
    [(0, 2), pytest.param(1, 3, marks=SLOW), pytest.param(4, 2, marks=SLOW), pytest.param(7, 2, marks=SLOW)],
)
def test_weights_are_products_with_the_matrices(structure: int, count: int, space: str, mode: str) -> None:
    """Σ Mᵢ Wᵢ Uᵢ, written out; every unit of every source in one set."""
    it, method = strangers(structure, count, mode), ZipIt(space, repeat=0.9)  # type: ignore[arg-type]
    found, spec = method.zip(it, it.evidence, it.world), it.spec
    unmerge, merge = {}, {}
    for group in spec.groups.values():
        sets = found.zips[group.name].sets if group.name in found.zips else torch.arange(group.size)[:, None]
        counts = sets.flatten().bincount(minlength=group.size) if group.name in found.zips else torch.tensor(count)
        assert int(counts.min()) > 0
        one_hot = [torch.eye(group.size, dtype=torch.float64)[column] for column in sets.expand(-1, count).unbind(1)]
        unmerge[group.name], merge[group.name] = (
            one_hot,
            [one.mT / counts.expand(group.size)[:, None] for one in one_hot],
        )
    merged = only(method, it)
    student = merged.student.network
    assert any(zipped.members is None for zipped in found.zips.values()), "this is to be about merges within"
    assert merged.student.zipped
    for layer in spec.layers:
        apart = mode == "different" and layer.name == spec.head.name
        parts = []
        for index, source in enumerate(it.sources):
            weight = source.get_submodule(layer.name).weight.double()
            wide = torch.kron(unmerge[layer.inputs][index], torch.eye(layer.taps, dtype=torch.float64))
            inner = weight.flatten(1) @ wide
            parts.append(inner if apart else merge[layer.outputs][index] @ inner)
        expected = torch.cat(parts) if apart else torch.stack(parts).sum(0)
        assert close(student.get_submodule(layer.name).weight.double().flatten(1), expected, 1e-5), layer.name
    for norm in spec.norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensors = [getattr(source.get_submodule(norm.name), name) for source in it.sources]
            if tensors[0] is not None:
                expected = sum(m @ one.double() for m, one in zip(merge[norm.group], tensors, strict=True))
                assert close(getattr(student.get_submodule(norm.name), name).double(), expected, 1e-5)


def doubled(seed: int, classes: int, *, same: bool) -> nn.Module:
    """Every hidden unit is there twice; with ``same`` what reads it makes no difference between the two."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip
    randomised(network, seed)
    with torch.no_grad():
        for layer in (network[0], network[1], network[3]):
            for name, tensor in layer.state_dict().items():
                if tensor.dim():
                    getattr(layer, name)[1::2] = tensor[::2]
        if same:
            network[3].weight[:, 1::2] = network[3].weight[:, ::2]
            weight = network[7].weight.view(classes, 4, 4)  # channels × positions
            weight[:, 1::2] = weight[:, ::2]
    return network


@pytest.mark.parametrize("space", SPACES)
def test_units_that_are_there_twice_make_room_for_another_source(space: str) -> None:
    """Six and four units of each source do the work of three and two: both fit into one, and nothing is lost."""
    sources = [doubled(0, 4, same=space != "activations"), doubled(1, 3, same=space != "activations")]
    it, batch = make_problem(sources, "different", needs=(UNITS,)), pictures(5, 9)
    merged = only(ZipIt(space), it)  # type: ignore[arg-type]
    for zipped in ZipIt(space).zip(it, it.evidence, it.world).zips.values():  # type: ignore[arg-type]
        assert zipped.sets[::2].tolist() == zipped.sets[1::2].tolist()
        assert sorted(zipped.sets[::2].flatten().tolist()) == list(range(len(zipped.sets)))
    assert merged.student.zipped
    assert all(score == pytest.approx(1.0, abs=1e-4) for score in merged.matches.values())
    with torch.no_grad():
        expected = torch.cat([source(batch) for source in sources], 1)
        assert close(merged.student(batch), expected, 1e-5)
        apart = only(ZipIt(space, within=0.0), it).student  # type: ignore[arg-type]
        assert not close(apart(batch), expected, 1e-1)


def test_by_hand() -> None:
    """One hidden unit doubled in the first source, two merges: w = (1, 1), (2, 2) against (3, 4)."""

    def source(weights: Sequence[float], head: Sequence[float]) -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
        with torch.no_grad():
            network[0].weight.copy_(
                torch.tensor(weights)[:, None, None, None] * torch.tensor([1.0, 0, 0])[:, None, None]
            )
            network[0].bias.zero_()
            network[3].weight.copy_(torch.tensor([head, head]))
            network[3].bias.zero_()
        return network

    first, second = source([2.0, 2.0], [5.0, 7.0]), source([-3.0, 4.0], [1.0, 10.0])
    it = make_problem([first, second], needs=(UNITS,))
    # Units of the first do the same, and that of the second's 4: a tie of three; its −3 stays alone.
    student = only(ZipIt(within=1.0, repeat=1.0), it).student.network
    assert student[0].weight[:, 0, 0, 0].tolist() == pytest.approx([8 / 3, -3.0])
    assert student[3].weight[0].tolist() == pytest.approx([(5 + 7 + 10) / 2, 1 / 2])


def test_the_order_of_the_sources_does_not_matter() -> None:
    sources = [random_network(1, weights) for weights in range(3)]
    batches = [(domain, pictures(20, i)) for i, domain in enumerate(DOMAINS[:3])]
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = only(ZipIt(), make_problem([sources[i] for i in order], needs=(UNITS,), batches=batches))
        with torch.no_grad():
            found.append(merged.student(pictures(4, 7)))
    assert close(found[1], found[0], 1e-4)


@pytest.mark.parametrize(("count", "space"), [pytest.param(3, "weights", marks=SLOW), (2, "both")])
@pytest.mark.parametrize(
    "name", ["attention", "transformer", "grouped", "group norm", "convnext", "dense", "concatenated"]
)
def test_structured_networks(name: str, count: int, space: str) -> None:
    """Copies come back; of others, blocks stay whole, those of tied groups together, and units are zipped within."""
    method = ZipIt(space)  # type: ignore[arg-type]
    it, batch = twins(kind(name, 0), count, SHAPE), pictures(4, 7, SHAPE)
    with torch.no_grad():
        assert close(only(method, it).student(batch), it.sources[0](batch), 1e-4)
    it = make_problem([kind(name, seed) for seed in range(count)], shape=SHAPE, needs=(UNITS,))
    found = method.zip(it, it.evidence, it.world)
    assert set(found.zips) == {group.name for group in it.spec.free}
    for group in it.spec.free:
        zipped = found.zips[group.name]
        size = group.size // group.blocks
        assert zipped.counts.view(group.blocks, size).sum(1).tolist() == [count * size] * group.blocks
        for other in it.spec.tied(group):
            assert torch.equal(found.zips[other.name].homes, zipped.homes)
        for index in range(count):
            homes = (zipped.sets[:, index] // size).view(group.blocks, size)
            assert bool((homes == homes[:, :1]).all())
            assert homes[:, 0].sort().values.tolist() == list(range(group.blocks))
    kept = {group.name for group in it.spec.free if it.spec.normalised(group)}
    assert all(found.zips[group].members is not None for group in kept)
    within = any(zipped.members is None for zipped in found.zips.values())
    assert within == (name != "group norm"), "there all units are normalised together"
    told = message_of(ZipIt(), it)
    assert told is None if not kept else told is not None and all(group in told for group in kept)
    with torch.no_grad():
        assert torch.isfinite(only(method, it).student(batch)).all()


def written_out(weight: torch.Tensor, blocks: int) -> torch.Tensor:
    """A grouped convolution's weight with its zeros, flat: (outputs, inputs · taps)."""
    return torch.block_diag(*weight.double().flatten(1).chunk(blocks))


@pytest.mark.parametrize(
    ("name", "space"),
    [
        *(("grouped", "activations"), ("grouped", "weights"), ("multiplied", "both")),
        *(pytest.param("multiplied", space, marks=SLOW) for space in SPACES[:2]),
        pytest.param("grouped", "both", marks=SLOW),
    ],
)
def test_grouped_convolutions_are_products_with_the_matrices(name: str, space: str) -> None:
    """Σ Mᵢ Wᵢ Uᵢ of the matrices with their zeros: nothing of it is outside the student's own blocks."""
    sources = [kind(name, seed) for seed in range(3)]
    it = make_problem(sources, shape=SHAPE, needs=(UNITS,))
    method = ZipIt(space)  # type: ignore[arg-type]
    zips, student = method.zip(it, it.evidence, it.world).zips, only(method, it).student.network
    for layer in (layer for layer in it.spec.layers if layer.blocks > 1):
        total = torch.zeros(())
        for index, source in enumerate(sources):
            read, written = zips[layer.inputs], zips[layer.outputs]
            unmerge = torch.nn.functional.one_hot(read.sets[:, index], len(read.sets)).double()
            merge = torch.nn.functional.one_hot(written.sets[:, index], len(written.sets)).double().mT
            merge = merge / written.counts[:, None]
            weight = written_out(source.get_submodule(layer.name).weight, layer.blocks)
            total = total + merge @ weight @ torch.kron(unmerge, torch.eye(layer.taps, dtype=torch.float64))
        assert close(written_out(student.get_submodule(layer.name).weight, layer.blocks), total, 1e-5)
        assert any(zips[group].members is None for group in (layer.inputs, layer.outputs))


@pytest.mark.parametrize("space", SPACES)
def test_units_that_are_there_twice_make_room_within_their_block(space: str) -> None:
    def source(seed: int, classes: int) -> nn.Module:
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, classes),
        )  # fmt: skip
        randomised(network, seed)
        with torch.no_grad():
            for layer in (network[0], network[2]):
                layer.weight[1::2], layer.bias[1::2] = layer.weight[::2], layer.bias[::2]
            for layer in (network[2], network[6]):
                layer.weight[:, 1::2] = layer.weight[:, ::2]
        return network

    sources = [source(seed, classes) for seed, classes in ((0, 4), (1, 3))]
    it, batch = make_problem(sources, "different", needs=(UNITS,)), pictures(5, 9)
    method = ZipIt(space)  # type: ignore[arg-type]
    for zipped in method.zip(it, it.evidence, it.world).zips.values():
        assert zipped.sets[::2].tolist() == zipped.sets[1::2].tolist()
    with torch.no_grad():
        expected = torch.cat([source(batch) for source in sources], 1)
        assert close(only(method, it).student(batch), expected, 1e-5)
        assert not close(only(ZipIt(space, within=0.0), it).student(batch), expected, 1e-1)  # type: ignore[arg-type]


def test_queries_and_keys_count_for_every_unit_of_their_set() -> None:
    """Heads of four units, each there twice; sets of 4, 2, 1 and 1 units in one head, of 2, 1, 1 and 4 in the other."""
    network = kind("attention", 0)
    attention = network.attention
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.value):
            layer.weight[1::2], layer.bias[1::2] = layer.weight[::2].clone(), layer.bias[::2].clone()
    it, batch = make_problem([network, copy.deepcopy(network)], shape=SHAPE, batches=[]), pictures(4, 7, SHAPE)
    sets = torch.tensor([[0, 0], [0, 0], [1, 1], [2, 3], [4, 4], [5, 6], [7, 7], [7, 7]])
    zips = {
        group.name: Zip(sets, 2) if group.blocks > 1 else Zip(torch.arange(group.size)[:, None].expand(-1, 2))
        for group in it.spec.free
    }
    assert len([1 for zipped in zips.values() if zipped.members is None]) == 2, "queries with keys, and values"
    brought = [Zipping(zips, {}).brought(it.spec, network.state_dict(), source) for source in range(2)]
    state = {name: (brought[0][name] + brought[1][name]) / 2 for name in brought[0]}
    with torch.no_grad():
        assert close(torch.func.functional_call(network, state, (batch,)), network(batch), 1e-5)


def test_zipped_students_are_files(tmp_path: Path) -> None:
    sources = [resnet("resnet20", weights) for weights in range(2)]
    it = make_problem(
        sources, shape=(3, 16, 16), needs=(UNITS,), architecture=Architecture("resnet20", 5),
        preprocessing=Preprocessing(image_size=16),
    )  # fmt: skip
    for within, zipped in ((1.0, True), (0.0, False)):
        student = only(ZipIt(within=within), it).student
        assert student.zipped == zipped
        save_student(student, tmp_path / "student.ckpt")
        again, batch = load_student(tmp_path / "student.ckpt"), pictures(2, 0, (3, 16, 16))
        assert again.zipped == zipped
        assert same_state(again.network.state_dict(), student.network.state_dict())
        with torch.no_grad():
            assert close(load_source(tmp_path / "student.ckpt").network(batch), student(batch))
        if zipped:
            with pytest.raises(ConfigurationError, match=r"features is 1.0, but units of the student .* allowed: 0"):
                Distillation(again, sources, it.owners)
            Distillation(again, sources, it.owners, features=0.0)
        else:
            Distillation(again, sources, it.owners)


def test_what_an_interrupted_merge_has_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = replace(strangers(2, 3), progress=Progress(tmp_path))
    ((_, first),) = fitted([ZipIt()], it, it.evidence, it.run, [Budget(1.0)])
    monkeypatch.setattr(ZipIt, "merge", lambda *_: pytest.fail("made again"))
    ((_, again),) = fitted([ZipIt()], it, it.evidence, it.run, [Budget(1.0)])
    assert first.student.zipped
    assert again.student.zipped
    assert same_state(first.student.network.state_dict(), again.student.network.state_dict())


def test_sources_are_left_alone_and_the_same_comes_twice() -> None:
    it = strangers(2, 3)
    before = [copy.deepcopy(source.state_dict()) for source in it.sources]
    first, second = (only(ZipIt("both"), it).student.state_dict() for _ in range(2))
    assert same_state(first, second)
    assert all(same_state(source.state_dict(), one) for source, one in zip(it.sources, before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": "hope"}, "space is 'hope'; allowed: 'activations', 'weights', 'both'"),
        ({"within": 1.5}, "within is 1.5; allowed: 0 to 1"),
        ({"repeat": -0.5}, "repeat is -0.5; allowed: 0 to 1"),
        ({"alpha": 2.0}, "alpha is 2.0; allowed: 0 to 1"),
    ],
)
def test_arguments(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ZipIt(**arguments)  # type: ignore[arg-type]


def test_what_is_needed_is_told_beforehand() -> None:
    assert ZipIt("weights").needs == frozenset()
    assert ZipIt().needs == ZipIt("both").needs == {UNITS}
    hidden = make_problem([kind("shuffled", seed) for seed in range(2)], shape=SHAPE, batches=[])
    with pytest.raises(ConfigurationError, match=r"space is 'activations', but no value .* alone; use 'weights'"):
        prepare_case(ZipIt(), hidden, {}, [1.0])
    prepare_case(ZipIt("weights"), hidden, {}, [1.0])
    it = strangers(2, 3)
    with pytest.raises(MergeError, match="method zipit needs statistics of units, which"):
        only(ZipIt("both"), replace(it, statistics=Statistics()))
    with pytest.raises(ConfigurationError, match="whose units are matched in another way"):
        prepare_case(MaTS("average", start="zipit"), replace(it, planned={"zipit": ZipIt()}), {}, [1.0])


def test_demand_counts_what_is_held_of_all_groups() -> None:
    it = make_problem([resnet("resnet20", weights) for weights in range(2)], shape=SHAPE, batches=[])
    squares = [8 * (2 * group.size) ** 2 for group in it.spec.free]
    parameters = 16 * sum(one.numel() for one in it.sources[0].parameters())
    for method, needed in (
        (ZipIt(), sum(squares) + 3 * max(squares)),
        (ZipIt("both"), sum(squares) + 5 * max(squares)),
        (ZipIt("both", alpha=1.0), 5 * max(squares)),
        (ZipIt("weights"), 5 * max(squares)),
    ):
        found = estimate_case(method, it, {}, [1.0], 1)
        assert found.whole == found.least == max(needed, parameters)
