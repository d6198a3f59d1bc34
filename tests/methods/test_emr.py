"""EMR: elected by hand, by name, and from its file alone."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    DOMAINS,
    Case,
    close,
    make_problem,
    merge_case,
    permuted_copy,
    pictures,
    prepare_case,
    random_network,
    resnet,
    run,
    same_state,
    traced,
)
from torch import nn

from project import load_student, save_student
from project.errors import CheckpointError, ConfigurationError
from project.methods import EMR
from project.methods.emr import elect
from project.models import Architecture, Preprocessing
from project.moments import UNITS
from project.student import MaskedStudent, load_source, packed
from project.student.masked import unpacked

FEW = [(domain, pictures(8, i)) for i, domain in enumerate(DOMAINS[:3])]


def emr(it: Case, **options: str) -> MaskedStudent:
    (merged,) = merge_case(EMR(**options), it, [2.0])  # type: ignore[arg-type]
    assert merged.name == "emr-1.00"
    assert merged.settled
    assert isinstance(merged.student, MaskedStudent)
    return merged.student


def moved(base: nn.Module, seed: int, share: float = 1.0, count: int = 1, index: int = 0) -> nn.Module:
    """The base with some of its entries changed: of ``count`` networks, each has its own."""
    network, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    for one in network.parameters():
        change = 0.1 * torch.randn(one.shape, generator=generator)
        mine = torch.randint(0, count, one.shape, generator=generator) == index
        one.data += share * torch.where(mine, change, 0.0)
    return network


def test_elected_by_hand() -> None:
    vectors = torch.tensor([[1.0, -2.0, 3.0, 0.0, 2.0], [3.0, 1.0, -1.0, 0.0, -2.0]])
    found = elect(vectors, [3, 2])
    # Means 2, −½, 1, 0, 0: signs +, −, +, −, −; the largest that agree: 3, 2, 3, 0, 2.
    assert found.vector.tolist() == [3.0, -2.0, 3.0, 0.0, -2.0]
    assert found.masks.tolist() == [[True, True, True, False, False], [True, False, False, False, True]]
    # Means of two tensors: of 1 2 3 | 0 2 over 3 2 3 | 0 0; of 3 1 1 | 0 2 over 3 0 0 | 0 2.
    assert found.scales.tolist() == pytest.approx([(2 + 1) / (8 / 3), (5 / 3 + 1) / (1 + 1)])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_bits_are_packed_and_unpacked(count: int) -> None:
    bits = torch.rand(3, count, generator=torch.Generator().manual_seed(count)) < 0.5
    assert packed(bits).shape == (3, -(-count // 8))
    assert torch.equal(unpacked(packed(bits), count), bits)
    assert packed(torch.tensor([True, False, True])).tolist() == [5]


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("alike", [True, False])
def test_sources_that_agree_or_do_not_meet_come_back_by_name(mode: str, alike: bool) -> None:
    """With one task vector, or with ones that are nowhere together, nothing is lost; each with norms of its own."""
    base = random_network(1, 5)
    sources = [moved(base, 0, count=1 if alike else 3, index=0 if alike else i) for i in range(3)]
    for index, source in enumerate(sources):
        for module in source.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean += index
    it = make_problem(sources, mode, needs=(), batches=FEW, base=base)
    prepare_case(EMR(), it, {}, [1.0])
    student, batch = emr(it), pictures(4, 7)
    for domain, source in zip(DOMAINS, sources, strict=False):
        columns = it.labels.columns(domain)
        expected = run(source, batch)
        with torch.no_grad():
            assert close(student.answer(batch, domain)[:, columns], expected, 1e-4)
        assert close(student.probabilities(batch, domain), expected.softmax(1), 1e-4)
    everything = run(student, batch)
    if mode == "different":
        assert close(everything, torch.cat([run(source, batch) for source in sources], 1), 1e-4)
    else:
        shares = torch.stack([run(source, batch).softmax(1) for source in sources]).mean(0)
        assert close(everything.exp(), shares, 1e-4)


def test_what_is_in_the_way_is_rescaled() -> None:
    """Opposite task vectors: one has its way in each entry, the other is left with what agrees."""
    base = random_network(0, 5)
    it = make_problem([moved(base, 1), moved(base, 2)], needs=(), batches=FEW[:2], base=base)
    student = emr(it)
    bits = unpacked(student.masks, len(student.vector))
    assert bool(bits.any(0).all())
    assert bool((~bits).any())
    for source in range(2):
        found = student.task(source)
        start = 0
        for name in student.names:
            one = base.get_parameter(name)
            mask, vector = (part[start : start + one.numel()].view_as(one) for part in (bits[source], student.vector))
            start += one.numel()
            assert torch.allclose(found[name], one + student.scales[source] * mask * vector, atol=1e-6)
    assert bool((student.scales > 0).all())


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_one_file_serves_every_task_by_name(mode: str, tmp_path: Path) -> None:
    base = resnet("resnet20", 0)
    it = make_problem(
        [moved(base, 1), moved(base, 2)], mode, needs=(), batches=FEW[:2], base=base, shape=(3, 16, 16),
        architecture=Architecture("resnet20", 5), preprocessing=Preprocessing(16),
    )  # fmt: skip
    student, batch, path = emr(it), pictures(3, 7, (3, 16, 16)), tmp_path / "emr.ckpt"
    save_student(student, path)
    loaded = load_student(path)
    assert isinstance(loaded, MaskedStudent)
    assert not any(module.training for module in loaded.modules())
    assert same_state(loaded.state_dict(), student.state_dict())
    for domain in DOMAINS[:2]:
        assert torch.equal(loaded.probabilities(batch, domain), student.probabilities(batch, domain))
    assert torch.equal(run(loaded, batch), run(student, batch))
    size = sum(one.numel() for one in base.parameters())
    assert path.stat().st_size < 1.1 * 4 * (2 * size + 2 * size / 32) + 2e5, "two vectors, and bits for the tasks"
    assert 2 * size < student.held < 2.2 * size
    with pytest.raises(CheckpointError, match="a network for each of its sources"):
        load_source(path)
    content = torch.load(path, weights_only=True)
    content["masked"]["vector"] = content["masked"]["vector"][:-1]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="masks that do not fit its 2 sources"):
        load_student(path)


def test_a_gate_reads_all_networks() -> None:
    base = random_network(1, 5)
    it = make_problem([moved(base, 1), moved(base, 2)], "different", needs=(), batches=FEW[:2], base=base)
    student = emr(it)
    features = [student.outputs(pictures(12, i))[1].detach() for i in range(2)]
    assert features[0].shape == (12, student.features)
    student.fit_gate(features)
    assert student.probabilities(pictures(4, 7)).sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)


def test_sources_of_different_bases_are_aligned_to_their_mean() -> None:
    network = random_network(2, 2)
    twin = copy.deepcopy(network)
    permuted_copy(network, twin, traced(network, (3, 11, 13)), 0)
    for align in ("weights", "activations"):
        it = make_problem([network, twin], needs=(UNITS,), batches=FEW[:2], base="mean")
        student, batch = emr(it, align=align), pictures(4, 7)
        for domain in DOMAINS[:2]:
            assert close(student.probabilities(batch, domain), run(network, batch).softmax(1), 1e-3)


def test_it_needs_a_base() -> None:
    it = make_problem([random_network(0, 0), random_network(0, 1)], needs=(), batches=FEW[:2])
    with pytest.raises(ConfigurationError, match="method emr needs base"):
        prepare_case(EMR(), it, {}, [1.0])
    with pytest.raises(ConfigurationError, match="align of method emr is 'weights'"):
        prepare_case(EMR(align="weights"), replace(it, base=nn.Identity()), {}, [1.0])
