"""Heads of domains beside the one that all share: what they do at either end, files, and what is refused."""

from pathlib import Path

import pytest
import torch
from helpers import randomised, resnet, same_state
from torch import Tensor, nn

import project
from project.errors import CheckpointError, ConfigurationError
from project.models.heads import mixed_over_heads
from project.modules.scored import ScoredNetwork
from project.student import Student

CLASSES, DOMAINS = 5, ("photo", "sketch")


def networks() -> list[nn.Module]:
    return [randomised(resnet("resnet8", seed, CLASSES), seed).eval() for seed in range(2)]


def pictures(count: int = 48, seed: int = 0) -> dict[str, Tensor]:
    """Two domains that a linear gate can tell apart."""
    draw = torch.Generator().manual_seed(seed)
    return {
        domain: torch.randn(count, 3, 16, 16, generator=draw) + torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1) * sign
        for domain, sign in zip(DOMAINS, (1, -1), strict=True)
    }


@pytest.fixture(scope="module", params=[1.0, 2.0])
def student(request: pytest.FixtureRequest) -> Student:
    return project.merge(networks(), pictures(), request.param, heads="domains", progress=False)


@torch.no_grad()
def test_told_heads_are_the_sources_at_full_size() -> None:
    student = project.merge(networks(), pictures(), 2.0, heads="domains", progress=False)
    for source, (domain, batch) in zip(networks(), pictures(8, seed=1).items(), strict=True):
        wanted = source(batch)
        bound = 1e-3 * float(wanted.abs().max())
        torch.testing.assert_close(student.answer(batch, domain), wanted, rtol=0, atol=bound)
        assert not torch.allclose(student(batch), wanted, rtol=0, atol=bound)  # one head cannot be both


@torch.no_grad()
def test_a_guess_is_the_heads_weighed_by_the_gate(student: Student) -> None:
    batch = pictures(6, seed=2)["photo"]
    _, features = student.outputs(batch)
    assert student.gate is not None
    by_hand = sum(
        weight[:, None] * student.answer(batch, domain).softmax(1)
        for weight, domain in zip(student.gate(features).softmax(1).unbind(1), DOMAINS, strict=True)
    )
    torch.testing.assert_close(student.guessed(features), by_hand)
    torch.testing.assert_close(student.probabilities(batch, joint="gate"), by_hand)
    torch.testing.assert_close(student.probabilities(batch, joint="logits"), student(batch).softmax(1))
    usual = by_hand if student.guesses else student(batch).softmax(1)
    torch.testing.assert_close(student.probabilities(batch), usual)
    torch.testing.assert_close(mixed_over_heads(student(batch)[:, None], torch.ones(6, 1)), student(batch).softmax(1))


def test_they_come_along_in_files(student: Student, tmp_path: Path) -> None:
    project.save_student(student, tmp_path / "student.safetensors")
    loaded = project.load_student(tmp_path / "student.safetensors")
    assert (loaded.own_domains, loaded.guesses) == (student.own_domains, student.guesses) == (DOMAINS, loaded.guesses)
    batch = pictures(4, seed=3)["sketch"]
    for head in DOMAINS:
        assert torch.equal(loaded.probabilities(batch, head), student.probabilities(batch, head))
    assert torch.equal(loaded.probabilities(batch), student.probabilities(batch))
    assert (
        loaded.bytes
        == student.bytes
        == sum(t.numel() * t.element_size() for t in student.network.state_dict().values())
    )


def test_they_stay_behind_where_others_read_the_student(tmp_path: Path) -> None:
    student = project.merge(networks(), pictures(), heads="domains", progress=False)
    exported = project.export(student, tmp_path / "out.safetensors", "safetensors")
    assert "the heads of photo, sketch beside the shared one stay behind" in str(exported)


def test_a_student_whose_heads_do_not_fit_is_refused(student: Student, tmp_path: Path) -> None:
    assert student.own_heads is not None
    spoilt = project.load_student(project_file(student, tmp_path / "whole.safetensors"))
    spoilt.own_domains = ("photo", "photo")
    with pytest.raises(CheckpointError, match="heads of domains that do not fit"):
        project.load_student(project_file(spoilt, tmp_path / "spoilt.safetensors"))


def project_file(student: Student, path: Path) -> Path:
    project.save_student(student, path)
    return path


def test_what_is_told_is_asked_of_the_own_head(student: Student) -> None:
    scored = ScoredNetwork("student", student, student.labels)
    assert [scored.head_of(domain) for domain in DOMAINS] == list(DOMAINS)
    logits, told, guessed = scored.in_all_ways(pictures(3)["photo"], "sketch")
    assert torch.equal(told, student.answer(pictures(3)["photo"], "sketch"))
    assert logits.shape == guessed.shape == (3, CLASSES)
    with pytest.raises(ConfigurationError, match="head is 'art'; allowed: joint, photo, sketch"):
        student.probabilities(pictures(3)["photo"], "art")


def test_the_shared_head_stays_what_it_is() -> None:
    plain = project.merge(networks(), pictures(), progress=False)
    beside = project.merge(networks(), pictures(), heads="domains", progress=False)
    assert same_state(beside.network.state_dict(), plain.network.state_dict())
    assert plain.own_heads is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": "own"}, "heads is 'own'; allowed: 'shared', 'domains'"),
        ({"heads": "domains", "pictures": pictures(3)}, "takes 4 calibration pictures .*; photo has 3"),
        ({"heads": "domains", "label_space": "different"}, "changes nothing where each domain has a head of its own"),
        ({"heads": "domains", "pictures": None, "method": "average", "image_size": 16}, "of that kind there are: none"),
        (
            {"heads": "domains", "pictures": {"photo": pictures(8)["photo"]},
             "sources": [{"path": "a"}, {"path": "b"}]}, "of that kind there are: none"
        ),
    ],
)  # fmt: skip
def test_where_there_is_nothing_to_tell_apart(options: dict[str, object], words: str, tmp_path: Path) -> None:
    given: dict[str, object] = {"sources": networks(), "pictures": pictures(8), "progress": False, **options}
    if isinstance(given["sources"][0], dict):  # type: ignore[index]
        for name, network in zip("ab", networks(), strict=True):
            torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        given["sources"] = [tmp_path / "a.pth", tmp_path / "b.pth"]
    with pytest.raises(ConfigurationError, match=words):
        project.merge(**given)  # type: ignore[arg-type]
