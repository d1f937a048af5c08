"""Tells whether the host's kernel has killed processes for want of memory."""

from __future__ import annotations

from pathlib import Path

_COUNTERS = Path("/proc/vmstat")


class OutOfMemoryWatch:
    """Remembers the kernel's count of such kills."""

    def __init__(self, counters: Path = _COUNTERS) -> None:
        self._counters = counters
        self._seen = self._count()

    def killed_since_last_look(self) -> bool:
        """Whether there was one since the last call (or since this was made)."""
        now = self._count()
        killed, self._seen = now > self._seen, now
        return killed

    def _count(self) -> int:
        for line in self._counters.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0
