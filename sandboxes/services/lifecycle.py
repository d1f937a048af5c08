"""A sandbox from its creation to its end: the only module that writes sandbox rows.

Rows change in short transactions of their own and the node is asked outside of them. Whatever dies between two steps
leaves a row that sandboxes/reconcile.py settles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Case, F, Value, When
from django.utils import timezone

from sandboxes import audit, events, ids, permissions, quotas, runtime, states
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Invalid, NotFound, Unavailable
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, StopCause
from sandboxes.permissions import SYSTEM, Actor, AnyActor, System
from sandboxes.quotas import Amount
from sandboxes.services import limits, usage
from sandboxes.states import Move
from vm import background
from vm.api import Identity, MachineInfo, MachineSpec, MachineState
from vm.errors import HostFull, ImageMissing, MachineExists, MachineGone, NodeUnreachable, VmError

log = structlog.get_logger("atoll.lifecycle")

_OF_NODE = {
    MachineState.QUEUED: SandboxState.QUEUED,
    MachineState.STARTING: SandboxState.STARTING,
    MachineState.READY: SandboxState.RUNNING,
    MachineState.LOST: SandboxState.RUNNING,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants a new sandbox to be. `stop_at` None: no deadline. `held_by`: it ends with that connection."""

    kind: Kind = Kind.SANDBOX
    name: str = ""
    memory_mb: int = quotas.DEFAULT_MEMORY_MB
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    stop_at: datetime | None = None
    session: bool = False
    held_by: UUID | None = None


def sandbox_create(*, wanted: Wanted, actor: Actor) -> Sandbox:
    """A queued row; `sandbox_boot` is the next step.

    Forbidden; Invalid for values out of bounds; QuotaExceeded at the organization's limit.
    """
    permissions.require(actor, "sandbox.create", actor.organization_id)
    quotas.check_memory(wanted.memory_mb)
    quotas.check_name(wanted.name)
    quotas.check_labels(wanted.labels)
    quotas.check_env(wanted.env)
    now = timezone.now()
    if wanted.stop_at is not None and wanted.stop_at <= now:
        raise Invalid("the time at which it is to stop lies in the past", field="stop_at_ms")
    region: str = config()["region"]
    with transaction.atomic():
        asked = Amount(sandboxes=1, vcpus=quotas.VCPUS, memory_mib=wanted.memory_mb, disk_gib=quotas.DISK_GIB)
        organization = require_room(actor.organization_id, asked, new=True)
        sandbox = Sandbox.objects.create(
            public_id=ids.sandbox_id(region),
            organization_id=actor.organization_id,
            kind=wanted.kind,
            name=wanted.name,
            region=region,
            memory_mb=wanted.memory_mb,
            vcpus=quotas.VCPUS,
            disk_gib=quotas.DISK_GIB,
            labels=dict(wanted.labels),
            env=dict(wanted.env),
            machine=ids.machine_id(),
            session=wanted.session,
            held_by_id=wanted.held_by,
            stop_at=wanted.stop_at and _within_lifetime(organization, wanted.stop_at, now),
            creator_id=actor.user_id,
            creator_name=actor.label[:150],
            state_since=now,
        )
        audit.record(
            actor=actor,
            organization_id=actor.organization_id,
            action="sandbox.create",
            target=sandbox.public_id,
            kind=wanted.kind,
            memory_mb=wanted.memory_mb,
        )
        events.publish_sandbox(sandbox)
    return sandbox


def require_room(organization_id: int, asked: Amount, *, new: bool = False) -> Organization:
    """The organization, locked, with room for what is asked for; `new`: beside what exists. QuotaExceeded."""
    # Keeps two creates on PostgreSQL from both seeing the last place; SQLite's transaction is immediate anyway.
    organization = Organization.objects.select_for_update().get(pk=organization_id)
    limits.room_require(organization=organization, asked=asked, new=new)
    return organization


def _within_lifetime(organization: Organization, stop_at: datetime, now: datetime) -> datetime:
    longest = limits.max_lifetime(organization)
    return stop_at if longest is None else min(stop_at, now + longest)


def _move(
    *, sandbox: Sandbox, move: Move, actor: AnyActor, action: str = "", detail: Any = None, **fields: Any
) -> bool:
    """Make the move in one conditional UPDATE, with its event and audit row; False if the row is elsewhere by now."""
    now = timezone.now()
    target = states.target(move)
    with transaction.atomic():
        moved = Sandbox.objects.filter(pk=sandbox.pk, state__in=states.sources(move)).update(
            state=target, state_since=now, **fields
        )
        sandbox.refresh_from_db()
        if moved:
            audit.record(
                actor=actor,
                organization_id=sandbox.organization_id,
                action=action or f"sandbox.{move}",
                target=sandbox.public_id,
                **(detail or {}),
            )
            events.publish_sandbox(sandbox)
    return bool(moved)


