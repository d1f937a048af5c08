"""Memory that large things share: each is granted its part in its turn, and waits while others hold too much."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`size` bytes. What is larger than that alone waits until it is alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Event]] = deque()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Hold that many bytes of it, after waiting for them."""
        size = min(size, self.size)
        granted = asyncio.Event()
        self._waiting.append((size, granted))
        self._serve()
        try:
            await granted.wait()
            yield
        finally:
            # Whoever is cancelled while he waits may have been granted his part meanwhile
            if granted.is_set():
                self._free += size
            else:
                self._waiting.remove((size, granted))
            self._serve()

    def _serve(self) -> None:
        # Strictly in turn: small ones that slip past would keep a large one waiting for ever
        while self._waiting and self._waiting[0][0] <= self._free:
            size, granted = self._waiting.popleft()
            self._free -= size
            granted.set()
