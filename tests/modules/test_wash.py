"""A population against networks that are trained one by one, and what its mean is."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close, same_state
from killing import run_to_the_end
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_federated import RATE, folder, sets, trainer  # noqa: F401  # the fixture
from torch.nn.functional import cross_entropy

from project.cli import main
from project.data import DomainDataModule, PopulationDataModule
from project.errors import ConfigurationError
from project.models import Architecture
from project.modules import WashModule
from project.student import load_source
from project.student.reestimation import Reestimation


def data(folder: Path, **options: Any) -> PopulationDataModule:  # noqa: F811
    given = {"members": 3, "image_size": 16, "batch_size": 32, "augment": False, "validation_fraction": 0.34}
    return PopulationDataModule(sets(folder), **given | options)


def module(**options: Any) -> WashModule:
    torch.manual_seed(0)
    made = {"architecture": "resnet8", "optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)}
    return WashModule(**made | options)


class Steps(Callback):
    """The members after each step."""

    def __init__(self) -> None:
        self.members: list[dict[int, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.members.append(deepcopy(pl_module.members))


def fitted(given: PopulationDataModule, epochs: int = 1, callbacks: Any = (), **options: Any) -> WashModule:
    found = module(**options)
    trainer(epochs, callbacks=list(callbacks)).fit(found, datamodule=given)
    return found


def plain(given: PopulationDataModule, epochs: int) -> list[torch.nn.Module]:
    """Networks of one start, each trained by itself on its own batches."""
    torch.manual_seed(0)
    start = Architecture("resnet8", 12).build()
    members = [deepcopy(start).train() for _ in range(given.members)]
    optimizers = [torch.optim.SGD(member.parameters(), lr=RATE, momentum=0.9) for member in members]
    loader = given.train_dataloader()
    for epoch in range(epochs):
        for one in loader.flattened:
            one.sampler.set_epoch(epoch)
        for batch, _, _ in loader:
            for number, (x, y) in batch.items():
                optimizers[number].zero_grad()
                cross_entropy(members[number](x), y).backward()
                optimizers[number].step()
    return members


def test_without_a_chance_members_are_trained_independently(folder: Path) -> None:  # noqa: F811
    """And their mean is the network, with the statistics of training pictures."""
    given = data(folder)
    found = fitted(given, 2, chance=0.0)
    members = plain(given, 2)
    for number, member in found.members.items():
        for name, tensor in members[number].state_dict().items():
            assert close(member.state_dict()[name].double(), tensor.double(), 1e-4), name
    expected = deepcopy(members[0])
    for name, parameter in expected.named_parameters():
        parameter.data = torch.stack([dict(one.named_parameters())[name].data for one in members]).mean(0)
    pictures = list(given.plain_batches(512))
    Reestimation(expected).finish(lambda: pictures)
    for name, tensor in expected.state_dict().items():
        assert close(found.network.state_dict()[name].double(), tensor.double(), 1e-3), name


@pytest.mark.parametrize("optimizer_state", [False, True])
def test_a_shuffle_of_equal_steps_moves_weights_alone(optimizer_state: bool, folder: Path) -> None:  # noqa: F811
    """A step moves every member; a shuffle behind it leaves each entry's values the same, in another order."""
    given, found = data(folder), module(chance=1.0, schedule="constant", optimizer_state=optimizer_state)
    shuffled, steps = found._shuffle, []

    def copies() -> list[dict[str, torch.Tensor]]:
        pairs = zip(found.members.values(), found.own_optimizers, strict=True)
        return [deepcopy(found._copy(*pair)) for pair in pairs]

    def watched() -> None:
        before = copies()
        shuffled()
        after = copies()
        steps.append(len(before))
        for name in after[0]:
            old, new = (torch.stack([one[name] for one in group]) for group in (before, after))
            assert torch.equal(old.sort(0).values, new.sort(0).values), name
            assert not torch.equal(old, new) or old.numel() < 200 or not old.any(), name
        if optimizer_state:  # goes with its weight
            weights = torch.stack([one["conv1.weight"] for one in before])
            velocities = torch.stack([one["conv1.weight momentum_buffer"] for one in before])
            source = (weights == after[0]["conv1.weight"]).int().argmax(0, keepdim=True)
            assert torch.equal(after[0]["conv1.weight momentum_buffer"], velocities.gather(0, source)[0])

    found._shuffle = watched  # type: ignore[method-assign]
    trainer(1).fit(found, datamodule=given)
    assert steps == [3] * len(steps)
    assert len(steps) > 1


