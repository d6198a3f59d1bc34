"""Fine-tuning a network on one domain, or on several at once."""

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from project.allocation import stored_bytes
from project.data import ClientDataModule
from project.errors import CheckpointError, ConfigurationError, between, present
from project.models import Architecture, Description, DomainScores, LabelSpace, pretrained, read_weights
from project.models.architecture import Stem
from project.models.custom import find_maker
from project.models.freezing import freeze as freeze_parts
from project.models.heads import column_labels
from project.models.labels import check_several
from project.models.network import build_custom, sized_like
from project.models.pretrained import find_weights
from project.models.scope import Scope
from project.models.strict import load_body
from project.modules.checks import OTHERS, check_monitor, check_optimizer, check_watched, made_optimizer
from project.modules.common import FitBytes, optimizer_bytes
from project.modules.weight_scope import WeightScope


class FineTuneModule(LightningModule):
    """A network that is trained on pictures and their classes, and scored on every domain apart.

    The network is built when a trainer is attached, since the data decide how many classes there are, or when a
    checkpoint is loaded. Validation and tests have one loader for each domain, in the order of the
    label space. Logged are ``train/loss``; ``val/loss`` and ``val/accuracy``, means over the domains; and
    ``val/<domain>/accuracy``; the same under ``test``, where ``test/<domain>/per_class/<class>`` comes to them.

    Args:
        architecture: Name of the network: resnet18, 34, 50, 101, 152, for small pictures resnet8, 20, 32, 44, 56, 110,
            another classification network by torchvision's name, timm's behind timm/, or the dotted path of a class or
            function of your own that builds one, such as mypackage.models.MyNet.
        weights: ImageNet weights to start from, by torchvision's name, such as IMAGENET1K_V1. Random by default.
        base: File of weights to start from; its head is left out where it has another number of classes.
        stem: First layers of resnet18 to resnet152: imagenet, or small (no early downsampling) for small pictures.
        width: Factor on the channels of resnet8 to resnet110.
        num_classes: Number of logits; by default as many as the data have classes.
        optimizer: Makes the optimizer from the parameters. By default AdamW without weight decay.
        lr_scheduler: Makes the learning-rate schedule from the optimizer. Constant by default.
        lr_interval: What the schedule counts, epochs or steps.
        label_smoothing: Share of the target spread over all classes while training, from 0 to 1.
        freeze: Names of parts that are left as they are, batch norm statistics included, such as conv1 or layer1.0.
        scope: Pull of the weights of every convolution and linear layer towards a weight scope (WSA, which claims that
            networks trained apart average better then). None by default; ``train/scope`` is logged where there is one.
        arguments: Keyword arguments of a dotted path, or of torchvision's other networks and timm's; where a dotted
            path takes ``num_classes``, the data give it.

    Raises:
        ConfigurationError: If the arguments contradict each other, or a name is not known.
    """

    network: nn.Module

    def __init__(
        self,
        architecture: str = "resnet18",
        weights: str | None = None,
        base: Path | None = None,
        stem: Stem = "imagenet",
        width: int = 1,
        num_classes: int | None = None,
        # jsonargparse passes what two optimizers share on to the one named instead: AdamW's decay would harm SGD
        optimizer: OptimizerCallable = lambda parameters: optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        freeze: tuple[str, ...] = (),
        scope: WeightScope | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["scope"])
        # what only code could load; from the command line come plain values, which stay
        self.remove_ignored_hparams([name for name, value in self.hparams.items() if callable(value)])
        self.hparams["base"] = None if base is None else str(base)
        if weights is not None and base is not None:
            raise ConfigurationError(f"weights is {weights!r} and base is {str(base)!r}; only one of them is allowed.")
        between(0, 1, label_smoothing=label_smoothing)
        check_optimizer(optimizer, lr_scheduler)
        # the classes may come later, but a name that is not known is refused now
        self.draft = Architecture(architecture, 1 if num_classes is None else num_classes, stem, width, arguments)
        if weights is not None:
            find_weights(self.draft, weights)
        self.weights, self.base, self.num_classes = weights, base, num_classes
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.label_smoothing, self.freeze_names = label_smoothing, freeze
        self.scope, self.scope_targets = scope, dict[str, Scope]()
        self.description = Description()

    @property
    def untrained(self) -> bool:
        """Whether nobody has said where its weights come from, so that they are random until a fit or a checkpoint."""
        return self.weights is None and self.base is None

    def writes(self) -> FitBytes:
        """Estimate what the fit writes; the head counts little where the data are to say how many classes there are."""
        if self.draft.custom:  # which may not run on a device without values
            return FitBytes(0)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            network = self.draft.build()
        freeze_parts(network, self.freeze_names)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return FitBytes(stored_bytes(network.state_dict()), optimizer_bytes(self.optimizer, trained))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (batch, columns of the label space) of pictures (batch, 3, height, width)."""
        logits: Tensor = self.network(x)
        return logits

    def setup(self, stage: str) -> None:
        """Take the classes and the preprocessing from the data."""
        data = getattr(self.trainer, "datamodule", None)  # not declared by Trainer
        if stage == "fit" and isinstance(data, ClientDataModule) and self.automatic_optimization:
            raise ConfigurationError("data is ClientDataModule; use FederatedModule to train clients in rounds.")
        if data is not None:
            if not hasattr(data, "label_space"):
                raise ConfigurationError(f"data is a {type(data).__name__}, which has no label_space.")
            check_several(data.label_space)
            self._check_classes(data.label_space)
            self.description = replace(self.description, label_space=data.label_space, preprocessing=data.preprocessing)
        if self.description.label_space is not None:
            self.scores = DomainScores(self.description.label_space)
        if stage == "fit" and self.scope is not None:
            present(*self.scope.target)
        if stage == "fit" and data is not None and type(self).__module__.startswith(OTHERS):
            check_watched(self.trainer.callbacks, self.logged())  # type: ignore[attr-defined]

    def logged(self) -> set[str]:
        """Name the figures that a fit logs on the data of the trainer."""
        names = {"train/loss", "epoch", "step"} | ({"train/scope"} if self.scope is not None else set())
        labels, data = self.description.label_space, self.trainer.datamodule  # type: ignore[attr-defined]
        if labels is None or self.trainer.limit_val_batches == 0 or getattr(data, "validation_fraction", 1) == 0:
            return names
        return names | {"val/loss", "val/accuracy", *(f"val/{domain}/accuracy" for domain in labels.domains)}

    def configure_model(self) -> None:
        """Build the network; without a trainer, loading the checkpoint does."""
        if self.description.architecture is not None or self._trainer is None:
            return
        architecture = replace(self.draft, num_classes=self._width())
        if self.weights is not None:
            self._adopt(architecture, pretrained(architecture, self.weights))
            return
        network, architecture = self._built(architecture)
        if self.base is not None:
            load_body(network, read_weights(self.base).state_dict, f"base {self.base}")
        self._adopt(architecture, network)

    def check_architecture(self) -> None:
        """Refuse a dotted path that names nothing; for a user's own arguments, as what it names is imported.

        Raises:
            ConfigurationError: If there is no such class or function.
        """
        if self.draft.custom and not callable(find_maker(self.draft.name)):
            raise ConfigurationError(
                f"architecture is {self.draft.name!r}, which names no class or function; allowed: one that builds a "
                f"network."
            )

    def _built(self, architecture: Architecture) -> tuple[nn.Module, Architecture]:
        """The network, randomly initialised, and what it is; code of the user's is called here and nowhere else."""
        if not architecture.custom:
            return architecture.build(), architecture
        arguments, maker = dict(architecture.arguments or {}), find_maker(architecture.name)
        if callable(maker) and "num_classes" in signature(maker).parameters:
            arguments.setdefault("num_classes", architecture.num_classes)
        network, found = build_custom(architecture.name, arguments)
        if found.num_classes != architecture.num_classes:
            raise ConfigurationError(
                f"architecture is {architecture.name!r}, which makes {found.num_classes} logits for "
                f"{architecture.num_classes} classes; set its arguments so that it makes as many."
            )
        return network, found

    def configure_optimizers(self) -> Any:
        """Make the optimizer of all parameters that are not frozen, and its schedule."""
        return self.optimized([parameter for parameter in self.parameters() if parameter.requires_grad])

    def optimized(self, parameters: list[nn.Parameter]) -> Any:
        """Make the optimizer of some parameters, and its schedule, as Lightning takes them.

        Raises:
            ConfigurationError: If there are no parameters, or the schedule does not say what it watches.
        """
        if not parameters:
            raise ConfigurationError(f"freeze is {', '.join(self.freeze_names)}, which leaves nothing to train.")
        optimizer = made_optimizer(self.optimizer, parameters)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = scheduler.monitor
            if getattr(self._trainer, "datamodule", None) is not None:
                check_monitor("lr_scheduler", scheduler.monitor, self.logged())
        elif isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigurationError(
                "lr_scheduler is PyTorch's ReduceLROnPlateau, which does not say what it watches; use "
                "lightning.pytorch.cli.ReduceLROnPlateau and its argument monitor."
            )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Stop the batch norms of frozen parts from moving, and settle the weight scopes to train towards."""
        for name in self.freeze_names:
            self.network.get_submodule(name).eval()
        if self.scope is not None and not self.scope_targets:
            self.scope_targets = self.scope.targets(self.network)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of pictures (batch, 3, height, width) and their columns of the label space (batch,)."""
        x, y = batch
        loss = cross_entropy(self(x), y, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        if self.scope is None:
            return loss
        penalty = self.scope.penalty(self.network, self.scope_targets)
        self.log("train/scope", penalty)
        return loss + penalty

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        self._reset_scores()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log accuracies and loss."""
        self._log("val", self.scores.compute())

    def on_test_epoch_start(self) -> None:
        """Reset the scores."""
        self._reset_scores()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log accuracies, of every class too, and loss."""
        self._log("test", self.scores.compute() | self.scores.per_class())

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Predict the classes of pictures of one domain.

        Returns:
            ``domain``; ``paths`` of the pictures; ``logits`` and ``probabilities`` (batch, classes of the domain);
            ``columns``, the head and the class behind each.

        Raises:
            ConfigurationError: If nothing says what the classes are.
        """
        labels = self.description.label_space
        if labels is None:
            raise ConfigurationError("There is no data module that says which classes there are to be predicted.")
        x, paths = batch
        domain, logits = labels.domains[dataloader_idx], self._logits(x, dataloader_idx)
        return {
            "domain": domain,
            "paths": paths,
            "logits": logits,
            "probabilities": logits.softmax(dim=1),
            "columns": column_labels(labels, domain),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the network is, as plain values, and what its weight scopes are pulled towards."""
        checkpoint.update(self.description.to_entries())
        checkpoint["scope_targets"] = {name: tuple(scope) for name, scope in self.scope_targets.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the checkpoint holds, or see that the one at hand is the same."""
        saved = Description.from_entries(checkpoint)
        self.scope_targets = {name: Scope(*values) for name, values in checkpoint.get("scope_targets", {}).items()}
        if saved.architecture is None:
            raise CheckpointError(
                "The checkpoint does not say which architecture it holds, so FineTuneModule did not write it."
            )
        if self.description.architecture is None:
            held = {name: one for name, one in checkpoint["state_dict"].items() if isinstance(one, Tensor)}
            try:
                with sized_like(held), torch.device("meta"):
                    saved.architecture.build()
            except CheckpointError as error:
                raise CheckpointError(f"The checkpoint cannot be loaded: {error}") from error
            self._adopt(saved.architecture, saved.architecture.build())
        elif self.description.architecture != saved.architecture:
            raise CheckpointError(
                f"The checkpoint holds a {saved.architecture}, but the module is a {self.description.architecture}."
            )
        if self.description.label_space is None:
            self.description = saved
        elif saved.label_space is not None:
            self._check_classes(saved.label_space)

    def _adopt(self, architecture: Architecture, network: nn.Module) -> None:
        self.network = network
        freeze_parts(network, self.freeze_names)
        self.description = replace(self.description, architecture=architecture)

    def _width(self) -> int:
        """Settle the number of logits, from the arguments and the data."""
        labels = self.description.label_space
        if labels is None:
            if self.num_classes is None:
                raise ConfigurationError("num_classes is not given, and there is no data module to take it from.")
            return self.num_classes
        if self.num_classes not in (None, labels.width):
            raise ConfigurationError(f"num_classes is {self.num_classes}, but the data have {labels.width}.")
        return labels.width

    def _check_classes(self, labels: LabelSpace) -> None:
        """Refuse classes that are not those of the network's columns."""
        known, others = self.description.classes, Description(label_space=labels).classes
        if known is not None and known != others:
            raise ConfigurationError(
                f"The classes of the checkpoint and of the data differ: {_first_difference(known, others or ())}."
            )
        architecture = self.description.architecture
        if architecture is not None and architecture.num_classes != labels.width:
            raise ConfigurationError(f"The network has {architecture.num_classes} logits for {labels.width} classes.")

    def _logits(self, x: Tensor, dataloader_idx: int) -> Tensor:
        """Compute logits (batch, classes of the domain) of the classes of the loader's domain."""
        labels = self.description.label_space
        logits: Tensor = self(x)
        return logits if labels is None else logits[:, labels.columns(labels.domains[dataloader_idx])]

    def _reset_scores(self) -> None:
        if self.description.label_space is None:
            raise ConfigurationError("There is no data module that says which classes there are to be scored.")
        self.scores.reset()

    def _score(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        x, y = batch
        logits = self._logits(x, dataloader_idx)
        self.scores.update(dataloader_idx, logits, y, cross_entropy(logits, y))

    def _log(self, stage: str, values: dict[str, Tensor]) -> None:
        # the values are the same in all processes already; sync_dist only says so to Lightning
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)


def _first_difference(known: tuple[str, ...], others: tuple[str, ...]) -> str:
    for index, pair in enumerate(zip(known, others, strict=False)):
        if pair[0] != pair[1]:
            return f"at index {index} stand {pair[0]!r} and {pair[1]!r}"
    return f"there are {len(known)} and {len(others)}"
