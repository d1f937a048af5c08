"""The bridge from the node's event loop to blocking calls: a bounded pool, one lane for each domain, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vm.background import spawn
from vm.errors import HypervisorError

SAVING = 1800.0
"""Seconds for which writing or reading a machine's memory may take: 4 GiB on a disk that does 2.5 MB/s."""


class TooSlow(HypervisorError):
    """The host did not do it in time; it may still do it."""


class Lanes:
    """Runs blocking calls; those of one lane one after the other, in the order they were asked for.

    What is `slow` has threads of its own: gigabytes that go to a disk keep no other machine waiting.
    """

    def __init__(self, workers: int = 8, slow: int = 16) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="lane")
        self._slow = ThreadPoolExecutor(slow, thread_name_prefix="slow lane")
        self._locks: dict[str, asyncio.Lock] = {}

    async def run[T](self, lane: str, work: Callable[[], T], *, deadline: float, slow: bool = False) -> T:
        """What `work` returns. TooSlow after `deadline` seconds; it then still runs, and its lane waits for it.

        So it is with cancellation: what follows in the lane finds the work done.
        """
        lock = self._locks.setdefault(lane, asyncio.Lock())
        pool = self._slow if slow else self._pool

        async def in_turn() -> tuple[T, None] | tuple[None, Exception]:
            async with lock:
                try:
                    return await asyncio.get_running_loop().run_in_executor(pool, work), None
                except Exception as error:  # the caller's to handle, and nobody's once it has given up
                    return None, error

        task = spawn(in_turn(), name=f"lane {lane}")
        try:
            async with asyncio.timeout(deadline):
                result, error = await asyncio.shield(task)
        except TimeoutError as late:
            raise TooSlow(f"the host did not answer within {deadline:.0f} s") from late
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def forget(self, lane: str) -> None:
        """The lane is not used any more."""
        if lane in self._locks and not self._locks[lane].locked():
            del self._locks[lane]

    def close(self) -> None:
        """Take no more work; what runs ends by itself."""
        for pool in (self._pool, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)