def test_members_stay_nearer_to_each_other(folder: Path) -> None:  # noqa: F811
    """And what is logged is their distance from their mean."""
    spreads = []
    for chance in (0.0, 0.5):
        found = fitted(data(folder, batch_size=8), 2, chance=chance, schedule="constant")
        stacked = [
            torch.cat([p.detach().double().flatten() for p in member.parameters()]) for member in found.members.values()
        ]
        expected = (torch.stack(stacked) - torch.stack(stacked).mean(0)).square().sum(1).mean().sqrt()
        logged = float(found.trainer.callback_metrics["train/spread"])
        assert logged == pytest.approx(float(expected), rel=1e-3)
        spreads.append(logged)
        assert {"val/accuracy", "val/members/accuracy", "val/ensemble/accuracy"} <= set(found.trainer.callback_metrics)
    assert spreads[1] < spreads[0]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_killed_run_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    options: dict[str, Any] = {"chance": 0.2, "optimizer_state": True}
    whole = fitted(data(folder), 3, **options)
    saving = ModelCheckpoint(tmp_path, filename="two")
    trainer(2, callbacks=[saving], enable_checkpointing=True).fit(module(**options), datamodule=data(folder))
    again = module(**options)
    saving = ModelCheckpoint(tmp_path, filename="three")
    resumed = trainer(3, callbacks=[saving], enable_checkpointing=True)
    resumed.fit(again, datamodule=data(folder), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert same_state(again.network.state_dict(), whole.network.state_dict())
    for number, member in whole.members.items():
        assert same_state(again.members[number].state_dict(), member.state_dict())


@pytest.mark.parametrize(("options", "given", "words"), [
    ({"chance": 1.5}, {}, "chance is 1.5"),
    ({"chance": float("nan")}, {}, "chance is nan"),
    ({"schedule": "rising"}, {}, "schedule is 'rising'"),
    ({"statistics": 1}, {}, "statistics is 1"),
    ({}, {"members": 1}, "members is 1"),
    ({"lr_interval": "step"}, {}, "lr_interval is 'step'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(
    options: dict[str, Any],
    given: dict[str, Any],
    words: str,
    folder: Path,  # noqa: F811
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fitted(data(folder, **given), **options)


def test_other_data_is_refused(folder: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigurationError, match="data is DomainDataModule; use PopulationDataModule"):
        trainer(1).fit(module(), datamodule=DomainDataModule(sets(folder), image_size=16))


def test_the_command_ends_in_a_mean_that_can_be_merged(inside: Path) -> None:
    tiny = Path(__file__).resolve().parent.parent.parent / "configs" / "tiny"
    done = main(["fit", "--config", str(tiny / "fit_wash.yaml"), "--trainer.enable_progress_bar", "false"])
    assert done is not None
    run = inside / "runs" / "tiny" / "wash"
    source = load_source(run / "checkpoints" / "best.ckpt")
    assert source.description.domains == ("clipart", "sketch")
    for number, member in done.model.members.items():
        saved = load_source(run / "members" / f"member-{number}.ckpt").network.state_dict()
        assert same_state(saved, member.eval().state_dict())


@pytest.mark.slow
@pytest.mark.ddp
def test_a_process_for_each_member_makes_what_one_for_all_does(inside: Path) -> None:
    """Members and mean, bit for bit; each process has but one member and sees all pictures."""
    tiny = Path(__file__).resolve().parent.parent.parent / "configs" / "tiny"
    given = ["fit", "--config", str(tiny / "fit_wash.yaml"), "--trainer.enable_progress_bar", "false"]
    given += ["--data.init_args.members", "2", "--trainer.max_epochs", "1"]
    for run, more in (("one", []), ("two", ["--trainer.strategy", "ddp", "--trainer.devices", "2"])):
        where = ["--run", f"runs/{run}", "--model.init_args.save_members", f"runs/{run}/members"]
        done = run_to_the_end([*given, *where, *more])
        assert done.returncode == 0, done.stderr[-2000:]
    for path in ("members/member-0.ckpt", "members/member-1.ckpt", "checkpoints/best.ckpt"):
        one, two = (load_source(inside / "runs" / run / path).network.state_dict() for run in ("one", "two"))
        assert same_state(one, two), path
    again = run_to_the_end([*given, "--run", "runs/two", "--ckpt_path", "runs/two/checkpoints/best.ckpt"])
    assert again.returncode == 2
    assert "not the members; a fit cannot go on from it" in again.stderr
