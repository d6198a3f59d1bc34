"""Rounds of federated averaging (arXiv 1602.05629), with weight scope alignment where it is asked for."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.data import ClientDataModule
from project.errors import CheckpointError, ConfigurationError
from project.models.scope import Fusion, fused_scope, layer_weights, scope_divergence
from project.modules.common import FitBytes
from project.modules.fine_tune import FineTuneModule


class FederatedModule(FineTuneModule):
    """A network that clients train in turns without showing each other their pictures.

    An epoch is a round. Every client starts from the server's network with a fresh optimizer and trains on its own
    pictures; then the server takes the mean of the clients, weighted by the numbers of pictures that they trained on,
    batch norm statistics included. Validation, tests and checkpoints are of the server's network alone, and its
    checkpoints are those of FineTuneModule: they can be tested, merged, or fine-tuned on. One that was written in the
    middle of a round cannot be gone on from.

    With ``scope``, every client is pulled towards a weight scope (WSA, arXiv 2408.12237): with files as its target
    towards theirs in all rounds, else towards the scopes of the last round's clients, fused with their numbers of
    pictures as shares; in the first round towards those of the start.

    Logged beside what FineTuneModule logs, for every round: ``train/loss/<client>``, the mean over its pictures, and
    ``round/scope gap``, how far the clients' scopes are from the fused ones, mean over clients of the sum over layers;
    ``train/scope`` is the mean over clients. Every client's step counts as one. Arguments are those of FineTuneModule.

    The clients take turns batch by batch in one process, which holds all their networks and optimizers. Lightning
    refuses ``trainer.gradient_clip_val`` and ``trainer.accumulate_grad_batches``, which play no part here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False  # every client has an optimizer of its own

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

    def logged(self) -> set[str]:
        """Name the figures that a fit logs on the data of the trainer."""
        clients = {f"train/loss/{name}" for name in self.trainer.datamodule.client_names}  # type: ignore[attr-defined]
        return super().logged() | clients | {"round/scope gap"}

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
        configurations = []
        for client in self.clients.values():
            optimized = self.optimized([weight for weight in client.parameters() if weight.requires_grad])
            configurations.append(optimized if isinstance(optimized, dict) else {"optimizer": optimized})
        schedules = [
            configuration["lr_scheduler"]["scheduler"]
            for configuration in configurations
            if "lr_scheduler" in configuration
        ]
        if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise ConfigurationError("lr_scheduler is ReduceLROnPlateau; rounds need one that goes by their number.")
        return [configuration["optimizer"] for configuration in configurations], schedules

    def on_train_start(self) -> None:
        """Log how many pictures and classes each client has."""
        super().on_train_start()
        data: ClientDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, samples in data.client_samples().items():
            classes = len({label for _, label in samples})
            rank_zero_info(f"client {name} has {len(samples)} pictures of {classes} classes")

    def _open_round(self) -> None:
        """Send the server's network to the clients."""
        for client in self.clients.values():
            client.load_state_dict(self.network.state_dict())
            client.train()
            for name in self.freeze_names:
                client.get_submodule(name).eval()

    def training_step(self, batch: Mapping[str, tuple[Tensor, Tensor] | None], batch_idx: int) -> None:  # type: ignore[override]
        """Take a step of every client.

        Args:
            batch: Client -> pictures (batch, 3, height, width) and their columns of the label space (batch,), or None.
            batch_idx: Plays no part.
        """
        if not self.pictures:
            self._open_round()
        losses, penalties = {}, []
        for (name, client), optimizer in zip(self.clients.items(), self._optimizers, strict=True):
            samples = batch[name]
            if samples is None:
                continue
            x, y = samples
            loss = losses[name] = cross_entropy(client(x), y, label_smoothing=self.label_smoothing)
            if self.scope is not None:
                penalties.append(self.scope.penalty(client, self.scope_targets))
                loss = loss + penalties[-1]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.pictures[name] += len(x)
            self.log(f"train/loss/{name}", losses[name].detach(), on_step=False, on_epoch=True, batch_size=len(x))
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

    @torch.no_grad()
    def _close_round(self) -> None:
        """Take the mean of the clients that trained, fuse their scopes, and move on in the schedules."""
        clients = [self.clients[name] for name in self.pictures]
        total = sum(self.pictures.values())
        shares = [count / total for count in self.pictures.values()]
        average_into(self.network, clients, shares)
        weights = [layer_weights(client) for client in clients]
        fused = {name: fused_scope([layers[name] for layers in weights], self._fusion, shares) for name in weights[0]}
        gaps = [sum(float(scope_divergence(layers[n], scope)) for n, scope in fused.items()) for layers in weights]
        self.log("round/scope gap", sum(gaps) / len(gaps))
        if self.scope is not None and not self.scope.target:
            self.scope_targets = {name: fused[name] for name in self.scope_targets}
        for schedule in self._schedules:
            schedule.step()
        for optimizer in self._optimizers:
            optimizer.state.clear()  # the next round's are fresh, and no checkpoint need hold these
        self.pictures.clear()

    @property
    def _fusion(self) -> Fusion:
        return "variances" if self.scope is None else self.scope.fusion

    @property
    def _optimizers(self) -> Sequence[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    @property
    def _schedules(self) -> Sequence[Any]:
        schedules = self.lr_schedulers()
        return schedules if isinstance(schedules, list) else [] if schedules is None else [schedules]


def average_into(target: nn.Module, networks: Sequence[nn.Module], shares: Sequence[float]) -> None:
    """Set a network to the weighted mean of others, tensor by tensor; batch counters are the first one's.

    Args:
        target: Of their architecture; changed in place.
        networks: The others.
        shares: What each counts for, with a sum of 1.
    """
    states = [network.state_dict() for network in networks]
    for name, tensor in target.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(sum(share * state[name].double() for share, state in zip(shares, states, strict=True)))
        else:
            tensor.copy_(states[0][name])
