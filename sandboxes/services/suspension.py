"""A sandbox's pauses and copies: its memory saved and gone on with, and forks of it, by the write path of lifecycle.py.

As there, rows change in short transactions, the node is asked outside of them, and whatever dies between two steps
leaves a row that sandboxes/reconcile.py settles.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.utils import timezone

from sandboxes import permissions, quotas, runtime
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, SecretsLocked, Unavailable
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, StopCause
from sandboxes.permissions import SYSTEM, Actor, AnyActor, System
from sandboxes.quotas import Amount
from sandboxes.services import delivery, limits, mounts, secrets, usage
from sandboxes.services.creation import require_room, sandbox_insert
from sandboxes.services.lifecycle import (
    machine_given,
    machine_wanted,
    sandbox_ended,
    sandbox_follow,
    sandbox_lost,
    sandbox_move,
    sandbox_observe,
    sandbox_put_off,
    sandbox_suspended,
)
from sandboxes.states import Move
from vm import background
from vm.api import MachineInfo, MachineState
from vm.errors import MachineGone, NodeUnreachable, VmError

log = structlog.get_logger("atoll.suspension")

SAVING_SECONDS = 20.0
"""For which somebody who wants a sandbox back waits while its memory is still being saved."""
RETRY = timedelta(minutes=5)
"""For which a sandbox that could not be suspended is not asked to again by itself."""
FORK_LIFETIME = timedelta(minutes=30)
"""Of the fork of a session sandbox, which has no connection to live as long as."""


async def sandbox_suspend(
    *,
    sandbox: Sandbox,
    actor: AnyActor,
    cause: StopCause = StopCause.REQUESTED,
    detail: str = "",
    beside: bool = True,
) -> Sandbox:
    """Mark it suspending, with who and why, and have its memory saved: `beside` the caller, or before returning.

    Repeatable: one that is suspending or suspended is returned as it is. Conflict for a session sandbox, for one that
    does not run, and for a person who asks it of one whose agent is silent: he would find it so afterwards. If it
    cannot be saved it runs on, and its timeline says why.
    """
    if not isinstance(actor, System):
        permissions.require(actor, "sandbox.suspend", sandbox.organization_id)
    if sandbox.session:
        raise Conflict(
            "a sandbox that lives as long as the connection that created it cannot be suspended: its end would be lost",
            state=sandbox.state,
        )
    if sandbox.unresponsive and sandbox.state == SandboxState.RUNNING and not isinstance(actor, System):
        raise Conflict("its agent does not answer at the moment", state=sandbox.state)
    begun = await in_thread(
        sandbox_move,
        sandbox=sandbox,
        move=Move.SUSPEND,
        actor=actor,
        detail={"cause": cause},
        stop_cause=cause,
        stop_detail=detail[:500],
        stopped_by=actor.label[:150],
    )
    if begun and beside:
        background.spawn(sandbox_suspend_finish(sandbox=sandbox), name=f"suspend {sandbox.public_id}")
    elif begun or (not beside and sandbox.state == SandboxState.SUSPENDING):
        await sandbox_suspend_finish(sandbox=sandbox)
    elif sandbox.state not in (SandboxState.SUSPENDING, SandboxState.SUSPENDED):
        raise Conflict(f"it is {sandbox.state}, not running", state=sandbox.state)
    return sandbox


async def sandbox_suspend_finish(*, sandbox: Sandbox) -> None:
    """Have the machine of a suspending row saved and write down what came of it. Repeatable."""
    try:
        info = await runtime.node().machine_suspend(sandbox.machine)
    except NodeUnreachable as error:
        # It may have been saved all the same: the reconciler looks.
        log.warning("node does not answer while a machine is saved", sandbox=sandbox.public_id, error=error.detail)
    except VmError as error:
        await _not_saved(sandbox, error.detail or str(error))
    else:
        await in_thread(usage.usage_measure, sandbox=sandbox, info=info)
        await in_thread(sandbox_suspended, sandbox=sandbox)


async def _not_saved(sandbox: Sandbox, why: str) -> None:
    """A machine whose memory could not be saved runs on, unless it has ended: its host says then of what."""
    await in_thread(sandbox.refresh_from_db)
    if sandbox.state != SandboxState.SUSPENDING:
        return
    info = await _look_after(sandbox)
    if info is not None and info.state in (MachineState.READY, MachineState.LOST):
        await in_thread(sandbox_run_on, sandbox=sandbox, why=why)


def sandbox_run_on(*, sandbox: Sandbox, why: str) -> bool:
    """A suspend came to nothing: the machine never stopped running."""
    return sandbox_move(
        sandbox=sandbox,
        move=Move.RUN_ON,
        actor=SYSTEM,
        why=why,
        stop_cause="",
        stop_detail="",
        stopped_by="",
        suspend_failed_at=timezone.now(),
    )


def failed_lately(sandbox: Sandbox) -> bool:
    """Whether it could not be suspended a moment ago, so that another attempt would most likely fail as well."""
    return sandbox.suspend_failed_at is not None and sandbox.suspend_failed_at >= timezone.now() - RETRY


async def sandbox_wake(*, sandbox: Sandbox, actor: AnyActor, why: str = "", beside: bool = True) -> Sandbox:
    """Bring a suspended sandbox back, whoever needs it; every door that resumes comes here.

    Returns once it is on its way; `beside` False: once it runs or could not. Repeatable: one that runs or is about to
    is returned as it is. QuotaExceeded; Conflict for one that has ended. `why` completes "resumed by ada: ".
    """
    permissions.require(actor, "sandbox.resume", sandbox.organization_id)
    until = time.monotonic() + SAVING_SECONDS
    while not await in_thread(sandbox_resume, sandbox=sandbox, actor=actor, why=why):
        if sandbox.state in (SandboxState.QUEUED, SandboxState.STARTING, SandboxState.RUNNING, SandboxState.RESUMING):
            return sandbox
        if sandbox.state != SandboxState.SUSPENDING:
            raise Conflict(f"it is {sandbox.state}, not suspended", state=sandbox.state)
        if time.monotonic() > until:
            raise Unavailable("its memory is still being saved: it can be resumed after that")
        await asyncio.sleep(0.1)
    if beside:
        background.spawn(sandbox_resume_finish(sandbox=sandbox), name=f"resume {sandbox.public_id}")
    else:
        await sandbox_resume_finish(sandbox=sandbox)
    return sandbox


def sandbox_resume(*, sandbox: Sandbox, actor: AnyActor, why: str = "") -> bool:
    """Take a place and mark a suspended row resuming; False for any other. QuotaExceeded."""
    with transaction.atomic():
        sandbox.refresh_from_db()
        if sandbox.state != SandboxState.SUSPENDED:
            return False
        require_room(sandbox.organization_id, limits.to_run(sandbox))
        return sandbox_move(sandbox=sandbox, move=Move.RESUME, actor=actor, why=why, detail={"why": why}, note="")


async def sandbox_resume_finish(*, sandbox: Sandbox) -> None:
    """Have the machine of a resuming row go on, and follow it until it runs, ended or must wait. Repeatable."""
    if (info := await sandbox_resume_begin(sandbox=sandbox)) is not None:
        try:
            await sandbox_follow(sandbox=sandbox, info=info)
        except VmError as error:
            # The reconciler follows on.
            log.warning("could not follow a resume", sandbox=sandbox.public_id, error=str(error))


async def sandbox_resume_begin(*, sandbox: Sandbox) -> MachineInfo | None:
    """Ask the node to let the machine go on; None if it does not, which the row says then. Repeatable."""
    try:
        info = await runtime.node().machine_resume(sandbox.machine)
        if info.policy_wanted:
            await delivery.secrets_push_or_later(sandbox=sandbox)
        return info
    except NodeUnreachable as error:
        # It may have heard of it all the same: the reconciler looks.
        log.warning("node does not answer while a machine resumes", sandbox=sandbox.public_id, error=error.detail)
    except MachineGone:
        await _look_after(sandbox)
    except VmError as error:
        await in_thread(sandbox_put_off, sandbox=sandbox, why=error.detail or str(error))
    return None


async def _look_after(sandbox: Sandbox) -> MachineInfo | None:
    """Of a machine with which something else was meant to be done: write down what became of it, and return it."""
    try:
        info = await runtime.node().machine_get(sandbox.machine)
    except MachineGone:
        await in_thread(sandbox_lost, sandbox=sandbox)
    except VmError as error:
        log.warning("could not ask what became of a machine", sandbox=sandbox.public_id, error=str(error))
    else:
        await in_thread(sandbox_observe, sandbox=sandbox, info=info)
        return info
    return None


async def sandbox_fork(*, sandbox: Sandbox, actor: Actor, name: str = "", lifetime: timedelta | None = None) -> Sandbox:
    """A copy of a running sandbox, memory and disk, that goes on beside it with an identity of its own.

    Returns once the copy is taken; it is then followed beside the caller. It has the snapshots that the original has,
    and of its volumes copies that go with it, which its note says. Conflict for one that does not run or whose
    agent is silent, QuotaExceeded; Unavailable when the host could not do it, which leaves nothing behind.
    """
    permissions.require(actor, "sandbox.fork", sandbox.organization_id)
    fork = await in_thread(_fork_row, sandbox, actor, name, lifetime)
    try:
        spec, bundle = await in_thread(machine_wanted, fork)
        info = await runtime.node().machine_fork(sandbox.machine, spec, secrets=bundle.secrets)
        # Its environment is in the memory that was copied.
        await machine_given(fork, spec, bundle, env=False)
    except NodeUnreachable as error:
        # It may have been taken all the same: the reconciler looks.
        raise Unavailable(f"the machine's host does not answer: {error.detail}") from error
    except VmError as error:
        why = error.detail or str(error)
        await in_thread(sandbox_ended, sandbox=fork, cause=StopCause.CREATE_DIED, detail=why)
        raise Unavailable(f"it could not be forked: {why}") from error
    except SecretsLocked as error:
        await in_thread(sandbox_ended, sandbox=fork, cause=StopCause.CREATE_DIED, detail=error.message)
        raise
    background.spawn(_follow_fork(fork, info), name=f"fork {fork.public_id}")
    return fork


async def _follow_fork(fork: Sandbox, info: MachineInfo) -> None:
    try:
        await sandbox_follow(sandbox=fork, info=info)
    except VmError as error:
        # The reconciler follows on.
        log.warning("could not follow a fork", sandbox=fork.public_id, error=str(error))


def _fork_row(sandbox: Sandbox, actor: Actor, name: str, lifetime: timedelta | None) -> Sandbox:
    quotas.check_name(name)
    with transaction.atomic():
        sandbox.refresh_from_db()
        if sandbox.state != SandboxState.RUNNING or sandbox.unresponsive:
            state = "silent" if sandbox.state == SandboxState.RUNNING else sandbox.state
            raise Conflict(f"it is {state}: only one that runs can be forked", state=sandbox.state)
        asked = Amount(sandboxes=1, vcpus=sandbox.vcpus, memory_mib=sandbox.memory_mb, disk_gib=sandbox.disk_gib)
        require_room(sandbox.organization_id, asked, new=True)
        fork = sandbox_insert(
            actor=actor,
            action="sandbox.fork",
            forked_from=sandbox.public_id,
            kind=sandbox.kind,
            name=name.strip() or _fork_name(sandbox),
            memory_mb=sandbox.memory_mb,
            vcpus=sandbox.vcpus,
            disk_gib=sandbox.disk_gib,
            labels=sandbox.labels,
            env=sandbox.env,
            allow_net=sandbox.allow_net,
            deny_net=sandbox.deny_net,
            ask_net=sandbox.ask_net,
            idle_minutes=sandbox.idle_minutes,
            stop_at=_fork_deadline(sandbox, lifetime),
            note=_fork_note(sandbox),
        )
        mounts.mounts_copy(source=sandbox, fork=fork)
        secrets.secrets_copy(source=sandbox, fork=fork)
    return fork


def _fork_note(sandbox: Sandbox) -> str:
    """What whoever forks should know of the volumes; as its host says it once the copy runs."""
    paths = sandbox.mounts.filter(read_only=False).order_by("path").values_list("path", flat=True)
    if not paths:
        return ""
    return f"what is mounted at {', '.join(paths)} is a copy of that moment, which goes when it stops"[:500]


def _fork_name(sandbox: Sandbox) -> str:
    suffix = " (fork)"
    return f"{sandbox.name[: quotas.NAME - len(suffix)]}{suffix}" if sandbox.name else ""


def _fork_deadline(sandbox: Sandbox, lifetime: timedelta | None) -> datetime | None:
    now = timezone.now()
    longest = limits.max_lifetime(Organization.objects.get(pk=sandbox.organization_id))
    if lifetime is not None:
        return now + (lifetime if longest is None else min(lifetime, longest))
    if sandbox.session:
        return now + (FORK_LIFETIME if longest is None else min(FORK_LIFETIME, longest))
    if sandbox.stop_at is None and sandbox.kind == Kind.SANDBOX and longest is not None:
        return now + longest
    return sandbox.stop_at
