"""`manage.py stop_all`: stops every sandbox in order; the supervisor's first step of going down."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand

from sandboxes import states
from sandboxes.models import Sandbox
from sandboxes.permissions import SYSTEM
from sandboxes.services.lifecycle import sandbox_stop

AT_ONCE = 4  # flushing disks is the host's disk's work: more at once only makes each slower


class Command(BaseCommand):
    """Stop all that runs, with its reason written down."""

    help = "Stop every sandbox of this installation; workspaces keep their disks."

    def handle(self, *args: Any, **options: Any) -> None:
        """Stop, and say how many there were."""
        active = list(Sandbox.objects.filter(state__in=states.ACTIVE))
        asyncio.run(_stop(active))
        self.stdout.write(f"{len(active)} sandboxes stopped" if len(active) != 1 else "1 sandbox stopped")


async def _stop(sandboxes: list[Sandbox]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def stop(sandbox: Sandbox) -> None:
        async with places:
            await sandbox_stop(sandbox=sandbox, actor=SYSTEM, detail="Atoll was stopped on this host", beside=False)

    await asyncio.gather(*(stop(sandbox) for sandbox in sandboxes))
