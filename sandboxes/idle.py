"""Suspends what nobody uses: after a time without activity, or sooner where the host is short of memory.

What counts as activity is in docs/lifecycle.md. The front doors note it in services/activity.py; here the machine's own
work is added, from the processor time that two looks of the reconciler saw.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db.models import QuerySet
from django.utils import timezone

from sandboxes import runtime
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import DomainError
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause
from sandboxes.permissions import SYSTEM
from sandboxes.services import lifecycle, suspension
from vm.api import MachineId, MachineInfo, MachineState
from vm.errors import VmError

log = structlog.get_logger("atoll.idle")

BUSY = 0.1
"""Of one core, on average between two looks: a machine that uses more is at work."""
LOOK_SECONDS = 30.0
"""Between two looks at a machine's processor time, so that a moment's housekeeping in a guest is no work."""
AT_ONCE = 2
"""Machines whose memory is saved at a time, over all turns: it is the host's disk that takes its time."""
MOMENT = 2.0
"""Seconds for which a turn waits for a save. A host saves on alone, and a later turn writes down what came of it."""
STUCK = timedelta(minutes=1)
"""After which what is still being saved or stopped is waited for no more: it would hold up the whole host for good."""


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    cpu_seconds: float


class Work:
    """Which machines are at work, told from their processor time; in memory, so that a restart only delays a look."""

    def __init__(self) -> None:
        self._looks: dict[MachineId, _Look] = {}

    def look(self, machines: Mapping[MachineId, MachineInfo], *, now: float) -> set[MachineId]:
        """Those that have been at work since the last look at them."""
        # A copy, because the worker's threads may look beside each other
        self._looks = {machine: look for machine, look in list(self._looks.items()) if machine in machines}
        working = set()
        for machine, info in machines.items():
            last = self._looks.setdefault(machine, _Look(now, info.cpu_seconds))
            if now - last.at >= LOOK_SECONDS:
                if info.cpu_seconds - last.cpu_seconds > BUSY * (now - last.at):
                    working.add(machine)
                self._looks[machine] = _Look(now, info.cpu_seconds)
        return working


_work = Work()


async def suspend_unused(*, machines: Mapping[MachineId, MachineInfo]) -> None:
    """Suspend what has been idle for its time, or one more where the host is short of memory. Repeatable."""
    working = _work.look(machines, now=time.monotonic())
    rows = await in_thread(_suspendable, working)
    ready = [row for row in rows if row.machine in machines and machines[row.machine].state is MachineState.READY]
    now = timezone.now()
    unused = [row for row in ready if (limit := idle_limit(row)) and idle_for(row, now) >= limit]
    if not unused:
        await _relieve_host(ready, now)
        return
    places = max(0, AT_ONCE - await in_thread(_being_saved))
    chosen = sorted(unused, key=lambda row: idle_for(row, now), reverse=True)[:places]
    await asyncio.gather(
        *(_suspend(row, StopCause.IDLE, f"no activity for {_minutes(idle_for(row, now))}") for row in chosen)
    )


def _being_saved() -> int:
    return _lately(SandboxState.SUSPENDING).count()


def _lately(*states: SandboxState) -> QuerySet[Sandbox]:
    """Rows that came to one of these states so lately that they may still leave it by themselves."""
    return Sandbox.objects.filter(state__in=states, state_since__gt=timezone.now() - STUCK)


def _suspendable(working: set[MachineId]) -> list[Sandbox]:
    """Rows that may be suspended without being asked for, those at work being noted as used now."""
    rows = list(Sandbox.objects.filter(state=SandboxState.RUNNING, session=False, unresponsive=False))
    now = timezone.now()
    lifecycle.sandboxes_used(seen={row.pk: now for row in rows if row.machine in working})
    return [row for row in rows if row.machine not in working and not suspension.failed_lately(row)]


def idle_limit(sandbox: Sandbox) -> timedelta | None:
    """Without activity for how long it is suspended; None: it is not."""
    default = config()["idle_minutes"] if sandbox.kind == Kind.WORKSPACE else 0
    minutes = default if sandbox.idle_minutes is None else sandbox.idle_minutes
    return timedelta(minutes=minutes) if minutes else None


def idle_for(sandbox: Sandbox, now: datetime) -> timedelta:
    """How long nobody has used it; that it came to run counts as use."""
    return now - max(sandbox.state_since, sandbox.active_at or sandbox.state_since)


async def _relieve_host(ready: list[Sandbox], now: datetime) -> None:
    """Where memory is short, suspend the workspace that has been idle longest, else such a sandbox."""
    limit = config()["low_memory_mib"] * 2**20
    if not limit or not ready or await in_thread(_memory_is_being_freed):
        return
    try:
        available = (await runtime.node().host_info()).memory_available
    except VmError as error:
        log.warning("the node does not say how much memory there is", error=str(error))
        return
    if available >= limit:
        return
    chosen = max(ready, key=lambda row: (row.kind == Kind.WORKSPACE, idle_for(row, now)))
    detail = f"{available // 2**20} MiB were left; it had been idle longest, for {_minutes(idle_for(chosen, now))}"
    await _suspend(chosen, StopCause.LOW_MEMORY, detail)


def _memory_is_being_freed() -> bool:
    return _lately(SandboxState.SUSPENDING, SandboxState.STOPPING).exists()


async def _suspend(sandbox: Sandbox, cause: StopCause, detail: str) -> None:
    try:
        async with asyncio.timeout(MOMENT):
            await suspension.sandbox_suspend(sandbox=sandbox, actor=SYSTEM, cause=cause, detail=detail, beside=False)
    except TimeoutError:
        # Other rows wait for this turn of the worker
        log.info("still being suspended", sandbox=sandbox.public_id)
    except DomainError as error:
        # Somebody stopped or suspended it meanwhile.
        log.info("not suspended", sandbox=sandbox.public_id, why=error.message)


def _minutes(time: timedelta) -> str:
    minutes = int(time.total_seconds() // 60)
    return "1 minute" if minutes == 1 else f"{minutes} minutes"
