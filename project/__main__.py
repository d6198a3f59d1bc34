"""``pleas`` and ``python -m project``."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from project.cli import main
from project.errors import PleasError, TraceError
from project.runtime.space import FAILING


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


def _heard(arguments: threading.ExceptHookArgs, shown: Callable[..., object] = threading.excepthook) -> None:
    """A thread that writes logs stops where its disk fails; who writes to it next is told, and tells."""
    if not (isinstance(arguments.exc_value, OSError) and arguments.exc_value.errno in FAILING):
        shown(arguments)


def console() -> int:
    """Run the command; what the user can mend is told in one sentence."""
    warnings.formatwarning = _told
    threading.excepthook = _heard
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in FAILING:
            raise
        sys.stdout = None  # or the interpreter would try once more to flush what it holds
        sys.stderr.write(f"pleas: error: what was to be printed cannot be written: {error.strerror}.\n")
        return 2
    except (PleasError, MisconfigurationException) as error:
        sys.stderr.write(f"pleas: error: {error}\n")
        return 1 if isinstance(error, TraceError) else 2
    except SIGTERMException:  # Lightning's, of a fit, which exits with 0
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(console())
