"""``pleas`` and ``python -m project``."""

import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException

from project.cli import main
from project.errors import PleasError, TraceError


def console() -> int:
    """Run the command; what the user can mend is told in one sentence."""
    try:
        main()
    except (PleasError, MisconfigurationException) as error:
        sys.stderr.write(f"pleas: error: {error}\n")
        return 1 if isinstance(error, TraceError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(console())
