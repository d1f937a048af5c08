"""Which exposure a name or port stands for, remembered for a moment; and who is inside and must go when it ends."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from django.db import DatabaseError

from ide.gateway.access import Guard
from sandboxes.database import in_thread
from sandboxes.models import Exposure, ExposureKind
from sandboxes.selectors.exposures import exposure_find, exposures_open

log = structlog.get_logger("atoll.gateway")

FRESH = 1.0
"""Seconds for which an answer of the database is believed; also how often it is asked who must go."""
REMEMBERED = 4096


class Directory:
    """The exposures that this gateway was asked for lately, and the tasks that serve each."""

    def __init__(self) -> None:
        self.guard = Guard()
        self._known: dict[tuple[ExposureKind, str | int], tuple[float, Exposure]] = {}
        self._inside: defaultdict[int, set[asyncio.Task[object]]] = defaultdict(set)

    async def find(self, kind: ExposureKind, key: str | int) -> Exposure | None:
        """The open exposure of that name (a text) or gateway port (a number). DatabaseError."""
        now = time.monotonic()
        seen = self._known.get((kind, key))
        if seen is not None and now - seen[0] < FRESH:
            return seen[1]
        found = await in_thread(
            exposure_find,
            kind=kind,
            name=key if isinstance(key, str) else "",
            gateway_port=key if isinstance(key, int) else None,
        )
        # Only what exists is remembered: whoever tries names must not fill this
        self._known.pop((kind, key), None)
        if found is not None and found.port is None and found.pid is None and kind == ExposureKind.HTTP:
            return found  # about to be bound
        if found is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[kind, key] = (now, found)
        return found

    @contextmanager
    def inside(self, exposure: Exposure) -> Iterator[None]:
        """The current task serves this exposure: it is cancelled when that closes."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        self._inside[exposure.pk].add(task)
        try:
            yield
        finally:
            tasks = self._inside[exposure.pk]
            tasks.discard(task)
            if not tasks:
                del self._inside[exposure.pk]

    def count(self, exposure: Exposure) -> int:
        """How many tasks serve it."""
        return len(self._inside[exposure.pk]) if exposure.pk in self._inside else 0

    async def watch(self) -> None:
        """Send away whoever is inside of what has closed; until it is cancelled."""
        while True:
            await asyncio.sleep(FRESH)
            if not self._inside:
                continue
            try:
                open_still = await in_thread(exposures_open, keys=list(self._inside))
            except DatabaseError as error:
                # A database that is away for a moment ends nobody's connection
                log.warning("exposures could not be looked at", error=str(error))
                continue
            for key in set(self._inside) - open_still:
                for task in list(self._inside.get(key, ())):
                    task.cancel()
