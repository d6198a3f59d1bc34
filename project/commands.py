"""Subcommands that need no trainer, and so nothing of Lightning's: each is a module, which is imported to be run."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from project.runtime.messages import show_messages
from project.runtime.space import disks_heard

COMMANDS = {
    "check": "project.checking",
    "average": "project.averaging",
    "export": "project.exporting",
    "add-statistics": "project.adding",
    "report": "project.reporting",
}
"""Name -> its module, with ``command_parser()`` and ``run_command(arguments)``."""


def command(name: str) -> ModuleType:
    """The module of a subcommand."""
    return import_module(COMMANDS[name])


@disks_heard()
def run(arguments: Sequence[str]) -> None:
    """Run a subcommand.

    Args:
        arguments: Its name and what follows.

    Raises:
        PleasError: If something about the arguments or the files they name is wrong, or a disk fails.
    """
    show_messages()
    command(arguments[0]).run_command(arguments[1:])
