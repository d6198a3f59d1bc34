"""``pleas`` and ``python -m project``."""

import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from project.entrance import check_words
from project.errors import PleasError, TraceError


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
    return f"pleas: warning: {message}\n" if ours else shown(message, category, filename, lineno, line)


def console() -> int:
    """Run the command; what the user can mend is told in one sentence."""
    warnings.formatwarning = _told
    try:
        check_words(sys.argv[1:])
    except PleasError as error:
        sys.stderr.write(f"pleas: error: {error}\n")
        return 2
    # only now: these take seconds
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from project import cli

    try:
        cli.main()
    except (PleasError, MisconfigurationException) as error:
        sys.stderr.write(f"pleas: error: {error}\n")
        return 1 if isinstance(error, TraceError) else 2
    except SIGTERMException:  # Lightning's, of a fit, which exits with 0
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(console())
