"""How much is done for one connection at a time: what comes of a few bytes may be much, and others wait meanwhile."""

from __future__ import annotations

import time
from typing import Protocol

_MOST = 2**18  # bytes that are made
_LONGEST = 1 / 64  # seconds


class Work:
    """What was done since it began."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self._began = time.perf_counter()
        self._made = 0

    def made(self, count: int) -> None:
        """So many bytes came of it."""
        self._made += count

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.perf_counter() - self._began

    @property
    def enough(self) -> bool:
        """Whether it is others' turn."""
        return self._made >= _MOST or self.seconds >= _LONGEST


class Pace(Protocol):
    """Somebody whose work is counted, and stops for others'."""

    def worked(self, seconds: float) -> None:
        """Count so much."""

    async def rest(self) -> None:
        """Return when it is his turn again."""
