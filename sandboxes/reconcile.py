"""Compares rows with what the node reports, and settles every difference in a named, explained state."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db.models import Q
from django.utils import timezone

from sandboxes import runtime, states
from sandboxes.database import in_thread
from sandboxes.models import Event, Kind, Sandbox, SandboxState, SignInLink, StopCause, WebProcess
from sandboxes.permissions import SYSTEM
from sandboxes.selectors.sandboxes import SHOWN_FOR
from sandboxes.services import lifecycle, presence
from vm.api import MachineInfo, MachineState
from vm.errors import MachineGone, NodeUnreachable, VmError

log = structlog.get_logger("atoll.reconcile")

AT_ONCE = 4
"""Machines ended at a time: each flushes its disk."""
PATIENCE = 15.0
"""Seconds a change under way elsewhere is given before a row without its machine counts as left behind."""


async def reconcile() -> None:
    """Settle every difference once. Repeatable, also beside itself; does nothing while the node does not answer."""
    node = runtime.node()
    asked = time.time()
    try:
        machines = {info.machine: info for info in await node.machine_list()}
    except NodeUnreachable as error:
        log.warning("the node does not answer", error=error.detail)
        return
    # Rows after machines: a machine has its row before it exists, so one without a row here is really nobody's.
    for sandbox in await in_thread(_rows):
        info = machines.pop(sandbox.machine, None)
        try:
            await _settle(sandbox, info, asked)
        except VmError as error:
            log.warning("could not settle", sandbox=sandbox.public_id, error=str(error))
    for info in machines.values():
        await _remove_stray(info)


def _rows() -> list[Sandbox]:
    return list(Sandbox.objects.filter(machine_removed=False))


async def _settle(sandbox: Sandbox, info: MachineInfo | None, asked: float) -> None:
    age = asked - sandbox.state_since.timestamp()
    if sandbox.state in (SandboxState.QUEUED, SandboxState.STARTING, SandboxState.RUNNING):
        await _settle_active(sandbox, info, age)
    elif sandbox.state == SandboxState.STOPPING:
        if info is None or info.state is MachineState.STOPPED or age > 2:
            await lifecycle.sandbox_stop_finish(sandbox=sandbox)
    elif info is None:
        if sandbox.state == SandboxState.DELETED or not states.can_start_again(sandbox.kind):
            await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, machine_removed=True)
    else:
        if info.state is not MachineState.STOPPED and age > PATIENCE:
            await runtime.node().machine_stop(sandbox.machine)
        await lifecycle.sandbox_clean(sandbox=sandbox)


async def _settle_active(sandbox: Sandbox, info: MachineInfo | None, age: float) -> None:
    if info is None:
        if age > PATIENCE:
            cause = StopCause.CREATE_DIED if sandbox.state == SandboxState.QUEUED else StopCause.MACHINE_LOST
            await in_thread(lifecycle.sandbox_ended, sandbox=sandbox, cause=cause)
    elif info.state is not MachineState.STOPPED:
        await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
    elif info.since > sandbox.state_since.timestamp() or age > PATIENCE:
        # An older stop is that of the run before: the workspace is just being started again.
        await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
        await lifecycle.sandbox_clean(sandbox=sandbox)


async def _remove_stray(info: MachineInfo) -> None:
    log.warning("removing a machine that no row names", machine=info.machine, state=info.state.value)
    try:
        if info.state is not MachineState.STOPPED:
            await runtime.node().machine_stop(info.machine)
        await runtime.node().machine_forget(info.machine)
    except MachineGone:
        pass
    except VmError as error:
        log.warning("could not remove it yet", machine=info.machine, error=str(error))


async def expire() -> None:
    """End what is past its deadline, and the session sandboxes of web processes that fell silent. Repeatable."""
    places = asyncio.Semaphore(AT_ONCE)

    async def stop(sandbox: Sandbox, cause: StopCause, detail: str = "") -> None:
        async with places:
            await lifecycle.sandbox_stop(sandbox=sandbox, actor=SYSTEM, cause=cause, detail=detail, beside=False)

    overdue = await in_thread(_overdue)
    silent = await in_thread(presence.web_processes_silent)
    orphans = await in_thread(_orphans, silent)
    await asyncio.gather(
        *(stop(sandbox, StopCause.DEADLINE) for sandbox in overdue),
        *(stop(sandbox, StopCause.SESSION_ENDED, "the web process that held it is gone") for sandbox in orphans),
    )


def _overdue() -> list[Sandbox]:
    return list(Sandbox.objects.filter(stop_at__lte=timezone.now(), state__in=states.sources(states.Move.STOP)))


def _orphans(silent: list[UUID]) -> list[Sandbox]:
    # A session row whose process row is gone was held by one that was pruned.
    held = Q(held_by__in=silent) | Q(held_by=None)
    return list(Sandbox.objects.filter(held, session=True, state__in=states.sources(states.Move.STOP)))


def prune(*, now: datetime | None = None) -> None:
    """Drop rows that nobody can ask for any more: old events, used links, silent processes; hide old sandboxes."""
    now = now or timezone.now()
    Event.objects.filter(created_at__lt=now - timedelta(hours=1)).delete()
    SignInLink.objects.filter(expires_at__lt=now - timedelta(days=1)).delete()
    WebProcess.objects.filter(seen_at__lt=now - timedelta(hours=1)).delete()
    Sandbox.objects.filter(
        kind=Kind.SANDBOX, state=SandboxState.STOPPED, machine_removed=True, stopped_at__lt=now - SHOWN_FOR
    ).update(state=SandboxState.DELETED)
