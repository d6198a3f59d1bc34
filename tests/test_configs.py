"""Every shipped YAML parses, and builds what it names."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import TQDMProgressBar

from project import cli
from project.callbacks import NamedProgressBar

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

OVERLAYS = "cluster"  # laid over the file of a run; tests/test_cluster.py has them
SHIPPED = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.parent.name != OVERLAYS
)


class Built(cli.MergeCLI):
    """Builds data, model and trainer, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        assert self.model is not None
        assert self.datamodule is not None


LONG = {"compare/real.yaml": pytest.mark.slow}  # the methods of compare/shapes.yaml


@pytest.mark.parametrize("name", [pytest.param(one, marks=LONG.get(one, ())) for one in SHIPPED])
def test_it_builds(name: str, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MergeCLI", Built)
    first = Path(name).stem.split("_")[0]
    subcommand = first if first in cli.MergeCLI.subcommands() else "merge"
    overrides: list[Any] = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    built = cli.main([subcommand, "--config", str(CONFIGS / name), *overrides])
    assert built.config[subcommand].run is not None, "every run says where it writes"


def test_merging_keeps_off_devices_without_float64(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MergeCLI", Built)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    arguments = ["--config", str(CONFIGS / "demo" / "merge.yaml"), "--trainer.accelerator", "auto"]
    built = cli.main(["merge", *arguments])
    assert isinstance(built.trainer.accelerator, CPUAccelerator)


def test_a_merge_says_what_it_does_in_the_users_bar_or_its_own(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MergeCLI", Built)
    arguments = ["--config", str(CONFIGS / "tiny" / "merge.yaml")]
    assert isinstance(cli.main(["merge", *arguments]).trainer.progress_bar_callback, NamedProgressBar)
    mine = cli.main(["merge", *arguments, "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"])
    assert type(mine.trainer.progress_bar_callback) is TQDMProgressBar
    assert (
        cli.main(["merge", *arguments, "--trainer.enable_progress_bar", "false"]).trainer.progress_bar_callback is None
    )
