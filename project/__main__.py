"""``pleas`` and ``python -m project``."""

import signal
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from project.entrance import check_words
from project.errors import PleasError, ProcessError, TraceError, printable
from project.help import help_text
from project.signals import Ending


def _told(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
    shown: Callable[..., str] = warnings.formatwarning,
) -> str:
    """Our own warnings are for users, to whom files and lines of ours say nothing."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    return f"pleas: warning: {printable(str(message))}\n" if ours else shown(message, category, filename, lineno, line)


def console() -> int:
    """Run the command; what the user can mend is told in one sentence, and so is that somebody has ended it."""
    if (text := help_text(sys.argv[1:])) is not None:
        sys.stdout.write(f"{text}\n")
        return 0
    with Ending() as ending:
        try:
            check_words(sys.argv[1:])
        except PleasError as error:
            sys.stderr.write(f"pleas: error: {printable(str(error))}\n")
            return 2
        from project import commands  # only now, as all of this takes seconds, and Lightning most of them
        from project.runtime.messages import first_process

        alone = sys.argv[1:2] and sys.argv[1] in commands.COMMANDS
        place = commands.command(sys.argv[1]) if alone else import_module("project.cli")
        warnings.formatwarning = _told
        ending.begun = True
        try:
            if alone:
                commands.run(sys.argv[1:])
            else:
                place.main()
        except BaseException as error:
            if ending.received is not None:  # whatever came of it on the way
                if first_process():
                    sys.stderr.write(("\n" if sys.stderr.isatty() else "") + ending.message(*_notes(error)))
                return ending.status
            if _by_lightning(error, "SIGTERMException"):  # of a fit, which exits with 0
                return 128 + signal.SIGTERM
            if not isinstance(error, PleasError) and not _by_lightning(error, "MisconfigurationException"):
                raise
            told = str(error) if isinstance(error, PleasError) else " ".join(str(error).split())  # Lightning's in lines
            sys.stderr.write(f"pleas: error: {printable(told)}\n")
            return 1 if isinstance(error, TraceError | ProcessError) else 2
    return 0


def _by_lightning(error: BaseException, name: str) -> bool:
    """Whether an error is of a class of Lightning's, which is imported for some commands alone."""
    return any(kind.__module__.startswith("lightning.") and kind.__name__ == name for kind in type(error).__mro__)


def _notes(error: BaseException) -> list[str]:
    """What was noted on an error on its way: how the command can go on."""
    return list(getattr(error, "__notes__", ()))


if __name__ == "__main__":
    sys.exit(console())
