"""Runs a command, and prints how much anonymous memory it took at most beyond what it held before its first pass.

Mapped files are not anonymous: the system drops them where memory is short. Linux alone tells them apart.
"""

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from project.cli import main
from project.merging.engine import Engine

STATUS = Path("/proc/self/status")
EVERY = 0.001  # seconds between two looks


def held() -> int:
    """Bytes of anonymous memory, in memory or swapped out."""
    text = STATUS.read_text()
    return sum(1024 * int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) for name in ("RssAnon", "VmSwap"))  # type: ignore[index]


class Watch:
    """Looks now and then, from the first pass on."""

    def __init__(self) -> None:
        self.before = self.most = 0
        self.by_phase: dict[str, int] = {}
        self.engine: Engine | None = None
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self, engine: Engine) -> None:
        """Take note of what there is before the first pass."""
        if self.engine is None:
            self.before = self.most = held()
            self.engine = engine

    def _look(self) -> None:
        while True:
            if self.engine is not None:
                now = held()
                self.most = max(self.most, now)
                phase = self.engine.phase or "test"
                self.by_phase[phase] = max(self.by_phase.get(phase, 0), now - self.before)
            time.sleep(EVERY)


if __name__ == "__main__":
    watch = Watch()
    plain = Engine.start

    def start(self: Engine, device: Any) -> None:
        watch.begin(self)
        plain(self, device)

    Engine.start = start  # type: ignore[method-assign]
    command, sys.argv[1:] = sys.argv[1:], []
    main(command)
    sys.stdout.write(f"\n{json.dumps({'taken': watch.most - watch.before, 'phases': watch.by_phase})}\n")