def sandbox_observe(*, sandbox: Sandbox, info: MachineInfo) -> None:
    """Bring a row that is meant to run up to date with what the node says of its machine. Repeatable."""
    usage.usage_measure(sandbox=sandbox, info=info)
    if info.state is MachineState.STOPPED:
        cause = StopCause(info.stop_reason.value) if info.stop_reason else StopCause.HYPERVISOR_DIED
        sandbox_ended(sandbox=sandbox, cause=cause, detail=info.detail)
        return
    stages = {name: round(seconds, 3) for name, seconds in list(info.stages.items())[:20]}
    wanted = _OF_NODE[info.state]
    if wanted is SandboxState.STARTING:
        _move(sandbox=sandbox, move=Move.BOOT, actor=SYSTEM, queue_position=0)
    elif wanted is SandboxState.RUNNING:
        _move(
            sandbox=sandbox, move=Move.READY, actor=SYSTEM, started_at=timezone.now(), stages=stages, queue_position=0
        )
    unresponsive = info.state is MachineState.LOST
    if sandbox.state == wanted and (
        sandbox.unresponsive != unresponsive or sandbox.queue_position != info.queue_position
    ):
        with transaction.atomic():
            Sandbox.objects.filter(pk=sandbox.pk).update(
                unresponsive=unresponsive, queue_position=max(0, info.queue_position)
            )
            sandbox.refresh_from_db()
            events.publish_sandbox(sandbox)


def sandbox_ended(*, sandbox: Sandbox, cause: StopCause, detail: str = "") -> bool:
    """The machine is gone. A cause that a stop under way has written down already stays."""
    fields: dict[str, Any] = {"stopped_at": timezone.now(), "unresponsive": False, "queue_position": 0}
    # Judged by the row as it is then: whoever follows the machine may have read it before the stop was written down
    for name, value in (("stop_cause", cause), ("stop_detail", detail[:500]), ("stopped_by", SYSTEM.label)):
        fields[name] = Case(When(stop_cause="", then=Value(value)), default=F(name))
    return _move(sandbox=sandbox, move=Move.END, actor=SYSTEM, detail={"seen": cause}, **fields)


async def sandbox_boot(*, sandbox: Sandbox) -> Sandbox:
    """Have the node start the machine, and follow it until it runs or ended; the row says which. Raises no VmError."""
    spec = MachineSpec(
        machine=sandbox.machine,
        memory_mib=sandbox.memory_mb,
        vcpus=sandbox.vcpus,
        disk_gib=sandbox.disk_gib,
        identity=Identity(hostname=_hostname(sandbox), env=sandbox.env),
    )
    node = runtime.node()
    try:
        info = await node.machine_start(spec)
        while info.state in (MachineState.QUEUED, MachineState.STARTING):
            await in_thread(sandbox_observe, sandbox=sandbox, info=info)
            if sandbox.state not in (SandboxState.QUEUED, SandboxState.STARTING):
                return sandbox
            info = await node.machine_wait(sandbox.machine, timeout=2 if info.state is MachineState.QUEUED else 30)
        await in_thread(sandbox_observe, sandbox=sandbox, info=info)
    except MachineExists:
        # A second boot of the same row: the first one, or the reconciler, follows the machine.
        pass
    except MachineGone:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.MACHINE_LOST)
    except HostFull as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=error.detail)
    except ImageMissing as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=error.detail)
    except NodeUnreachable as error:
        log.warning("node does not answer while a machine starts", sandbox=sandbox.public_id)
        if sandbox.state == SandboxState.QUEUED:
            await in_thread(
                sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=f"no node answers: {error.detail}"
            )
    except VmError as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=str(error))
    return sandbox


def _hostname(sandbox: Sandbox) -> str:
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in sandbox.name.lower()).strip("-")
    return name[:40].strip("-") or sandbox.public_id.rsplit("_", 1)[-1]


def sandbox_boot_beside(*, sandbox: Sandbox) -> None:
    """`sandbox_boot` beside the caller, on the running event loop."""
    background.spawn(sandbox_boot(sandbox=sandbox), name=f"boot {sandbox.public_id}")


async def sandbox_stop(
    *,
    sandbox: Sandbox,
    actor: AnyActor,
    cause: StopCause = StopCause.REQUESTED,
    detail: str = "",
    beside: bool = True,
) -> Sandbox:
    """Mark it stopping, with who and why, and end its machine: `beside` the caller, or before returning.

    Repeatable: one that is stopping or stopped is returned as it is.
    """
    if not isinstance(actor, System):
        permissions.require(actor, "sandbox.stop", sandbox.organization_id)
    begun = await in_thread(
        _move,
        sandbox=sandbox,
        move=Move.STOP,
        actor=actor,
        detail={"cause": cause},
        stop_cause=cause,
        stop_detail=detail[:500],
        stopped_by=actor.label[:150],
    )
    if begun and beside:
        background.spawn(sandbox_stop_finish(sandbox=sandbox), name=f"stop {sandbox.public_id}")
    elif begun or (not beside and sandbox.state == SandboxState.STOPPING):
        await sandbox_stop_finish(sandbox=sandbox)
    return sandbox


