"""What FederatedModule does with fusions, lies, and clients of other starts."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close, same_state
from lightning.pytorch.callbacks import ModelCheckpoint
from test_federated import RATE, batches, data, folder, module, trainer  # noqa: F401  # the fixture
from torch.nn.functional import cross_entropy

from project.cli import main
from project.data import ClientDataModule
from project.errors import ConfigurationError
from project.methods import PLeaS
from project.models import Architecture
from project.modules import FederatedModule
from project.modules.fusion import ActorCriticFusion, Median, MergedClients, Round, SearchedMean, ServerFusion

METHOD = "project.methods.Permutation"


class Watched(ServerFusion):
    """Keeps the rounds, and takes the first client."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def fuse(self, given: Round) -> dict[str, torch.Tensor]:
        self.rounds.append(replace(given, clients=deepcopy(given.clients)))  # they train on in place
        assert 0 <= given.score(given.server).accuracy <= 1
        assert all(len(x.shape) == 4 for x in given.pictures())
        return {name: tensor.clone() for name, tensor in given.clients[0].items()}


def fitted(given: ClientDataModule, rounds: int = 1, **options: Any) -> FederatedModule:
    found = module(**options)
    trainer(rounds).fit(found, datamodule=given)
    return found


def test_every_client_is_pulled_to_the_server(folder: Path) -> None:  # noqa: F811
    """FedProx, against a plain loop of several steps, whose first is not pulled: there, clients are the server."""
    given = data(folder, local_epochs=3)
    watched = Watched()
    fitted(given, fusion=watched, proximal=2.0)
    torch.manual_seed(0)
    server = Architecture("resnet8", 12).build()
    for name, (x, y) in batches(data(folder)).items():
        client = deepcopy(server).train()
        optimizer = torch.optim.SGD(client.parameters(), lr=RATE, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(client(x), y).backward()
            for mine, theirs in zip(client.parameters(), server.parameters(), strict=True):
                mine.grad.add_(mine.detach() - theirs.detach(), alpha=2.0)  # type: ignore[union-attr]
            optimizer.step()
        (round_,) = watched.rounds
        sent = round_.clients[round_.names.index(name)]
        assert round_.samples[round_.names.index(name)] == 3 * len(y)
        for key, tensor in client.state_dict().items():
            assert close(sent[key].double(), tensor.double(), 2e-3), key


def test_local_epochs_show_every_picture_as_often_each_time_in_another_order(folder: Path) -> None:  # noqa: F811
    seen: dict[str, list[torch.Tensor]] = {}
    for batch, _, _ in data(folder, local_epochs=2, batch_size=8).train_dataloader():
        for name, part in batch.items():
            seen.setdefault(name, []).extend([] if part is None else part[0])
    for name, (x, _) in batches(data(folder)).items():
        once, again = torch.stack(seen[name][: len(x)]), torch.stack(seen[name][len(x) :])
        assert len(again) == len(x)
        assert not torch.equal(once, again)
        for shown in (once, again):
            assert torch.equal(shown.flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)


def test_some_clients_train_in_a_round_and_others_in_the_next(folder: Path) -> None:  # noqa: F811
    watched = Watched()
    fitted(data(folder, clients=2, alpha=1.0), 6, fusion=watched, participation=0.5)
    drawn = [frozenset(round_.names) for round_ in watched.rounds]
    assert {len(names) for names in drawn} == {2}
    assert len(set(drawn)) > 1
    again = Watched()
    fitted(data(folder, clients=2, alpha=1.0), 6, fusion=again, participation=0.5)
    assert [frozenset(round_.names) for round_ in again.rounds] == drawn


def test_what_is_not_finite_never_reaches_the_server(folder: Path) -> None:  # noqa: F811
    honest = fitted(data(folder, clients=2, alpha=1.0), fusion=Median(), attacks={"clipart-0": "nan"})
    assert all(tensor.isfinite().all() for tensor in honest.network.state_dict().values())
    assert float(honest.trainer.callback_metrics["round/left out"]) == 1
    start = module()
    liars: Mapping[str, Any] = dict.fromkeys(("clipart", "sketch"), "nan")
    kept = fitted(data(folder), attacks=dict(liars))
    start.configure_model()
    torch.manual_seed(0)
    assert same_state(kept.network.state_dict(), Architecture("resnet8", 12).build().state_dict())


def test_clients_need_no_common_base(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each starts from its own file, in the first round alone; PLeaS makes one network of theirs."""
    bases = {}
    for seed, name in enumerate(("clipart", "sketch")):
        torch.manual_seed(seed + 10)
        bases[name] = tmp_path / f"{name}.pth"
        torch.save(Architecture("resnet8", 12).build().state_dict(), bases[name])
    watched = Watched()
    fitted(data(folder), 2, fusion=watched, bases=bases, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9))
    for name, state in zip(watched.rounds[0].names, watched.rounds[0].clients, strict=True):
        assert torch.allclose(state["conv1.weight"], torch.load(bases[name])["conv1.weight"], atol=1e-5)
    for state in watched.rounds[1].clients:
        assert torch.allclose(state["conv1.weight"], watched.rounds[0].clients[0]["conv1.weight"], atol=1e-5)
    merged = fitted(data(folder), fusion=MergedClients(PLeaS()), bases=bases)
    assert all(tensor.isfinite().all() for tensor in merged.network.state_dict().values())
    one = {tuple(state["conv1.weight"].shape) for state in (merged.network.state_dict(), watched.rounds[0].server)}
    assert len(one) == 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_killed_run_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """With all that is drawn: who trains, who lies and how, what the actor-critic tries and has learned."""
    options = {"participation": 0.75, "attacks": {"clipart-0": "noise"}, "proximal": 0.1}
    given = {"clients": 2, "alpha": 1.0, "batch_size": 16}
    whole = module(fusion=ActorCriticFusion(6), **options)
    trainer(3).fit(whole, datamodule=data(folder, **given))
    saving = ModelCheckpoint(tmp_path, filename="round", save_last=False)
    first = module(fusion=ActorCriticFusion(6), **options)
    trainer(2, callbacks=[saving], enable_checkpointing=True).fit(first, datamodule=data(folder, **given))
    again, learned = module(fusion=ActorCriticFusion(6), **options), ActorCriticFusion(6)
    resumed = trainer(3, callbacks=[ModelCheckpoint(tmp_path, filename="later")], enable_checkpointing=True)
    resumed.fit(again, datamodule=data(folder, **given), ckpt_path=tmp_path / "round.ckpt", weights_only=True)
    assert same_state(again.network.state_dict(), whole.network.state_dict())
    learned.load_state(torch.load(tmp_path / "later.ckpt", weights_only=True)["fusion"])
    assert isinstance(whole.fusion, ActorCriticFusion)
    assert same_state(learned.networks.state_dict(), whole.fusion.networks.state_dict())


@pytest.mark.parametrize(("options", "given", "words"), [
    ({"proximal": -1.0}, {}, "proximal is -1.0"),
    ({"participation": 0.0}, {}, "participation is 0.0"),
    ({"attacks": {"clipart": "bribe"}}, {}, "attacks is 'bribe'"),
    ({"attacks": {"photo": "nan"}}, {}, "attacks names 'photo'; allowed: the clients, clipart, sketch"),
    ({"bases": {"photo": Path("a.pth")}}, {}, "bases names 'photo'"),
    ({"fusion": SearchedMean(2)}, {"validation_fraction": 0}, "fusion is SearchedMean, which looks at the server's"),
    ({}, {"local_epochs": 0}, "local_epochs is 0"),
    ({}, {"clients": 1000}, "clients is 1000 with alpha 0.5, which leaves"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_training(
    options: dict[str, Any],
    given: dict[str, Any],
    words: str,
    folder: Path,  # noqa: F811
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fitted(data(folder, **given), **options)


def test_the_command_takes_fusions(inside: Path) -> None:
    tiny = Path(__file__).resolve().parent.parent.parent / "configs" / "tiny"
    main([
        "fit", "--config", str(tiny / "fit_federated.yaml"), "--trainer.enable_progress_bar", "false",
        "--trainer.max_epochs", "1", "--data.init_args.local_epochs", "2", "--model.init_args.proximal", "0.1",
        "--model.init_args.attacks", '{"sketch-0": "sign_flip"}', "--model.init_args.fusion",
        json.dumps({"class_path": "project.modules.fusion.MergedClients", "init_args": {"method": METHOD}}),
    ])  # fmt: skip
    saved = torch.load(inside / "runs" / "tiny" / "federated" / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["proximal"] == 0.1
