"""Writes records down beside the event loop, which never waits for a disk, in the order in which they changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from vm.errors import VmError
from vm.node.records import Record, record_write
from vm.storage.layout import Layout


class Scribe:
    """One thread, one queue: what was handed over first is on the disk first, whichever machine it is about."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scribe")
        self._last: asyncio.Future[None] | None = None
        self._to_tell = 0

    def write(self, record: Record) -> asyncio.Future[None]:
        """Hand the record over as it is now; done once it is on the disk, or fails with HostFull or OSError.

        Whoever does not await it loses nothing but the failure. A clone that is nobody's yet is not written: the next
        node sweeps it away.
        """
        loop = asyncio.get_running_loop()
        if not record.machine:
            nothing: asyncio.Future[None] = loop.create_future()
            nothing.set_result(None)
            return nothing
        work = partial(record_write, self._layout, record.machine, asdict(record))
        self._last = loop.run_in_executor(self._thread, work)
        # A caller that is cancelled takes nothing out of the queue
        told = asyncio.shield(self._last)
        told.add_done_callback(_seen)
        return told

    async def written(self) -> None:
        """Wait until all that was handed over so far is on the disk, or has failed."""
        if self._last is not None:
            with suppress(VmError, OSError):
                await asyncio.shield(self._last)

    def then(self, tell: Callable[[], None]) -> None:
        """Call it once all that was handed over so far is on the disk, or has failed; what is told keeps its order."""
        if self._last is None or (self._last.done() and not self._to_tell):
            tell()
            return
        self._to_tell += 1

        def now(_done: asyncio.Future[None]) -> None:
            self._to_tell -= 1
            tell()

        self._last.add_done_callback(now)

    def close(self) -> None:
        """Take no more; what was handed over is written before this returns."""
        self._thread.shutdown(wait=True)


def _seen(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()
