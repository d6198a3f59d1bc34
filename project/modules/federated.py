"""Rounds of federated learning: clients train, the server makes one network of theirs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.data import ClientDataModule
from project.data.sharding import seed_of
from project.errors import CheckpointError, ConfigurationError, at_least, one_of, present, share
from project.models import DomainScores, read_weights
from project.models.scope import Fusion, fused_scope, layer_weights, scope_divergence
from project.models.strict import load_body
from project.modules.common import FitBytes
from project.modules.fusion import (
    Attack,
    Median,
    ProxyScore,
    Round,
    ServerFusion,
    State,
    TrimmedMean,
    WeightedMean,
    attacked,
    is_finite,
)  # fmt: skip
from project.modules.side_by_side import SideBySide


class FederatedModule(SideBySide):
    """A network that clients train in turns without showing each other their pictures.

    An epoch is a round. Every client starts from the server's network with a fresh optimizer and trains on its own
    pictures; then the server makes its next network of the clients', by default their mean, weighted by the numbers of
    pictures that they trained on, batch norm statistics included (arXiv 1602.05629). A client that sends a value which
    is not finite is left out of the round; where all do, the server stays as it was. Validation, tests and checkpoints
    are of the server's network alone, and its checkpoints are those of FineTuneModule: they can be tested, merged, or
    fine-tuned on. One that was written in the middle of a round cannot be gone on from.

    With ``scope``, every client is pulled towards a weight scope (WSA, arXiv 2408.12237): with files as its target
    towards theirs in all rounds, else towards the scopes of the last round's clients, fused with their numbers of
    pictures as shares; in the first round towards those of the start.

    Logged beside what FineTuneModule logs, for every round: ``train/loss/<client>``, the mean over its pictures, and
    ``round/scope gap``, how far the clients' scopes are from the fused ones, mean over clients of the sum over layers;
    ``round/left out``, how many clients were not finite; ``train/scope`` is the mean over clients. Every client's step
    counts as one.

    The clients take turns batch by batch in one process, which holds all their networks and optimizers. Lightning
    refuses ``trainer.gradient_clip_val`` and ``trainer.accumulate_grad_batches``, which play no part here.

    Args:
        args: As in FineTuneModule.
        fusion: What the server makes of its clients; the weighted mean by default.
        proximal: μ of FedProx (arXiv 1812.06127): μ/2 · ‖θ − server's θ‖² is added to every client's loss; 0 for none.
        participation: Share of the clients that train in a round, drawn anew for each; at least one does.
        bases: Client -> file of weights that it starts the first round from, in place of the server's; its head is
            left out where it has another number of classes. Clients of unlike bases need a fusion that matches units.
        attacks: Client -> how it lies, to see what the fusion makes of it; see
            :func:`~project.modules.fusion.attacks.attacked`.
        options: As in FineTuneModule.

    Raises:
        ConfigurationError: If a number is not allowed, or there is no such attack.
    """

    def __init__(
        self,
        *args: Any,
        fusion: ServerFusion | None = None,
        proximal: float = 0.0,
        participation: float = 1.0,
        bases: dict[str, Path] | None = None,
        attacks: dict[str, Attack] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.remove_ignored_hparams(["fusion", "bases"])  # what only code could load
        at_least(0, proximal=proximal)
        share(participation=participation)
        for attack in (attacks or {}).values():
            one_of(Attack, attacks=attack)
        self.fusion: ServerFusion = WeightedMean() if fusion is None else fusion
        self.proximal, self.participation = proximal, participation
        self.bases, self.attacks = bases or {}, attacks or {}

    def setup(self, stage: str) -> None:
        """Refuse data without clients, several processes, and schedules that count steps."""
        if stage == "fit":
            self._check_trainer()
        super().setup(stage)

    def _check_trainer(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClientDataModule):
            raise ConfigurationError(f"data is {type(data).__name__}; use ClientDataModule to train in rounds.")
        if self.trainer.world_size > 1:
            raise ConfigurationError(
                f"trainer.devices and num_nodes make {self.trainer.world_size} processes; FederatedModule trains its "
                f"clients in one."
            )
        if self.lr_interval != "epoch":
            raise ConfigurationError(f"lr_interval is {self.lr_interval!r}; rounds have one rate each: use 'epoch'.")
        for argument, named in (("bases", self.bases), ("attacks", self.attacks)):
            if unknown := sorted(set(named) - set(data.client_names)):
                raise ConfigurationError(
                    f"{argument} names {unknown[0]!r}; allowed: the clients, {', '.join(data.client_names)}."
                )
        present(*self.bases.values())
        data.client_samples()  # which refuses more clients than there are pictures for, before they have networks
        if not isinstance(self.fusion, WeightedMean | TrimmedMean | Median) and data.validation_fraction == 0:
            raise ConfigurationError(
                f"fusion is {type(self.fusion).__name__}, which looks at the server's own pictures, those of "
                f"validation, but validation_fraction is 0."
            )

    def logged(self) -> set[str]:
        """Name the figures that a fit logs on the data of the trainer."""
        clients = {f"train/loss/{name}" for name in self.trainer.datamodule.client_names}  # type: ignore[attr-defined]
        return super().logged() | clients | {"round/scope gap", "round/left out"}

    def writes(self) -> FitBytes:
        """Estimate what the fit writes: at the end of a round, optimizers hold nothing."""
        return replace(super().writes(), optimizer=0)

    def configure_optimizers(self) -> Any:
        """Make the clients, and for each its optimizer and schedule."""
        assert isinstance(self.trainer.datamodule, ClientDataModule)  # type: ignore[attr-defined]
        names = self.trainer.datamodule.client_names  # type: ignore[attr-defined]
        server = self.network
        self.pictures: defaultdict[str, int] = defaultdict(int)
        # Kept out of the state dict: when a round opens they are the server's network.
        self.clients: dict[str, nn.Module] = {name: deepcopy(server) for name in names}
        return self.optimized_each(self.clients.values())

    def on_train_start(self) -> None:
        """Log how many pictures and classes each client has."""
        super().on_train_start()
        data: ClientDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, samples in data.client_samples().items():
            classes = len({label for _, label in samples})
            rank_zero_info(f"client {name} has {len(samples)} pictures of {classes} classes")

    def _open_round(self) -> None:
        """Send the server's network to the clients."""
        for name, client in self.clients.items():
            client.load_state_dict(self.network.state_dict())
            if self.current_epoch == 0 and name in self.bases:
                path = self.bases[name]
                load_body(client, read_weights(path).state_dict, f"base {path} of {name}")
            client.train()
            for part in self.freeze_names:
                client.get_submodule(part).eval()
        names = list(self.clients)
        count = max(1, round(self.participation * len(names)))
        drawn = torch.randperm(len(names), generator=self._generator(0))[:count].tolist()
        self.training_clients = {names[index] for index in drawn}

    def training_step(self, batch: Mapping[str, tuple[Tensor, Tensor] | None], batch_idx: int) -> None:  # type: ignore[override]
        """Take a step of every client.

        Args:
            batch: Client -> pictures (batch, 3, height, width) and their columns of the label space (batch,), or None.
            batch_idx: Plays no part.
        """
        if not self.pictures:
            self._open_round()
        losses, penalties = {}, []
        for (name, client), optimizer in zip(self.clients.items(), self.own_optimizers, strict=True):
            samples = batch[name]
            if samples is None or name not in self.training_clients:
                continue
            x, y = samples
            loss = losses[name] = cross_entropy(client(x), y, label_smoothing=self.label_smoothing)
            if self.scope is not None:
                penalties.append(self.scope.penalty(client, self.scope_targets))
                loss = loss + penalties[-1]
            if self.proximal:
                loss = loss + self.proximal / 2 * squared_distance(client, self.network)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.pictures[name] += len(x)
            self.log(f"train/loss/{name}", losses[name].detach(), on_step=False, on_epoch=True, batch_size=len(x))
        if losses:  # of few clients, those that are left may not train in this round
            self.log("train/loss", sum(loss.detach() for loss in losses.values()) / len(losses), prog_bar=True)
        if penalties:
            self.log("train/scope", torch.stack(penalties).mean().detach())
        if self.trainer.is_last_batch:  # before the validation that ends the epoch
            self._close_round()

    def on_train_epoch_end(self) -> None:
        """Close a round that was cut short, by ``max_steps`` or ``max_time``, with what the clients have learned."""
        if self.pictures:
            self._close_round()

    def on_fit_end(self) -> None:
        """Move the clients off the accelerator."""
        for client in self.clients.values():
            client.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the server's network.

        Raises:
            CheckpointError: If the checkpoint was written in the middle of a round.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
        if progress is not None and progress["current"]["ready"] and not progress["is_last_batch"]:
            raise CheckpointError(
                "The checkpoint was written in the middle of a round, and holds none of what its clients had learned; "
                "use one from the end of a round."
            )
        super().on_load_checkpoint(checkpoint)
        self.fusion.load_state(checkpoint.get("fusion", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the fusion has learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["fusion"] = self.fusion.state()

    @torch.no_grad()
    def _close_round(self) -> None:
        """Fuse the clients that trained, and their scopes, and move on in the schedules."""
        generator = self._generator(1)
        server = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        sent = {
            name: attacked(self.clients[name].state_dict(), server, self.attacks[name], generator)
            if name in self.attacks
            else self.clients[name].state_dict()
            for name in self.pictures
        }
        states = {name: state for name, state in sent.items() if is_finite(state)}
        for name in sorted(set(sent) - set(states)):
            rank_zero_info(
                f"client {name} has sent values that are not finite; round {self.current_epoch} leaves it out"
            )
        self.log("round/left out", float(len(sent) - len(states)))
        if states:
            self._fuse(states, server)
        for schedule in self.own_schedules:
            schedule.step()
        for optimizer in self.own_optimizers:
            optimizer.state.clear()  # the next round's are fresh, and no checkpoint need hold these
        self.pictures.clear()

    def _fuse(self, states: Mapping[str, State], server: State) -> None:
        """Make the server's next network of what sound clients have sent."""
        scratch = deepcopy(self.network)
        given = Round(
            self.current_epoch,
            server,
            list(states.values()),
            list(states),
            [self.pictures[name] for name in states],
            lambda state: self._proxy_score(scratch, state),
            lambda: [x for _, x, _ in self._proxy_batches()],
            lambda state: _loaded(deepcopy(scratch), state),
        )
        with torch.enable_grad():
            self.network.load_state_dict(self.fusion.fuse(given))
        weights = [{name: state[name] for name in layer_weights(self.network)} for state in given.clients]
        fused = {
            n: fused_scope([layers[n] for layers in weights], self._scope_fusion, given.shares) for n in weights[0]
        }
        gaps = [sum(float(scope_divergence(layers[n], scope)) for n, scope in fused.items()) for layers in weights]
        self.log("round/scope gap", sum(gaps) / len(gaps))
        if self.scope is not None and not self.scope.target:
            self.scope_targets = {name: fused[name] for name in self.scope_targets}

    def _proxy_batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The server's own pictures: number of the domain, pictures (batch, 3, height, width), labels (batch,)."""
        for number, loader in enumerate(self.trainer.datamodule.val_dataloader()):  # type: ignore[attr-defined]
            for x, y in loader:
                yield number, x.to(self.device), y.to(self.device)

    @torch.no_grad()
    def _proxy_score(self, scratch: nn.Module, state: State) -> ProxyScore:
        """How a network does on the server's own pictures."""
        labels = self.description.label_space
        assert labels is not None
        network, scores = _loaded(scratch, state), DomainScores(labels).to(self.device)
        for number, x, y in self._proxy_batches():
            logits = network(x)[:, labels.columns(labels.domains[number])]
            scores.update(number, logits, y, cross_entropy(logits, y))
        found = scores.compute()
        loss = float(found["loss"])
        return ProxyScore(loss if isfinite(loss) else inf, float(found["accuracy"]))

    def _generator(self, purpose: int) -> torch.Generator:
        """Draws the same in a round, whether the run was interrupted before it or not."""
        return torch.Generator().manual_seed(seed_of(self.trainer.datamodule.seed, self.current_epoch, purpose))  # type: ignore[attr-defined]

    @property
    def _scope_fusion(self) -> Fusion:
        return "variances" if self.scope is None else self.scope.fusion


def squared_distance(network: nn.Module, other: nn.Module) -> Tensor:
    """‖θ − θ'‖² over the parameters that are trained; no gradient reaches the other network.

    Args:
        network: θ.
        other: θ', of the same architecture.
    """
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    return torch.stack([(mine - theirs.detach()).square().sum() for mine, theirs in pairs if mine.requires_grad]).sum()


def _loaded(network: nn.Module, state: State) -> nn.Module:
    network.load_state_dict(state)
    return network.eval()
