"""``pleas add-statistics``: the statistics of shards, added up to those of the whole."""

import sys
from collections.abc import Sequence
from pathlib import Path

from project.moments import add_statistics
from project.parser import OneSentenceParser


def command_parser() -> OneSentenceParser:
    """The parser of the arguments after ``add-statistics``."""
    parser = OneSentenceParser(
        prog="pleas add-statistics", description="Add the statistics of shards up to those of the whole."
    )
    parser.add_argument("files", nargs="+", type=Path, help="Files that merges wrote to their 'statistics'.")
    parser.add_argument("--out", type=Path, required=True, help="File for the sum, for the 'statistics' of a merge.")
    return parser


def run_command(args: Sequence[str]) -> None:
    """The command; prints what the sum holds.

    Args:
        args: Arguments after ``add-statistics``.

    Raises:
        PleasError: If the files do not belong together, or one cannot be read.
    """
    given = command_parser().parse_args(list(args))
    total = add_statistics(given.files, given.out)
    seen = ", ".join(f"{count} pictures of {domain}" for domain, count in total.pictures.items())
    sys.stdout.write(f"{given.out}: {len(total.moments)} moments of {seen}\n")
