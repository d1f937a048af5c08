"""Who uses what: noted in memory where it happens, written to the rows a few seconds later.

What counts is in docs/lifecycle.md. No note costs a look at the database: keystrokes pass here.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog
from django.utils import timezone

from sandboxes.database import in_thread
from sandboxes.models import Sandbox
from sandboxes.services.lifecycle import sandboxes_used
from vm import background

log = structlog.get_logger("atoll.activity")

EVERY = 3.0
"""Seconds between two writes, of all that was used meanwhile."""


class Activity:
    """What this process has seen used since it last wrote; writes only while there is something to write."""

    def __init__(self) -> None:
        self._seen: dict[int, datetime] = {}
        self._writer: asyncio.Task[None] | None = None

    def note(self, sandbox: Sandbox) -> None:
        """Somebody uses it now. From the event loop."""
        self._seen[sandbox.pk] = timezone.now()
        writer = self._writer
        if writer is None or writer.done() or writer.get_loop() is not asyncio.get_running_loop():
            self._writer = background.spawn(self._write(), name="activity")

    async def _write(self) -> None:
        while self._seen:
            await asyncio.sleep(EVERY)
            await self.flush()

    async def flush(self) -> None:
        """Write what was noted. What cannot be written now is next time."""
        seen, self._seen = self._seen, {}
        try:
            await in_thread(sandboxes_used, seen=seen)
        except Exception:
            log.exception("activity could not be written")
            self._seen = {**seen, **self._seen}


activity = Activity()
