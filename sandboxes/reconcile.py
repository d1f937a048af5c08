"""Compares rows with what the node reports, and settles every difference in a named, explained state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import structlog
from django.db.models import Q
from django.utils import timezone

from sandboxes import idle, runtime, states
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.models import Event, Sandbox, SandboxState, SignInLink, StopCause, TimelineEntry, WebProcess
from sandboxes.permissions import SYSTEM
from sandboxes.selectors.sandboxes import SHOWN_FOR
from sandboxes.selectors.secrets import behind
from sandboxes.services import delivery, egress, host_data, lifecycle, presence, secrets, suspension
from vm.api import MachineId, MachineInfo, MachineState
from vm.errors import MachineGone, VmError

log = structlog.get_logger("atoll.reconcile")

AT_ONCE = 4
"""Machines ended at a time: each flushes its disk."""
MOMENT = 5.0
"""Seconds for which a turn waits for one machine. The node does alone what it was asked for; a later turn sees it."""
AGAIN = 2.0
"""Seconds after which what was begun elsewhere is asked for again; asking twice does no harm."""
PATIENCE = 15.0
"""Seconds a change under way elsewhere is given before a row without its machine counts as left behind."""
NOBODYS = "no row of the database names it"
"""What the node keeps of a machine that was stopped for that, so that its time counts over restarts of everybody."""
TOLD_FOR = timedelta(days=7)
"""For which the timeline of what nobody can open any more is kept."""


class Settle(StrEnum):
    """What is done about a row and its machine."""

    NOTHING = "nothing"  # they agree, or the machine is on its way to where they will
    FOLLOW = "follow"  # the row follows its machine
    LOSE = "lose"  # there is no machine: the row ends
    END = "end"  # the machine has ended by itself: so does the row, with its reason
    SUSPENDED = "suspended"  # a suspend has been done, and nobody wrote it down
    RUN_ON = "run_on"  # a suspend has not been done, and nobody is at it
    GO_ON = "go_on"  # a resume has been done that was taken for failed
    RESUME = "resume"  # a resume has not been done: again
    STOP = "stop"  # a stop has not been finished: again
    HALT = "halt"  # the machine runs although its row has ended: it is stopped
    CLEAN = "clean"  # nobody needs the machine any more, or it is kept for a start or a restore
    FORGOTTEN = "forgotten"  # there is nothing left to remove


_S, _M, _D = SandboxState, MachineState, Settle
_WITHOUT = {_S.STOPPED: _D.FORGOTTEN, _S.DELETED: _D.FORGOTTEN, _S.STOPPING: _D.STOP}
_COMING_UP = {
    _M.QUEUED: _D.FOLLOW,
    _M.STARTING: _D.FOLLOW,
    _M.READY: _D.FOLLOW,
    _M.LOST: _D.FOLLOW,
    _M.SUSPENDING: _D.NOTHING,
    _M.SUSPENDED: _D.RESUME,
    _M.STOPPED: _D.END,
}
_OVER = {**dict.fromkeys(_M, _D.HALT), _M.STOPPED: _D.CLEAN}

# What is done for each state of a row (first key) and of its machine; a row without a machine is below.
TABLE: dict[SandboxState, dict[MachineState, Settle]] = {
    _S.QUEUED: _COMING_UP,
    _S.STARTING: _COMING_UP,
    _S.RESUMING: _COMING_UP,
    _S.RUNNING: {**_COMING_UP, _M.QUEUED: _D.NOTHING, _M.STARTING: _D.NOTHING, _M.SUSPENDED: _D.SUSPENDED},
    _S.SUSPENDING: {
        _M.QUEUED: _D.NOTHING,
        _M.STARTING: _D.NOTHING,
        _M.READY: _D.RUN_ON,
        _M.LOST: _D.RUN_ON,
        _M.SUSPENDING: _D.NOTHING,
        _M.SUSPENDED: _D.SUSPENDED,
        _M.STOPPED: _D.END,
    },
    _S.SUSPENDED: {
        _M.QUEUED: _D.GO_ON,
        _M.STARTING: _D.GO_ON,
        _M.READY: _D.GO_ON,
        _M.LOST: _D.GO_ON,
        _M.SUSPENDING: _D.NOTHING,
        _M.SUSPENDED: _D.NOTHING,
        _M.STOPPED: _D.END,
    },
    _S.STOPPING: dict.fromkeys(_M, _D.STOP),
    _S.STOPPED: _OVER,
    _S.DELETED: _OVER,
}


def settlement(row: SandboxState, machine: MachineState | None) -> Settle:
    """What is done about a row in that state and a machine in that one; None: the node knows no such machine."""
    return _WITHOUT.get(row, Settle.LOSE) if machine is None else TABLE[row][machine]


async def reconcile() -> None:
    """Settle every difference once. Repeatable, also beside itself.

    Does nothing while the node does not answer, or has another data directory than rows are about.
    """
    node = runtime.node()
    asked = time.time()
    try:
        machines = {info.machine: info for info in await node.machine_list()}
        # After the list: a node that was started on other data in between tells that of it
        tag = (await node.host_info()).data_tag
    except VmError as error:
        log.warning("the node does not say which machines there are", error=str(error))
        return
    if not await in_thread(host_data.host_data_seen, tag):
        return
    known = dict(machines)
    places = asyncio.Semaphore(AT_ONCE)

    async def settle(sandbox: Sandbox, info: MachineInfo | None, policy: str) -> None:
        async with places:
            try:
                async with asyncio.timeout(MOMENT):
                    await _settle(sandbox, info, asked)
                    if info is not None and info.state is not MachineState.STOPPED and info.policy != policy:
                        await egress.network_push(sandbox=sandbox)
            except TimeoutError:
                # The node goes on with what it was asked for; no other row waits for that
                log.info("not settled yet", sandbox=sandbox.public_id)
            except VmError as error:
                log.warning("could not settle", sandbox=sandbox.public_id, error=str(error))
            except Exception:
                # One row that nobody thought of must not leave all others unsettled.
                log.exception("could not settle", sandbox=sandbox.public_id)

    async def settle_stray(info: MachineInfo) -> None:
        async with places:
            with suppress(TimeoutError):
                async with asyncio.timeout(MOMENT):
                    await _settle_stray(info)

    # Rows after machines: a machine has its row before it exists, so one without a row here is really nobody's.
    rows = [(sandbox, machines.pop(sandbox.machine, None), policy) for sandbox, policy in await in_thread(_rows)]
    await asyncio.gather(*(settle(*row) for row in rows))
    await _settle_secrets(known)
    await asyncio.gather(*(settle_stray(info) for info in machines.values()))
    await idle.suspend_unused(machines=known)


def _rows() -> list[tuple[Sandbox, str]]:
    """The rows that may have a machine, each with the digest of what it may reach."""
    rows = Sandbox.objects.filter(machine_removed=False).select_related("organization")
    return [(row, egress.policy_digest_of(row)) for row in rows]


async def _settle(sandbox: Sandbox, info: MachineInfo | None, asked: float) -> None:
    since = sandbox.state_since.timestamp()
    age = asked - since
    # News are of the row as it is now; what is older may be from before somebody changed it.
    news = age > PATIENCE or (info is not None and info.since > since)
    match settlement(SandboxState(sandbox.state), info.state if info else None):
        case Settle.FOLLOW if info:
            await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
        case Settle.LOSE if age > PATIENCE:
            cause = StopCause.CREATE_DIED if sandbox.state == SandboxState.QUEUED else StopCause.MACHINE_LOST
            await in_thread(lifecycle.sandbox_ended, sandbox=sandbox, cause=cause)
        case Settle.END if info and sandbox.state == SandboxState.QUEUED and info.since <= since:
            # That stop is of the run before: the workspace is just being started again, or whoever did so has died.
            if age > PATIENCE:
                await in_thread(lifecycle.sandbox_ended, sandbox=sandbox, cause=StopCause.CREATE_DIED)
        case Settle.END if info and news:
            await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
            await lifecycle.sandbox_clean(sandbox=sandbox)
        case Settle.SUSPENDED if news:
            await in_thread(lifecycle.sandbox_suspended, sandbox=sandbox)
        case Settle.RUN_ON if age > PATIENCE:
            why = "its host did not save its memory, and whoever waited for that had gone; the node's log may say why"
            await in_thread(suspension.sandbox_run_on, sandbox=sandbox, why=why)
        case Settle.GO_ON if info and news:
            if await in_thread(lifecycle.sandbox_move, sandbox=sandbox, move=states.Move.RESUME, actor=SYSTEM):
                await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
        case Settle.RESUME if info and info.since > since:
            await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
        case Settle.RESUME if age > AGAIN:
            await suspension.sandbox_resume_begin(sandbox=sandbox)
        case Settle.STOP if info is None or info.state is MachineState.STOPPED or age > AGAIN:
            await lifecycle.sandbox_stop_finish(sandbox=sandbox)
        case Settle.HALT if age > PATIENCE:
            await runtime.node().machine_stop(sandbox.machine)
            await lifecycle.sandbox_clean(sandbox=sandbox)
        case Settle.CLEAN:
            await lifecycle.sandbox_clean(sandbox=sandbox)
        case Settle.FORGOTTEN if lifecycle.is_waste(sandbox):
            await in_thread(lifecycle.sandbox_removed, sandbox=sandbox)


async def _settle_secrets(machines: Mapping[MachineId, MachineInfo]) -> None:
    """Tell machines of the secrets that their node lost with its process, and of changes that did not reach them."""
    wanted = [info.machine for info in machines.values() if info.policy_wanted]
    places = asyncio.Semaphore(AT_ONCE)

    async def push(sandbox: Sandbox) -> None:
        async with places:
            # A guest that does not take them holds up nobody: it is asked again at the next turn
            with suppress(TimeoutError):
                async with asyncio.timeout(MOMENT):
                    await delivery.secrets_push_or_later(sandbox=sandbox)

    late = {sandbox.pk: sandbox for sandbox in await in_thread(behind, machines=wanted)}
    await asyncio.gather(*(push(sandbox) for sandbox in late.values()))


async def _settle_stray(info: MachineInfo) -> None:
    """Stop it at once, but keep its disk for a while: the database may be an older one that was put back."""
    node, hours = runtime.node(), config()["stray_hours"]
    try:
        if info.state is not MachineState.STOPPED or not info.detail.startswith(NOBODYS):
            # Also one that had stopped before: not its stop counts, but since when it is nobody's
            log.warning("stopping a machine: " + NOBODYS, machine=info.machine, was=info.state.value, kept_hours=hours)
            await node.machine_stop(info.machine, detail=NOBODYS)
        elif time.time() - info.since >= hours * 3600:
            log.warning("removing a machine and its disk: " + NOBODYS, machine=info.machine, for_hours=hours)
            await node.machine_forget(info.machine)
    except MachineGone:
        pass
    except VmError as error:
        log.warning("could not do so yet", machine=info.machine, error=str(error))


async def expire() -> None:
    """End what is past its deadline, and the session sandboxes of web processes that fell silent. Repeatable.

    Does nothing while the node has another data directory than rows are about.
    """
    if await in_thread(host_data.host_data_trouble):
        return
    places = asyncio.Semaphore(AT_ONCE)

    async def stop(sandbox: Sandbox, cause: StopCause, detail: str = "") -> None:
        async with places:
            # It waited for its place: what was true of it then may not be any more
            when = Q(stop_at__lte=timezone.now()) if cause is StopCause.DEADLINE else None
            try:
                async with asyncio.timeout(MOMENT):
                    await lifecycle.sandbox_stop(
                        sandbox=sandbox, actor=SYSTEM, cause=cause, detail=detail, beside=False, when=when
                    )
            except TimeoutError:
                # Its row says that it is stopping, and a later turn writes down what came of it
                log.info("still being stopped", sandbox=sandbox.public_id)

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
    TimelineEntry.objects.filter(
        sandbox__state=SandboxState.DELETED, sandbox__machine_removed=True, at__lt=now - TOLD_FOR
    ).delete()
    secrets.secrets_prune()
    lifecycle.sandboxes_hide(stopped_before=now - SHOWN_FOR)