async def sandbox_stop_finish(*, sandbox: Sandbox) -> None:
    """End the machine of a stopping row and write the end down. Repeatable; the reconciler repeats what failed."""
    try:
        info = await runtime.node().machine_stop(sandbox.machine)
        await in_thread(usage.usage_measure, sandbox=sandbox, info=info)
    except MachineGone:
        pass
    except VmError as error:
        log.warning("machine could not be stopped yet", sandbox=sandbox.public_id, error=str(error))
        return
    await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.REQUESTED)
    await sandbox_clean(sandbox=sandbox)


async def sandbox_clean(*, sandbox: Sandbox) -> None:
    """Have the node forget the machine of a stopped sandbox or a deleted workspace, disk and all. Repeatable."""
    if sandbox.machine_removed or not _is_waste(sandbox):
        return
    try:
        await runtime.node().machine_forget(sandbox.machine)
    except MachineGone:
        pass
    except VmError as error:
        log.warning("machine could not be removed yet", sandbox=sandbox.public_id, error=str(error))
        return
    await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, machine_removed=True)
    sandbox.machine_removed = True


def _is_waste(sandbox: Sandbox) -> bool:
    return sandbox.state == SandboxState.DELETED or (
        sandbox.state == SandboxState.STOPPED and not states.can_start_again(sandbox.kind)
    )


def sandbox_start(*, sandbox: Sandbox, actor: Actor) -> Sandbox:
    """Queue a stopped workspace again on its own disk; `sandbox_boot` is the next step. Conflict for anything else."""
    permissions.require(actor, "sandbox.start", sandbox.organization_id)
    if not states.can_start_again(sandbox.kind):
        raise Conflict("a sandbox is gone when it stops; only a workspace can be started again", state=sandbox.state)
    with transaction.atomic():
        require_room(sandbox.organization_id, limits.to_run(sandbox))
        if not _move(
            sandbox=sandbox,
            move=Move.START,
            actor=actor,
            stop_cause="",
            stop_detail="",
            stopped_by="",
            started_at=None,
            stopped_at=None,
            stages={},
        ):
            raise Conflict(f"it is {sandbox.state}, not stopped", state=sandbox.state)
    return sandbox


async def sandbox_delete(*, sandbox: Sandbox, actor: Actor) -> None:
    """Stop it if it runs, hide its row, remove its disk. Unavailable while the node of a running one is silent."""
    permissions.require(actor, "sandbox.delete", sandbox.organization_id)
    if sandbox.state in states.ACTIVE:
        await sandbox_stop(sandbox=sandbox, actor=actor, beside=False)
        if sandbox.state != SandboxState.STOPPED:
            raise Unavailable("the machine's host does not answer: it is stopped, and can be deleted, once it does")
    if not await in_thread(_move, sandbox=sandbox, move=Move.DELETE, actor=actor):
        if sandbox.state == SandboxState.DELETED:
            raise NotFound
        raise Conflict(f"it is {sandbox.state}", state=sandbox.state)
    background.spawn(sandbox_clean(sandbox=sandbox), name=f"clean {sandbox.public_id}")


def sandbox_rename(*, sandbox: Sandbox, actor: Actor, name: str | None, labels: Mapping[str, str] | None) -> Sandbox:
    """Give it another name or other labels; None leaves what is there."""
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    fields: dict[str, Any] = {}
    if name is not None:
        quotas.check_name(name)
        fields["name"] = name.strip()
    if labels is not None:
        quotas.check_labels(labels)
        fields["labels"] = dict(labels)
    if fields:
        with transaction.atomic():
            Sandbox.objects.filter(pk=sandbox.pk).update(**fields)
            sandbox.refresh_from_db()
            audit.record(
                actor=actor,
                organization_id=sandbox.organization_id,
                action="sandbox.rename",
                target=sandbox.public_id,
                **fields,
            )
            events.publish_sandbox(sandbox)
    return sandbox


def sandbox_extend(*, sandbox: Sandbox, actor: Actor, stop_at: datetime) -> datetime:
    """The deadline after the request: never earlier than before, never further away than the organization's limit.

    A session sandbox gets no deadline by it; what is returned is then only the time that was promised.
    Conflict when it is not running.
    """
    permissions.require(actor, "sandbox.extend", sandbox.organization_id)
    now = timezone.now()
    if stop_at <= now:
        raise Invalid("the new deadline lies in the past", field="stop_at_ms")
    wanted = _within_lifetime(Organization.objects.get(pk=sandbox.organization_id), stop_at, now)
    with transaction.atomic():
        sandbox = Sandbox.objects.select_for_update().get(pk=sandbox.pk)
        if sandbox.state not in states.ACTIVE or sandbox.state == SandboxState.STOPPING:
            raise Conflict(f"it is {sandbox.state}", state=sandbox.state)
        if sandbox.stop_at is None:
            return wanted
        sandbox.stop_at = max(sandbox.stop_at, wanted)
        sandbox.save(update_fields=["stop_at"])
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="sandbox.extend",
            target=sandbox.public_id,
            stop_at=sandbox.stop_at.isoformat(),
        )
        events.publish_sandbox(sandbox)
    return sandbox.stop_at
