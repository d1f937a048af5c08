"""Tells whether the host's kernel has killed processes for want of memory."""

from __future__ import annotations

import time
from pathlib import Path

_COUNTERS = Path("/proc/vmstat")


LATELY = 45.0
"""Seconds for which such a kill explains the end of a process."""


class OutOfMemoryWatch:
    """Remembers the kernel's count of such kills, and when it last grew; to be looked at every few seconds."""

    def __init__(self, counters: Path = _COUNTERS) -> None:
        self._counters = counters
        self._seen = self._count()
        self._grew_at: float | None = None

    def look(self) -> None:
        """Compare the count with the last look."""
        now = self._count()
        if now > self._seen:
            self._grew_at = time.monotonic()
        self._seen = now

    def killed_lately(self) -> bool:
        """Whether there was one within the last seconds."""
        self.look()
        return self._grew_at is not None and time.monotonic() - self._grew_at < LATELY

    def _count(self) -> int:
        for line in self._counters.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0
