"""The command: LightningCLI with a ``merge`` subcommand and one folder for everything a run writes."""

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from project.errors import ConfigurationError
from project.trainer import MergeTrainer, writable

GUARDED = ("fit", "merge")  # what would overwrite an earlier run's work


class MergeCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` and ``merge``, each from one YAML file."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and ``merge``."""
        return {**LightningCLI.subcommands(), "merge": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments of the command itself."""
        parser.add_argument(
            "--run", type=Path | None, default=None,
            help="Folder for everything this run writes: config, logs, checkpoints, results. Default: runs/<subcommand>.",
        )  # fmt: skip
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Whether a fit or merge may write into a folder of an earlier run."
        )

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, before anything is built."""
        config = self.config[self.subcommand]
        folder = Path(config.run or Path("runs", str(self.subcommand)))
        resumed = self.subcommand == "fit" and config.get("ckpt_path")
        self._claim(folder, guarded=self.subcommand in GUARDED and not config.overwrite and not resumed)
        config.trainer.default_root_dir = str(folder)
        if config.trainer.logger in (None, True):
            logger = {"save_dir": str(folder), "name": "", "version": ""}
            config.trainer.logger = _namespace("lightning.pytorch.loggers.TensorBoardLogger", logger)

    @rank_zero_only
    def _claim(self, folder: Path, *, guarded: bool) -> None:
        """Refuse a folder that cannot be written to or holds another run."""
        if guarded and (folder / "config.yaml").exists():
            raise ConfigurationError(
                f"run is {folder}, which holds an earlier run; choose another folder, or pass --overwrite true."
            )
        writable(folder)


def _namespace(class_path: str, init_args: dict[str, Any]) -> Any:
    from jsonargparse import Namespace

    return Namespace(class_path=class_path, init_args=Namespace(init_args))


def main(args: ArgsType = None) -> MergeCLI:
    """Run one command.

    Args:
        args: Arguments after the program's name; default: those of the process.

    Raises:
        PleasError: If something about the arguments or the files they name is wrong; nothing was written then.
    """
    # Lightning 2.6 against torch 2.15, which renamed it; once in every loop, and nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    return MergeCLI(
        LightningModule,
        LightningDataModule,
        trainer_class=MergeTrainer,
        # Gathered moments are reduced and read after the loop, where tensors made under inference mode are refused.
        trainer_defaults={"inference_mode": False},
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},  # _claim has refused what must not be
        parser_kwargs={"prog": "pleas"},
        args=args,
    )
