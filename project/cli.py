"""The command: LightningCLI with a ``merge`` subcommand and one folder for everything a run writes."""

import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from project import commands
from project.callbacks import (
    LAST,
    AtomicConfig,
    Continuation,
    PredictionTable,
    check_checkpoint,
    check_checkpoint_space,
    check_strategy_name,
    ended_by,
    progress_bar,
    unmarked,
    write_atomically,
)
from project.commands import COMMANDS
from project.entrance import check_keys, config_files, read_config
from project.errors import ConfigurationError, PleasError, ProcessError, nearest, seeds
from project.parser import OneSentenceParser, files_first, sentence
from project.refusal import LIGHTNINGS, check_processes, check_start, in_one_sentence
from project.runtime import alone_in, tell
from project.runtime.messages import show_messages
from project.runtime.processes import lost
from project.runtime.progress import FOLDER as PROGRESS
from project.runtime.progress import unfinished_work
from project.runtime.saving import check_writable
from project.runtime.space import disks_heard
from project.short_options import usage
from project.shorthand import expand
from project.trainer import MergeTrainer, check_options

UNWANTED = ("💡 Tip", "\nDetected KeyboardInterrupt", "Received SIGTERM")
"""Beginnings of what Lightning says of packages of its makers, with every trainer, and of what we say ourselves."""
GUARDED = ("fit", "merge")  # what would overwrite an earlier run's work
KEPT = (LAST, "best", "hpc")  # checkpoints that the trainer finds


class TrainerParser(OneSentenceParser, LightningArgumentParser):
    """The parser of the subcommands that have a trainer."""


class MergeCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` and ``merge``, each from YAML files, options, or both.

    Args:
        args: Arguments after the program's name; default: those of the process.
        options: What Lightning's takes, by name.
    """

    def __init__(self, *, args: ArgsType = None, **options: Any) -> None:
        given = sys.argv[1:] if args is None else args
        self._asked = given[0] if isinstance(given, list) and given and given[0] in self.subcommands() else None
        with ExitStack() as self._alone:  # in the run's folder, until the command has ended
            super().__init__(args=args, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and ``merge``."""
        return {**LightningCLI.subcommands(), "merge": {"model", "datamodule"}}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lightning's list of subcommands, and below them those that need no trainer."""
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None
        for name in COMMANDS:
            other = commands.command(name).command_parser()
            parser._subcommands_action.add_subcommand(name, other, help=other.description)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The parser of a subcommand; nobody reads those of others where one is asked for, and each takes a while."""
        if self._asked not in (None, subcommand):
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def _add_instantiators(self) -> None:
        """What a module keeps of its own arguments; a merge's keeps none, and many methods take long to write down."""
        if self.subcommand != "merge":
            super()._add_instantiators()

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user has it.

        Lightning would lay a checkpoint's hyper-parameters over it, names of classes among them, which it then imports;
        of a file only weights and the state of loops are taken.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments.

        Raises:
            ConfigurationError: If options stand before a command that needs no trainer, and so takes none of them.
        """
        super().parse_arguments(parser, args)
        if self.config.subcommand in COMMANDS:
            raise ConfigurationError(f"{self.config.subcommand} comes first, and its options behind it.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments of the command itself."""
        parser.add_argument(
            "--run", type=Path | None, default=None,
            help="Folder for everything this run writes: config, logs, checkpoints, results. "
            "Default: runs/<subcommand>.",
        )  # fmt: skip
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Whether to write into a folder that holds an earlier fit or merge.",
        )

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config[self.subcommand].run or Path("runs", str(self.subcommand)))

    def _set_seed(self) -> None:
        """Refuse a seed that no generator takes, and set it."""
        if not isinstance(seed := self.config[self.subcommand].seed_everything, bool):
            seeds(seed_everything=seed)
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, and what a run goes on from, before anything is built."""
        config = self.config[self.subcommand]
        check_options(str(self.subcommand), config.trainer)
        checkpoint = config.get("ckpt_path")
        if checkpoint is not None and str(checkpoint) not in KEPT and not re.match(r"\w+:", str(checkpoint)):
            check_checkpoint(Path(checkpoint), self.subcommand == "fit")
        if self.subcommand == "merge":
            check_strategy_name(config.trainer.strategy)
        check_writable(self.run, f"run is {self.run}")
        self._alone.enter_context(alone_in(self.run, f"run is {self.run}"))
        resumed = self.subcommand == "fit" and config.get("ckpt_path")
        if not config.overwrite and not resumed:
            self._refuse_earlier_run(self.run)

    def before_fit(self) -> None:
        """See that there is room for the checkpoints, before anything is written."""
        check_checkpoint_space(self.trainer, self.model, self.run)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Point the trainer to the run's folder; the saved config stays as the user wrote it, so that it replays."""
        chosen = self.config[self.subcommand].trainer.accelerator
        if self.subcommand == "merge" and chosen == "auto" and torch.backends.mps.is_available():
            rank_zero_info("merging on the CPU: Apple's GPU has no float64, in which layers are solved")
            kwargs["accelerator"] = "cpu"
        if self.subcommand == "fit":
            kwargs["callbacks"] = self._with(Continuation, Continuation)
        if self.subcommand == "predict":
            kwargs["callbacks"] = self._with(PredictionTable, PredictionTable)
        if self.subcommand == "merge" and self._shows_progress:
            kwargs["callbacks"] = self._with(ProgressBar, progress_bar)
        if self.config[self.subcommand].trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(self.run, name="", version="")
        try:
            trainer = super().instantiate_trainer(default_root_dir=self.run, **kwargs)
            check_processes(trainer)
        except MisconfigurationException:
            raise
        except (*LIGHTNINGS, ImportError) as error:  # its own, of options that do not go together
            raise ConfigurationError(f"trainer: {' '.join(str(error).split())}") from error
        write_atomically(trainer)
        if self.config[self.subcommand].overwrite:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):  # or best.ckpt stays the earlier run's, beside best-v1.ckpt
                    callback._enable_version_counter = False
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; what is refused before its first batch leaves nothing behind.

        Where something else ends it, the error notes how it goes on.

        Raises:
            PleasError: If model, trainer and checkpoint do not go together.
            ProcessError: If another process of the run has gone.
        """
        checkpoint = self.config[subcommand].get("ckpt_path")
        check_start(subcommand, checkpoint, self.model, self.trainer, self.run)
        ending = nullcontext() if subcommand == "merge" else ended_by(signal.SIGTERM, self.trainer)
        try:
            with unmarked(self.run, self.trainer), ending, in_one_sentence(checkpoint):
                super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit) as error:
            for words in self._how_it_goes_on():
                error.add_note(words)
            raise
        except RuntimeError as error:
            if self.trainer.world_size == 1 or not lost(error):
                raise
            told = "; ".join(("another process of this run has gone", *self._how_it_goes_on()))
            raise ProcessError(f"{told}.") from error

    def _how_it_goes_on(self) -> list[str]:
        """Say by which command a run goes on that has been ended here; nothing where it only begins anew."""
        if self.subcommand == "merge":
            finished = any(path.is_file() for path in (self.run / PROGRESS).rglob("*"))
            return ["the same command goes on with what is finished"] if finished else []
        if self.subcommand != "fit" or not (self.run / "config.yaml").exists():
            return []
        kept = [
            Path(path)
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only
            for path in {callback.best_model_path, callback.last_model_path, *callback.best_k_models}
            if path and Path(path).is_file()
        ]
        if not kept:
            return ["no checkpoint was kept from which it could go on"]
        last = max(kept, key=lambda path: path.stat().st_mtime)
        given = self.config[self.subcommand].ckpt_path
        if (given == "last" and last.name == "last.ckpt") or given == str(last):
            return ["the same command goes on"]
        return [f"the same command goes on with --ckpt_path {last}"]

    @property
    def _shows_progress(self) -> bool:
        """Whether there is to be a progress bar."""
        options = self.config[self.subcommand].trainer
        return options.enable_progress_bar is not False and not options.barebones

    def _with(self, kind: type[Callback], make: Callable[[], Callback]) -> list[Callback]:
        """The user's callbacks, and one more where none of them is of a kind."""
        given = self.config_init[self.subcommand].trainer.callbacks
        callbacks = list(given) if isinstance(given, list) else [given] if given else []
        return callbacks if any(isinstance(callback, kind) for callback in callbacks) else [*callbacks, make()]

    @rank_zero_only
    def _refuse_earlier_run(self, folder: Path) -> None:
        """A fit or merge may not write over any run; what only reads may not write over a fit or merge."""
        traces = ("config.yaml",) if self.subcommand in GUARDED else ("results.json", "checkpoints")
        if self.subcommand == "merge" and (unfinished := unfinished_work(folder)):
            rank_zero_info(f"{folder} holds {unfinished}; what it has finished of this one is used")
            return
        if any((folder / trace).exists() for trace in traces):
            resume = ", go on with it by --ckpt_path FILE" if self.subcommand == "fit" else ""
            raise ConfigurationError(
                f"run is {folder}, which holds an earlier run; choose another folder{resume}, or pass --overwrite true."
            )


@disks_heard()
def main(args: ArgsType = None) -> MergeCLI | None:
    """Run one command, of Lightning's parser or, where it needs no trainer, of its own.

    Args:
        args: Arguments after the program's name; default: those of the process.

    Raises:
        PleasError: If something about the arguments or the files they name is wrong; no results were written then. If
            a disk fails; what was finished until then stays.
    """
    show_messages()
    # Lightning 2.6 against torch 2.15, which renamed it; once in every loop, and nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_wanted)
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list):
        if given and given[0] in COMMANDS:
            commands.run(given)
            return None
        check_subcommand(given)
        check_configs(given)
        given, messages = expand(given)
        given = files_first(given)
        for message in messages:
            tell(message)
        if args is None:
            sys.argv[1:] = given  # which processes that Lightning starts take over
        else:
            args = given
    try:
        return MergeCLI(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            trainer_class=MergeTrainer,
            parser_class=TrainerParser,
            # Gathered moments are reduced and read after the loop, which tensors made under inference mode refuse.
            trainer_defaults={"inference_mode": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=AtomicConfig,  # it overwrites; _refuse_earlier_run has seen to the rest
            parser_kwargs={
                "prog": "pleas",
                "description": "Turn several fine-tuned vision networks into one.",
                "merge": {"usage": usage()},
            },
            args=args,
        )
    except ValueError as error:
        # What a class refuses in its __init__, jsonargparse wraps in a page about types.
        plain = _origin(error)
        if isinstance(error, PleasError):
            raise
        if plain is None and "Does not validate" in str(error):  # of the types that an argument may have, one refused
            plain = ConfigurationError(sentence(str(error), "pleas", error))
        if plain is None:
            raise
        raise plain from None


def check_subcommand(arguments: Sequence[str]) -> None:
    """Refuse a subcommand that there is not.

    Args:
        arguments: After the program's name.

    Raises:
        ConfigurationError: With those of nearly its name, or all.
    """
    known = [*MergeCLI.subcommands(), *COMMANDS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        allowed = nearest(arguments[0], known) or f"; allowed: {', '.join(known)}"
        raise ConfigurationError(f"there is no subcommand {arguments[0]!r}{allowed}; see 'pleas --help'.")


def check_configs(arguments: Sequence[str]) -> None:
    """Refuse configurations with keys that mean nothing to the subcommand that they are given to.

    Args:
        arguments: After the program's name.

    Raises:
        ConfigurationError: With the first such key.
    """
    for path in config_files(arguments):
        content = read_config(path)
        check_keys(path, content, arguments[0], options_of(arguments[0]), signature(MergeTrainer.__init__).parameters)


def options_of(subcommand: str) -> set[str]:
    """The options of a subcommand, those of its model, data and trainer as one each."""
    own = set(signature(getattr(MergeTrainer, subcommand)).parameters) - MergeCLI.subcommands()[subcommand]
    return {"config", "seed_everything", "trainer", "model", "data", "run", "overwrite", *own} - {"self"}


def _wanted(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is news."""
    return not re.sub(r"^\[rank: \d+\] ", "", str(record.msg)).startswith(UNWANTED)


def _origin(error: BaseException | None) -> PleasError | None:
    """The error of ours behind an error."""
    while error is not None and not isinstance(error, PleasError):
        error = error.__cause__ or error.__context__
    return error
