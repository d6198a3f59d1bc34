"""``pleas report``: the report of a merge, written again from what the run keeps."""

import sys
from collections.abc import Sequence
from pathlib import Path

from project.parser import OneSentenceParser


def command_parser() -> OneSentenceParser:
    """The parser of the arguments after ``report``."""
    parser = OneSentenceParser(
        prog="pleas report", description="Write the report of a finished merge, report.html, from its results.json."
    )
    parser.add_argument("run", type=Path, help="Folder of the merge.")
    return parser


def run_command(args: Sequence[str]) -> None:
    """The command; prints where the report is.

    Args:
        args: Arguments after ``report``.

    Raises:
        PleasError: If the folder holds no results of a merge, or the disk fails.
    """
    given = command_parser().parse_args(list(args))
    from project.report.page import write_report  # what others do without

    sys.stdout.write(f"{write_report(given.run)}\n")
