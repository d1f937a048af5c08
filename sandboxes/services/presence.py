"""A web process says that it lives; the session sandboxes of one that fell silent are ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import structlog
from django.utils import timezone

from sandboxes.database import in_thread
from sandboxes.models import WebProcess
from vm import background

log = structlog.get_logger("atoll.presence")
EVERY = 3.0
SILENCE = timedelta(seconds=20)


def web_process_begin() -> UUID:
    """A row for this process, seen now."""
    return WebProcess.objects.create(seen_at=timezone.now()).pk


def web_process_seen(*, process: UUID) -> None:
    """Still here. Comes back even if it was taken for dead: what it held was ended then."""
    WebProcess.objects.update_or_create(pk=process, defaults={"seen_at": timezone.now()})


def web_processes_silent() -> list[UUID]:
    """Processes that are gone, or might as well be."""
    return list(WebProcess.objects.filter(seen_at__lt=timezone.now() - SILENCE).values_list("pk", flat=True))


class Presence:
    """This process's row, kept fresh from the event loop; begun by the first who asks."""

    def __init__(self) -> None:
        self._process: UUID | None = None
        self._lock = asyncio.Lock()

    async def process(self) -> UUID:
        """This process's id."""
        async with self._lock:
            if self._process is None:
                self._process = await in_thread(web_process_begin)
                background.spawn(self._keep(self._process), name="presence")
        return self._process

    async def _keep(self, process: UUID) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await in_thread(web_process_seen, process=process)
            except Exception:
                log.exception("could not say that this process lives")


presence = Presence()
