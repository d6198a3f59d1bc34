"""A population that is trained by WASH and ends in its mean (arXiv 2405.17517)."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from project.data.population import PopulationDataModule
from project.data.sharding import seed_of
from project.errors import CheckpointError, ConfigurationError, between, flags, one_of, whole
from project.models import DomainScores
from project.models.wash import Schedule, draw, exchange, shuffle, shuffle_chances
from project.modules.common import FitBytes
from project.modules.fusion import weighted_mean
from project.modules.side_by_side import SideBySide
from project.runtime import World
from project.runtime.saving import atomic_save
from project.student.reestimation import Reestimation


class WashModule(SideBySide):
    """Networks that are trained side by side from one start, and swap weights, so that they can be averaged in the end.

    After every step, entries of each tensor are drawn with a chance that falls with depth, and the members' values
    there are permuted among them (WASH, arXiv 2405.17517): their mean does not move, and they stay near each other at
    the cost of sending few numbers. Statistics of batch norms are each member's own. With chance 0 the members are
    trained independently.

    The network of this module is the members' mean, with statistics of batch norms re-estimated on training pictures;
    it is what is validated, tested and saved, in checkpoints like those of FineTuneModule. ``train/spread`` is the
    members' root mean square distance from it. In one process, ``val/members/accuracy``, their mean, and
    ``val/ensemble/accuracy``, that of their mean probabilities, stand beside ``val/accuracy``.

    All members are trained in one process, or each in its own (``trainer.devices`` as many as members); then what is
    drawn is all that is sent, and a run that was interrupted cannot be gone on from.

    Args:
        args: As in FineTuneModule.
        chance: p, the chance of an entry of the first layer to be drawn in a step.
        schedule: ``falling`` linearly to 0 at the last layer, or ``constant``.
        optimizer_state: Whether what the optimizers keep of an entry moves with it.
        statistics: How many training pictures batch norms are re-estimated on.
        save_members: Folder for the members' own files at the end of the fit, member-0.ckpt and so on.
        options: As in FineTuneModule.

    Raises:
        ConfigurationError: If a number is not allowed.
    """

    def __init__(
        self,
        *args: Any,
        chance: float = 0.001,
        schedule: Schedule = "falling",
        optimizer_state: bool = False,
        statistics: int = 512,
        save_members: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.hparams["save_members"] = None if save_members is None else str(save_members)
        between(0, 1, chance=chance)
        one_of(Schedule, schedule=schedule)
        flags(optimizer_state=optimizer_state)
        whole(2, statistics=statistics)
        self.chance, self.schedule, self.optimizer_state = chance, schedule, optimizer_state
        self.statistics, self.save_members = statistics, save_members
        self.members: dict[int, nn.Module] = {}  # kept out of the state dict, which is the mean's
        self.shuffles = 0
        self.resumed: Mapping[str, Any] = {}
        self.settled = True

    def setup(self, stage: str) -> None:
        """Refuse data without members, and schedules that count steps."""
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, PopulationDataModule):
                raise ConfigurationError(f"data is {type(data).__name__}; use PopulationDataModule to train several.")
            if self.lr_interval != "epoch":
                raise ConfigurationError(f"lr_interval is {self.lr_interval!r}; allowed for a population: 'epoch'.")
            data.local_members  # noqa: B018  # refuses other numbers of processes
        super().setup(stage)

    def logged(self) -> set[str]:
        """Name the figures that a fit logs on the data of the trainer."""
        names = super().logged() | {"train/spread"}
        alone = World.current().size == 1 and "val/accuracy" in names
        return names | ({"val/members/accuracy", "val/ensemble/accuracy"} if alone else set())

    def writes(self) -> FitBytes:
        """Estimate what the fit writes, members and their optimizers once the data say how many there are."""
        one = super().writes()
        count = getattr(getattr(self._trainer, "datamodule", None), "members", 0)
        return replace(one, weights=one.weights * (1 + count), optimizer=one.optimizer * count)

    def configure_optimizers(self) -> Any:
        """Make this process's members, and for each its optimizer and schedule."""
        self.members = {number: deepcopy(self.network) for number in self._data.local_members}
        for number, state in self.resumed.get("members", {}).items():
            self.members[number].load_state_dict(state)
        self.chances = shuffle_chances(self.network, self.chance, self.schedule)
        return self.optimized_each(self.members.values())

    def on_train_start(self) -> None:
        """Keep Lightning from adding up the gradients of members in several processes."""
        super().on_train_start()
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = False
        for member in self.members.values():
            member.train()
            for name in self.freeze_names:
                member.get_submodule(name).eval()

    def training_step(self, batch: Mapping[int, tuple[Tensor, Tensor]], batch_idx: int) -> None:  # type: ignore[override]
        """Take a step of every member of this process, and shuffle.

        Args:
            batch: Member -> pictures (batch, 3, height, width) and their columns of the label space (batch,).
            batch_idx: Plays no part.
        """
        losses = []
        for (number, member), optimizer in zip(self.members.items(), self.own_optimizers, strict=True):
            x, y = batch[number]
            loss = cross_entropy(member(x), y, label_smoothing=self.label_smoothing)
            losses.append(loss.detach())
            if self.scope is not None:
                loss = loss + self.scope.penalty(member, self.scope_targets)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self._shuffle()
        self.settled = False
        self.log("train/loss", torch.stack(losses).mean(), prog_bar=True)
        if self.trainer.is_last_batch:
            for schedule in self.own_schedules:
                schedule.step()
            self._settle()  # before the validation that ends the epoch

    @torch.no_grad()
    def _shuffle(self) -> None:
        """Permute what is drawn among the members; all processes draw alike."""
        seed = seed_of(self._data.seed, self.shuffles)
        self.shuffles += 1
        copies = [self._copy(*pair) for pair in zip(self.members.values(), self.own_optimizers, strict=True)]
        sizes = {name: copies[0][name].numel() for name in self.chances}
        draws = draw(sizes, self.chances, self._data.members, seed)
        draws = {name: draws[name.partition(" ")[0]] for name in copies[0]}
        if len(copies) > 1:
            shuffle(copies, draws)
        else:
            exchange(copies[0], draws)

    def _copy(self, member: nn.Module, optimizer: Any) -> dict[str, Tensor]:
        """A member's tensors that are shuffled, those of its optimizer behind a blank."""
        own = dict(member.named_parameters())
        tensors = {name: own[name].data for name in self.chances}
        if self.optimizer_state:
            for name in self.chances:
                kept = optimizer.state.get(own[name], {})
                tensors |= {
                    f"{name} {key}": value
                    for key, value in kept.items()
                    if isinstance(value, Tensor) and value.shape == own[name].shape
                }
        return tensors

    @torch.no_grad()
    def _settle(self) -> None:
        """Make the module's network the members' mean, and re-estimate its batch norms."""
        world, count = World.current(), self._data.members
        states = [member.state_dict() for member in self.members.values()]
        mean = weighted_mean(states, [1 / count] * len(states))
        spread = torch.zeros((), dtype=torch.float64, device=self.device)
        for tensor in mean.values():
            if tensor.is_floating_point():
                world.reduce(tensor)
        for member in self.members.values():
            for name, parameter in member.named_parameters():
                spread += (parameter.double() - mean[name].double()).square().sum()
        world.reduce(spread)
        self.network.load_state_dict(mean)
        pictures = [batch.to(self.device) for batch in self._data.plain_batches(self.statistics)]
        Reestimation(self.network).finish(lambda: pictures)
        self.settled = True
        if self.trainer.training:
            self.log("train/spread", (spread / count).sqrt().float())

    def on_train_epoch_end(self) -> None:
        """Settle what was cut short, by ``max_steps`` or ``max_time``."""
        if not self.settled:
            self._settle()

    def on_validation_epoch_start(self) -> None:
        """Reset the scores, those of the members too."""
        super().on_validation_epoch_start()
        if not self.settled:
            self._settle()
        self.beside: dict[str, DomainScores] = {}
        labels = self.description.label_space
        if len(self.members) > 1 and labels is not None and self.trainer.state.fn == "fit":
            names = ("ensemble", *map(str, self.members))
            self.beside = {name: DomainScores(labels).to(self.device) for name in names}
            for member in self.members.values():
                member.eval()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        super().validation_step(batch, batch_idx, dataloader_idx)
        if not self.beside:
            return
        x, y = batch
        labels = self.description.label_space
        assert labels is not None
        columns, chances = labels.columns(labels.domains[dataloader_idx]), []
        for number, member in self.members.items():
            logits = member(x)[:, columns]
            chances.append(logits.softmax(1))
            self.beside[str(number)].update(dataloader_idx, logits, y, cross_entropy(logits, y))
        mean = torch.stack(chances).mean(0)
        self.beside["ensemble"].update(dataloader_idx, mean, y, nll_loss(mean.log(), y))

    def on_validation_epoch_end(self) -> None:
        """Log accuracies and loss, those of the members too."""
        super().on_validation_epoch_end()
        if not self.beside:
            return
        found = {name: scores.compute()["accuracy"] for name, scores in self.beside.items()}
        self.log("val/ensemble/accuracy", found.pop("ensemble"), sync_dist=True)
        self.log("val/members/accuracy", torch.stack(list(found.values())).mean(), sync_dist=True)
        for member in self.members.values():
            member.train()
            for name in self.freeze_names:
                member.get_submodule(name).eval()

    def on_fit_end(self) -> None:
        """Write the members' own files, and move the members off the accelerator."""
        for number, member in self.members.items():
            member.cpu()
            if self.save_members is not None:
                state = {f"network.{name}": tensor for name, tensor in member.state_dict().items()}
                self.save_members.mkdir(parents=True, exist_ok=True)
                entries = {"state_dict": state, **self.description.to_entries()}
                atomic_save(entries, self.save_members / f"member-{number}.ckpt")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the members, of a run in one process."""
        super().on_save_checkpoint(checkpoint)
        if len(self.members) > 1:
            checkpoint["members"] = {number: member.state_dict() for number, member in self.members.items()}
        checkpoint["shuffles"] = self.shuffles

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the mean, and for a fit that goes on the members.

        Raises:
            CheckpointError: If a fit is to go on, but the members had a process each.
        """
        super().on_load_checkpoint(checkpoint)
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if fitting and "members" not in checkpoint:
            raise CheckpointError(
                "The checkpoint holds the mean of members that had a process each, and not the members; a fit cannot "
                "go on from it."
            )
        self.resumed, self.shuffles = checkpoint, checkpoint.get("shuffles", 0)
        for number, member in self.members.items():
            member.load_state_dict(checkpoint["members"][number])

    @property
    def _data(self) -> PopulationDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PopulationDataModule)
        return data
