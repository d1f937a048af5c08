"""Machines take turns where several of them pass bytes: each passes so much, then the others do. One event loop's.

A turn is over once nobody who still has something of his share left had anything to pass when the loop last looked: who
wants little has it at once, and what he leaves is the others'. Alone, a machine is never held up.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

QUANTUM = 1_048_576
"""Bytes that a machine passes in a turn."""
READ = 32_768
"""What a read costs beside its bytes: about as much time as so many bytes."""
_FEW = 8  # that go on at a time: each of those that have nothing left to take would read a little all the same
_LATELY = 0.25  # seconds for which somebody counts among those who want to pass something


class Parked(Protocol):
    """Something that reads, and can be held up."""

    def park(self) -> None:
        """Read no more."""

    def unpark(self) -> None:
        """Read again."""


class Share:
    """One machine's."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.used = 0
        self.parked: dict[Parked, None] = {}

    @property
    def spent(self) -> bool:
        """Whether its turn is over, because others wait for theirs."""
        return self.used >= QUANTUM and self._turns.contended

    def spend(self, one: Parked, count: int) -> None:
        """`one` has read and passed on so many bytes; it is held up if that was all there was for now."""
        self.used += count + READ
        self._turns.saw(self)
        if self.spent and one not in self.parked:
            self.parked[one] = None
            one.park()

    def let_go(self, count: int) -> None:
        """Let so many go on, those first that have been held up longest."""
        for one in list(self.parked)[:count]:
            del self.parked[one]
            one.unpark()

    def leave(self, one: Parked) -> None:
        """It is no more. Repeatable."""
        self.parked.pop(one, None)


class Turns:
    """All shares of one event loop."""

    def __init__(self, looks: int = 1) -> None:
        """Who passed something is waited for while the loop looks so often: what he passes next may come by a task."""
        self._looks = looks
        self._lately: dict[Share, float] = {}
        self._stirring: dict[Share, int] = {}
        self._looking: asyncio.AbstractEventLoop | None = None

    @property
    def contended(self) -> bool:
        """Whether more than one wants to pass something."""
        return len(self._lately) > 1

    def saw(self, share: Share) -> None:
        """It passes something."""
        self._lately[share] = time.monotonic()
        self._stirring[share] = self._looks
        loop = asyncio.get_running_loop()
        if self._looking is not loop:
            self._looking = loop
            loop.call_soon(self._look)

    def _look(self) -> None:
        # Runs before what the loop has found to be read since: so it sees one whole look of the loop's
        going_on = any(share.used < QUANTUM for share in self._stirring)
        self._stirring = {share: looks - 1 for share, looks in self._stirring.items() if looks > 1}
        if not going_on:
            before = time.monotonic() - _LATELY
            for share, seen in list(self._lately.items()):
                # What it passed beyond its share is taken off the next ones
                share.used = max(0, share.used - QUANTUM)
                if seen < before and not share.parked:
                    del self._lately[share]
            for share in self._lately:
                if not share.spent:
                    share.let_go(_FEW if self.contended else len(share.parked))
        if any(share.parked for share in self._lately):
            asyncio.get_running_loop().call_soon(self._look)
        else:
            self._looking = None
