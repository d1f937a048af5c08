"""Brings everything to rest before its host's node goes: memory is kept where it can be, a disk always."""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

from sandboxes import states
from sandboxes.database import in_thread
from sandboxes.errors import DomainError
from sandboxes.models import Sandbox, SandboxState, StopCause
from sandboxes.permissions import SYSTEM
from sandboxes.services import lifecycle, suspension

log = structlog.get_logger("atoll.shutdown")

AT_ONCE = 4
"""Machines at a time: saving memory and flushing disks is work of one disk, and more at once only makes each slower."""
SUSPEND_SECONDS = 12.0
"""For which one may take to be suspended; then it is stopped."""
ALL_SECONDS = 30.0
"""After which none is suspended any more: the supervisor does not wait for ever (ide/installation.py)."""
COMING_SECONDS = 5.0
"""For which one that is being resumed is waited for, to have its new memory saved rather than go on from the old."""


async def all_to_rest() -> Counter[str]:
    """Suspend workspaces and sandboxes with a deadline, stop all others; how many ended up in which state."""
    loop = asyncio.get_running_loop()
    latest = loop.time() + ALL_SECONDS
    places = asyncio.Semaphore(AT_ONCE)

    async def rest(sandbox: Sandbox) -> str:
        async with places:
            detail = ""
            if not sandbox.session:
                detail = await _suspend(sandbox, min(SUSPEND_SECONDS, latest - loop.time()))
            # What is still being resumed has its memory on disk as before, where the next start finds it
            if sandbox.state not in (SandboxState.SUSPENDED, SandboxState.RESUMING):
                await lifecycle.sandbox_stop(
                    sandbox=sandbox, actor=SYSTEM, cause=StopCause.HOST_SHUTDOWN, detail=detail, beside=False
                )
        # One whose host is silent is stopping still: it runs on until the next start settles it.
        shown = {SandboxState.STOPPING: SandboxState.RUNNING, SandboxState.RESUMING: SandboxState.SUSPENDED}
        return shown.get(SandboxState(sandbox.state), SandboxState(sandbox.state))

    return Counter(await asyncio.gather(*(rest(row) for row in await in_thread(_active))))


def _active() -> list[Sandbox]:
    return list(Sandbox.objects.filter(state__in=states.ACTIVE))


async def _suspend(sandbox: Sandbox, seconds: float) -> str:
    """Try to; the row says what came of it, and the answer why not."""
    why = ""
    running = sandbox.state in (SandboxState.RUNNING, SandboxState.SUSPENDING, SandboxState.RESUMING)
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            if sandbox.state == SandboxState.RESUMING:
                await _resumed(sandbox)
            if sandbox.state in (SandboxState.RUNNING, SandboxState.SUSPENDING):
                await suspension.sandbox_suspend(
                    sandbox=sandbox, actor=SYSTEM, cause=StopCause.HOST_SHUTDOWN, beside=False
                )
    except TimeoutError:
        why = "saving its memory took too long"
    except DomainError as error:
        why = error.message
    await in_thread(sandbox.refresh_from_db)
    if not running or sandbox.state == SandboxState.SUSPENDED:
        return ""
    log.warning("not suspended", sandbox=sandbox.public_id, why=why)
    return why or "its memory could not be saved"


async def _resumed(sandbox: Sandbox) -> None:
    async with asyncio.timeout(COMING_SECONDS):
        while sandbox.state == SandboxState.RESUMING:
            await asyncio.sleep(0.1)
            await in_thread(sandbox.refresh_from_db)
