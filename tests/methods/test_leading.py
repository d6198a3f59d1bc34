"""Several sources of one domain: one leads, and is there whole at every size."""

import logging
from pathlib import Path

import pytest
import torch
from helpers import pictures, randomised, resnet

import project
from project.errors import ConfigurationError
from project.methods import PLeaS
from project.student import load_source

NAMES = ("first", "other", "third")
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The second is the surest: its head is the same but for a larger scale."""
    folder = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate(NAMES):
        network = randomised(resnet("resnet8", seed, 5), seed)
        with torch.no_grad():
            network.fc.weight.mul_(8.0 if name == "other" else 1.0)
        torch.save(network.state_dict(), folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in NAMES]


def merged(files: list[Path], lead: str, budget: float) -> project.Student:
    seen = {"art": pictures(48, 1, shape=SHAPE)}
    return project.merge(files, seen, budget, PLeaS(lead=lead), audit="off", progress=False)


@pytest.mark.parametrize("budget", [1.0, 1.4])
@pytest.mark.parametrize(("lead", "number"), [("first", 0), ("surest", 1)])
@torch.no_grad()
def test_the_leader_stays_whole(
    lead: str, number: int, budget: float, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """What the head reads at the places of its units is what its own head reads; the others are merged into it."""
    with caplog.at_level(logging.INFO):
        student = merged(files[:2], lead, budget)
    assert ("other leads on art, as the surest there" in caplog.text) == (lead == "surest")
    batch = pictures(8, 2, shape=SHAPE)
    _, features = student.outputs(batch)
    source = load_source(files[number]).network
    read: list[torch.Tensor] = []
    source.get_submodule("fc").register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    source(batch)
    members = student.maps[student.spec.head.inputs].members[:, number]
    own = features[:, members >= 0][:, members[members >= 0].argsort()]
    torch.testing.assert_close(own, read[0], rtol=1e-3, atol=1e-3 * float(read[0].abs().max()))


@torch.no_grad()
def test_the_mean_follows_no_single_source(files: list[Path]) -> None:
    batch = pictures(8, 2, shape=SHAPE)
    mean, led = (merged(files[:2], lead, 1.0).outputs(batch)[1] for lead in ("mean", "first"))
    assert not torch.allclose(mean, led, rtol=0.05)


def test_logits_are_those_of_all_at_full_size(files: list[Path]) -> None:
    """Each class has the mean of the sources' probabilities."""
    student = merged(files[:2], "surest", 2.0)
    batch = pictures(8, 2, shape=SHAPE)
    with torch.no_grad():
        wanted = torch.stack([load_source(file).network(batch) for file in files[:2]]).mean(0)
        torch.testing.assert_close(student(batch), wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lead": "third"}, "lead is 'third'; allowed: 'surest', 'mean', or a source that shares .*: first, other"),
        ({"lead": "first", "fit": "joint"}, "lead is 'first'; allowed: with fit 'sequential' alone"),
    ],
)
def test_a_leader_that_there_is_not(options: dict[str, str], words: str, files: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match=words):
        project.merge(files[:2], {"art": pictures(8, 1, shape=SHAPE)}, 1.0, PLeaS(**options), progress=False)  # type: ignore[arg-type]


def test_where_no_domain_is_shared_nobody_can_lead(files: list[Path]) -> None:
    seen = {name: pictures(8, seed, shape=SHAPE) for seed, name in enumerate(NAMES[:2])}
    with pytest.raises(ConfigurationError, match="here there is none"):
        project.merge(files[:2], seen, 1.0, PLeaS(lead="first"), progress=False)
