"""SMILE: by hand, with gates forced to a source, routed without being told the domain."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    DOMAINS,
    Case,
    close,
    make_problem,
    merge_case,
    message_of,
    permuted_family,
    pictures,
    prepare_case,
    random_network,
    randomised,
    resnet,
    run,
    unfolded,
)
from kinds import SIDE, kind
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.methods import SMILE, Average, Merged
from project.student import MixtureStudent, batch_norms, reestimate

FULL = 10**6


class Sent(nn.Module):
    """A router that sends every picture to one source."""

    def __init__(self, source: int, sources: int) -> None:
        super().__init__()
        self.gates, self.kept = nn.functional.one_hot(torch.tensor(source), sources).float(), 1

    def forward(self, values: Tensor) -> Tensor:
        return self.gates.expand(len(values), -1)


def sent(student: MixtureStudent, source: int) -> MixtureStudent:
    student = copy.deepcopy(student)
    for index in range(len(student.blocks)):
        router = Sent(source, student.maps[student.spec.input.name].sources)
        student.network.set_submodule(f"routers.{index}", router)
    return student


def only(method: SMILE, it: Case) -> tuple[Merged, MixtureStudent]:
    prepare_case(method, it, {}, [1.0])
    (merged,) = merge_case(method, it, [2.0])
    assert merged.name == f"{method.name}-1.00"
    assert isinstance(merged.student, MixtureStudent)
    return merged, merged.student


def relatives(structure: int, count: int = 3, **others: object) -> tuple[nn.Module, list[nn.Module]]:
    """A base and networks near it: weights move by a tenth, norms are anything."""
    base, sources = random_network(structure, 0), []
    for index in range(count):
        source, other = copy.deepcopy(base), random_network(structure, index + 1)
        for one, values in zip(source.parameters(), other.parameters(), strict=True):
            one.data += 0.1 * values if one.dim() > 1 else values
        for one, values in zip(source.buffers(), other.buffers(), strict=True):
            one.copy_(values)
        sources.append(source)
    return base, sources


@pytest.mark.parametrize(
    ("structure", "mode"),
    [  # every structure in one of them
        pytest.param(structure, mode, marks=() if (structure + i) % 2 else pytest.mark.slow)
        for structure in range(6)
        for i, mode in enumerate(("shared", "different"))
    ],
)
def test_in_full_and_sent_to_one_source_it_is_that_source(structure: int, mode: str) -> None:
    base, sources = relatives(structure)
    it, batch = make_problem(sources, mode, needs=(), base=base), pictures(4, 7)
    _, student = only(SMILE(rank=FULL), it)
    for index, domain in enumerate(DOMAINS[:3]):
        found = run(sent(student, index), batch)[:, it.labels.columns(domain)]
        assert close(found, run(sources[index], batch), 1e-5)


@pytest.mark.parametrize(
    "name", ["grouped", "depthwise", "multiplied", "group norm", "concatenated", "dense", "shuffled"]
)
def test_every_kind_of_layer_in_full(name: str) -> None:
    shape = (3, SIDE, SIDE)
    sources = [kind(name, i + 1) for i in range(3)]
    it, batch = make_problem(sources, needs=(), shape=shape, base=kind(name, 0)), pictures(4, 7, shape)
    _, student = only(SMILE(rank=FULL), it)
    for index, source in enumerate(sources):
        assert close(run(sent(student, index), batch), run(source, batch), 1e-4)


@pytest.mark.parametrize(
    ("mode", "norms"),
    [
        ("shared", "merged"),
        ("different", "routed"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("shared", "routed"), ("different", "merged"))),
    ],
)
def test_equal_sources_come_back(mode: str, norms: str) -> None:
    """Whatever the rank where they are their base, and with rank 1 where they add no more to it."""
    source, batch = resnet("resnet20", 0), pictures(4, 7, (3, 16, 16))
    it = make_problem([source] * 3, mode, needs=(), shape=(3, 16, 16), base=source)
    merged, student = only(SMILE(rank=1, norms=norms), it)  # type: ignore[arg-type]
    expected = run(source, batch)
    assert close(run(student, batch), expected.repeat(1, 3 if mode == "different" else 1), 1e-6)
    assert merged.settled == (norms == "routed")
    moved = copy.deepcopy(source)
    generator = torch.Generator().manual_seed(0)
    for one in moved.parameters():
        if one.dim() > 1:
            sides = (torch.randn(size, generator=generator) for size in (len(one), one[0].numel()))
            one.data += 0.1 * torch.outer(*sides).view_as(one)
    it = make_problem([moved] * 3, mode, needs=(), shape=(3, 16, 16), base=source)
    _, student = only(SMILE(rank=1, top=2, norms=norms), it)  # type: ignore[arg-type]
    assert close(run(student, batch), run(moved, batch).repeat(1, 3 if mode == "different" else 1), 1e-4)


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("gate_rank", [1, 2, 99])
def test_by_hand(top: int, gate_rank: int) -> None:
    """One convolution and one linear layer, rank 1, in numpy."""

    def network(seed: int) -> nn.Module:
        layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
        return randomised(nn.Sequential(*layers), seed)

    sources, base, batch = [network(i + 1) for i in range(3)], network(0), pictures(5, 7, (3, 4, 5))
    it = make_problem(sources, needs=(), shape=(3, 4, 5), base=base)
    _, student = only(SMILE(rank=1, gate_rank=gate_rank, top=top), it)

    def layer(name: str, columns: np.ndarray) -> np.ndarray:
        """Of one picture: (inputs, positions) to (outputs, positions)."""
        state = {key: value.double().numpy() for key, value in base.state_dict().items()}
        found = state[f"{name}.weight"].reshape(-1, len(columns)) @ columns + state[f"{name}.bias"][:, None]
        scores, experts = [], []
        for source in sources:
            mine = {key: value.double().numpy() for key, value in source.state_dict().items()}
            change = (mine[f"{name}.weight"] - state[f"{name}.weight"]).reshape(-1, len(columns))
            u, s, v = np.linalg.svd(change, full_matrices=False)
            scores.append(np.sqrt(((v[: min(gate_rank, len(columns) // 2)] @ columns) ** 2).sum(0)).mean())
            constant = mine[f"{name}.bias"] - state[f"{name}.bias"]
            experts.append(s[0] * np.outer(u[:, 0], v[0]) @ columns + constant[:, None])
        best = np.argsort(scores)[::-1][:top]
        shares = np.exp(np.array(scores)[best])
        return found + sum(share * experts[one] for share, one in zip(shares / shares.sum(), best, strict=True))

    for picture, found in zip(batch, run(student, batch), strict=True):
        columns = unfolded(picture[None], base[0]).numpy()  # type: ignore[index]
        features = np.maximum(layer("0", columns), 0).mean(1, keepdims=True)
        assert np.allclose(found.numpy(), layer("4", features)[:, 0], atol=1e-5)


def test_pictures_are_sent_where_the_change_reads_them() -> None:
    """Sources that changed what they do with one channel each, asked on pictures of that channel alone."""
    base = randomised(
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)), 0
    )
    sources = [copy.deepcopy(base) for _ in range(3)]
    for index, source in enumerate(sources):
        source[0].weight.data[:, index] += 1.0  # type: ignore[index, union-attr]
        source[0].bias.data += index  # type: ignore[index, union-attr, operator]
    shape = (3, 8, 8)
    it = make_problem(sources, needs=(), shape=shape, base=base)
    _, student = only(SMILE(rank=1), it)
    for index, source in enumerate(sources):
        batch = torch.zeros(4, *shape)
        batch[:, index] = pictures(4, index, shape)[:, index].abs() + 0.5
        assert torch.equal(student.routers[0](batch).argmax(1), torch.full((4,), index))
        assert close(run(student, batch), run(source, batch), 1e-4)


def test_a_head_that_the_base_lacks_follows_the_layer_before() -> None:
    sources = [random_network(0, i + 1) for i in range(2)]
    it, batch = make_problem(sources, needs=(), base=random_network(0, 0, classes=9)), pictures(4, 7)
    _, student = only(SMILE(rank=FULL), it)
    assert list(student.blocks[-1].layers)[-1] == it.spec.head.name
    assert len(student.blocks) == len(it.spec.layers) - 1
    for index, source in enumerate(sources):
        assert close(run(sent(student, index), batch), run(source, batch), 1e-5)


def test_merged_norms_are_re_estimated() -> None:
    base, sources = relatives(1)
    it = make_problem(sources, needs=(), base=base)
    merged, student = only(SMILE(rank=2, norms="merged"), it)
    assert not merged.settled
    (average,) = merge_case(Average(), it, [1.0])
    norms = batch_norms(student.network)
    assert set(norms) == set(batch_norms(average.student.network))
    assert norms
    for name, norm in norms.items():
        assert torch.equal(norm.running_mean, average.student.network.get_submodule(name).running_mean)  # type: ignore[arg-type]
    name = next(iter(norms))
    batch, seen = pictures(30, 5), []
    reestimate(student.network, [batch])
    handle = student.network.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    run(student, batch)
    handle.remove()
    assert torch.allclose(norms[name].running_mean, seen[0].transpose(0, 1).flatten(1).mean(1), atol=1e-5)  # type: ignore[arg-type]


def test_sources_of_different_bases_are_aligned_to_their_mean() -> None:
    network = random_network(2, 2)
    it, batch = make_problem(permuted_family(network, 3), needs=(), base="mean"), pictures(4, 7)
    merged, student = only(SMILE(rank=1, align="weights"), it)
    assert merged.matches
    assert close(run(student, batch), run(network, batch), 1e-3)


def test_what_is_not_routed_is_told() -> None:
    shape = (3, SIDE, SIDE)
    it = make_problem([kind("attention", i + 1) for i in range(2)], needs=(), shape=shape, base=kind("attention", 0))
    told = message_of(SMILE(), it)
    assert told is not None
    assert "attention" in told
    assert "stem" not in told
    for mode in ("shared", "different"):
        plain = make_problem([random_network(0, i) for i in range(2)], mode, needs=(), base=random_network(0, 2))
        assert message_of(SMILE(), plain) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "rank is 0; allowed: whole numbers from 1"),
        ({"gate_rank": 0}, "gate_rank is 0; allowed: whole numbers from 1"),
        ({"top": 0}, "top is 0; allowed: whole numbers from 1"),
        ({"norms": "base"}, "norms is 'base'; allowed: 'routed', 'merged'"),
        ({"align": "hope"}, "align is 'hope'"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SMILE(**arguments)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    sources = [random_network(0, i) for i in range(2)]
    for base, method, words in (
        (None, SMILE(), "method smile needs base"),
        ("mean", SMILE(), "2 sources differ by the sign alone"),
        (random_network(0, 3), SMILE(top=3), "top of method smile is 3; allowed: 1 to the 2 sources"),
        (random_network(0, 3), SMILE(align="weights"), "align of method smile is 'weights'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            prepare_case(method, make_problem(sources, needs=(), base=base), {}, [1.0])
