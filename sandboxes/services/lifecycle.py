"""A sandbox from its creation to its end: the only module that writes sandbox rows.

Suspending, resuming and forking is next door in suspension.py, by means of what is here. Rows change in short
transactions of their own and the node is asked outside of them. Whatever dies between two steps leaves a row that
sandboxes/reconcile.py settles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from sandboxes import audit, egress, events, ids, permissions, quotas, runtime, states, timeline
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Invalid, NotFound, SecretsLocked, Unavailable
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, StopCause, TimelineEntry
from sandboxes.permissions import SYSTEM, Actor, AnyActor, System
from sandboxes.quotas import Amount
from sandboxes.secret_rules import WantedSecret
from sandboxes.services import delivery, limits, secrets, usage
from sandboxes.services.egress import policy_now
from sandboxes.services.secrets import Bundle
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
PURGE_MARGIN = timedelta(minutes=1)
"""By which the disk of a deleted workspace outlives the last moment at which it can be restored."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants a new sandbox to be. `held_by`: it ends with that connection.

    `stop_at` None: a workspace has no deadline then, a sandbox that is no session the latest its organization allows,
    and none where `unlimited` is asked for and allowed. `allow_net` None: what new sandboxes of its organization reach.
    """

    kind: Kind = Kind.SANDBOX
    name: str = ""
    memory_mb: int = quotas.DEFAULT_MEMORY_MB
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    allow_net: Sequence[str] | None = None
    secrets: Sequence[WantedSecret] = ()
    deny_net: Sequence[str] = ()
    stop_at: datetime | None = None
    unlimited: bool = False
    session: bool = False
    held_by: UUID | None = None


def sandbox_create(*, wanted: Wanted, actor: Actor) -> Sandbox:
    """A queued row; `sandbox_boot` is the next step.

    Forbidden; Invalid for values out of bounds; QuotaExceeded at the organization's limit; SecretsLocked.
    """
    permissions.require(actor, "sandbox.create", actor.organization_id)
    quotas.check_memory(wanted.memory_mb)
    quotas.check_name(wanted.name)
    quotas.check_labels(wanted.labels)
    quotas.check_env(wanted.env)
    egress.check_patterns(wanted.allow_net, field="allow_net")
    egress.check_patterns(wanted.deny_net, field="deny_net")
    now = timezone.now()
    if wanted.stop_at is not None and wanted.stop_at <= now:
        raise Invalid("the time at which it is to stop lies in the past", field="stop_at_ms")
    asked = Amount(sandboxes=1, vcpus=quotas.VCPUS, memory_mib=wanted.memory_mb, disk_gib=quotas.DISK_GIB)
    with transaction.atomic():
        organization = require_room(actor.organization_id, asked, new=True)
        sandbox = sandbox_insert(
            actor=actor,
            kind=wanted.kind,
            name=wanted.name,
            memory_mb=wanted.memory_mb,
            vcpus=quotas.VCPUS,
            disk_gib=quotas.DISK_GIB,
            labels=dict(wanted.labels),
            env=dict(wanted.env),
            allow_net=organization.allow_net if wanted.allow_net is None else list(wanted.allow_net),
            deny_net=list(wanted.deny_net),
            session=wanted.session,
            held_by_id=wanted.held_by,
            stop_at=_deadline(wanted, organization, now),
        )
        secrets.secrets_insert(sandbox=sandbox, wanted=wanted.secrets, actor=actor)
    return sandbox


def _deadline(wanted: Wanted, organization: Organization, now: datetime) -> datetime | None:
    longest = limits.max_lifetime(organization)
    if wanted.unlimited and longest is not None:
        raise Invalid("this organization does not allow sandboxes without a deadline", field="timeout")
    if longest is None or wanted.session or (wanted.stop_at is None and wanted.kind == Kind.WORKSPACE):
        return wanted.stop_at
    return min(wanted.stop_at or now + longest, now + longest)


def sandbox_insert(*, actor: Actor, action: str = "sandbox.create", **fields: Any) -> Sandbox:
    """A queued row with its audit, timeline and event; in the caller's transaction, who has checked everything."""
    region: str = config()["region"]
    sandbox = Sandbox.objects.create(
        public_id=ids.sandbox_id(region),
        organization_id=actor.organization_id,
        region=region,
        machine=ids.machine_id(),
        creator_id=actor.user_id,
        creator_name=actor.label[:150],
        state_since=timezone.now(),
        **fields,
    )
    audit.record(
        actor=actor,
        organization_id=actor.organization_id,
        action=action,
        target=sandbox.public_id,
        kind=sandbox.kind,
        memory_mb=sandbox.memory_mb,
    )
    events.publish_sandbox(sandbox)
    timeline.record_created(sandbox=sandbox)
    return sandbox


def require_room(organization_id: int, asked: Amount, *, new: bool = False) -> Organization:
    """The organization, locked, with room for what is asked for; `new`: beside what exists. QuotaExceeded.

    To be called in the transaction that takes the place.
    """
    # Keeps two creates on PostgreSQL from both seeing the last place; SQLite's transaction is immediate anyway.
    organization = Organization.objects.select_for_update().get(pk=organization_id)
    limits.room_require(organization=organization, asked=asked, new=new)
    return organization


def sandbox_move(
    *, sandbox: Sandbox, move: Move, actor: AnyActor, detail: Any = None, why: str = "", **fields: Any
) -> bool:
    """Make the move in one conditional UPDATE, with event, timeline and audit; False if the row is elsewhere by now.

    `why` is for people, `detail` for the audit.
    """
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
                action=f"sandbox.{move}",
                target=sandbox.public_id,
                **(detail or {}),
            )
            events.publish_sandbox(sandbox)
            timeline.record_move(sandbox=sandbox, move=move, actor=actor.label[:150], detail=why[:500])
    return bool(moved)


def sandbox_update(*, sandbox: Sandbox, **fields: Any) -> None:
    """Change columns that say nothing of its state, with an event."""
    with transaction.atomic():
        Sandbox.objects.filter(pk=sandbox.pk).update(**fields)
        sandbox.refresh_from_db()
        events.publish_sandbox(sandbox)


def sandbox_observe(*, sandbox: Sandbox, info: MachineInfo) -> None:
    """Bring a row up to date with what the node says of its machine. Repeatable.

    A machine that runs moves only a row that waits for that, and one that is suspended only a row that is not resumed
    again since: old news change nothing.
    """
    usage.usage_measure(sandbox=sandbox, info=info)
    match info.state:
        case MachineState.STOPPED:
            sandbox_ended(sandbox=sandbox, cause=cause_of(info), detail=info.detail)
        case MachineState.SUSPENDED:
            if sandbox.state == SandboxState.SUSPENDING or info.since > sandbox.state_since.timestamp():
                sandbox_suspended(sandbox=sandbox)
        case MachineState.SUSPENDING:
            pass  # it will be SUSPENDED or READY again
        case _:
            _observe_alive(sandbox, info)


def cause_of(info: MachineInfo) -> StopCause:
    """Why a machine stopped, in the words of rows; each of the node's reasons is a cause."""
    return StopCause(info.stop_reason.value) if info.stop_reason else StopCause.HYPERVISOR_DIED


def _observe_alive(sandbox: Sandbox, info: MachineInfo) -> None:
    wanted = _OF_NODE[info.state]
    if wanted is SandboxState.STARTING:
        sandbox_move(sandbox=sandbox, move=Move.BOOT, actor=SYSTEM, queue_position=0)
    elif wanted is SandboxState.RUNNING:
        sandbox_move(
            sandbox=sandbox,
            move=Move.READY,
            actor=SYSTEM,
            # A resumed one has been started before.
            started_at=Coalesce("started_at", Value(timezone.now())),
            stopped_at=None,
            stop_cause="",
            stop_detail="",
            stopped_by="",
            stages={name: round(seconds, 3) for name, seconds in list(info.stages.items())[:20]},
            origin=info.origin.value if info.origin else "",
            note=info.note[:500],
            queue_position=0,
        )
    unresponsive = info.state is MachineState.LOST
    waits = sandbox.state == SandboxState.RESUMING and wanted is not SandboxState.RUNNING
    if (waits or sandbox.state == wanted) and (
        sandbox.unresponsive != unresponsive or sandbox.queue_position != info.queue_position
    ):
        sandbox_update(sandbox=sandbox, unresponsive=unresponsive, queue_position=max(0, info.queue_position))


def sandbox_suspended(*, sandbox: Sandbox) -> bool:
    """Its memory is saved. Also after a suspend that was given up too early: its cause is then in the timeline."""
    begun = TimelineEntry.objects.filter(sandbox=sandbox, state=SandboxState.SUSPENDING).order_by("-id").first()
    fallback = {
        "stop_cause": begun.cause if begun else StopCause.REQUESTED,
        "stop_detail": begun.detail if begun else "nobody knows by whom",
        "stopped_by": begun.actor if begun else SYSTEM.label,
    }
    fields: dict[str, Any] = {
        name: Case(When(~Q(stop_cause=""), then=F(name)), default=Value(value)) for name, value in fallback.items()
    }
    return sandbox_move(
        sandbox=sandbox,
        move=Move.SUSPENDED,
        actor=SYSTEM,
        stopped_at=timezone.now(),
        unresponsive=False,
        queue_position=0,
        suspend_failed_at=None,
        **fields,
    )


def sandbox_ended(*, sandbox: Sandbox, cause: StopCause, detail: str = "") -> bool:
    """The machine is gone. A cause that a stop under way has written down already stays."""
    fields: dict[str, Any] = {"stopped_at": timezone.now(), "unresponsive": False, "queue_position": 0}
    # Judged by the row as it is then: whoever follows the machine may have read it before the stop was written down
    known = Q(state=SandboxState.STOPPING) & ~Q(stop_cause="")
    for name, value in (("stop_cause", cause), ("stop_detail", detail[:500]), ("stopped_by", SYSTEM.label)):
        fields[name] = Case(When(known, then=F(name)), default=Value(value))
    ended = sandbox_move(sandbox=sandbox, move=Move.END, actor=SYSTEM, detail={"seen": cause}, **fields)
    if ended and sandbox.forked_from and sandbox.started_at is None and cause == StopCause.CREATE_DIED:
        # The copy was never made: there is nothing it could be started from.
        sandbox_move(sandbox=sandbox, move=Move.DELETE, actor=SYSTEM, deleted_at=None)
    return ended


async def sandbox_boot(*, sandbox: Sandbox) -> Sandbox:
    """Have the node start the machine, and follow it until it runs or ended; the row says which. Raises no VmError."""
    try:
        spec, bundle = await in_thread(machine_wanted, sandbox)
        info = await runtime.node().machine_start(spec, secrets=bundle.secrets)
        await secrets_given(sandbox, bundle, env=True)
        await sandbox_follow(sandbox=sandbox, info=info)
    except MachineExists:
        # A second boot of the same row: the first one, or the reconciler, follows the machine.
        pass
    except MachineGone:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.MACHINE_LOST)
    except HostFull as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=error.detail)
    except ImageMissing as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=error.detail)
    except SecretsLocked as error:
        # Without what it was promised it would fail later, and nobody would see why.
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=error.message)
    except NodeUnreachable as error:
        log.warning("node does not answer while a machine starts", sandbox=sandbox.public_id)
        if sandbox.state == SandboxState.QUEUED:
            await in_thread(
                sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=f"no node answers: {error.detail}"
            )
    except VmError as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=str(error))
    return sandbox


async def sandbox_follow(*, sandbox: Sandbox, info: MachineInfo) -> None:
    """Bring the row along until its machine, `info` now, runs or ended. Any VmError of a node."""
    while info.state in (MachineState.QUEUED, MachineState.STARTING):
        await in_thread(sandbox_observe, sandbox=sandbox, info=info)
        if sandbox.state not in (SandboxState.QUEUED, SandboxState.STARTING, SandboxState.RESUMING):
            return
        patience = 2 if info.state is MachineState.QUEUED else 30
        info = await runtime.node().machine_wait(sandbox.machine, timeout=patience)
    await in_thread(sandbox_observe, sandbox=sandbox, info=info)


async def secrets_given(sandbox: Sandbox, bundle: Bundle, *, env: bool) -> None:
    """Note that a new machine has its secrets, and tell it of what changed while it was being made."""
    if await in_thread(secrets.secrets_given, sandbox=sandbox, bundle=bundle, env=env):
        background.spawn(delivery.secrets_push_or_later(sandbox=sandbox), name=f"secrets of {sandbox.public_id}")


def machine_wanted(sandbox: Sandbox) -> tuple[MachineSpec, Bundle]:
    """What its machine is to be, and the secrets it is to have. SecretsLocked."""
    bundle = secrets.secrets_for_machine(sandbox=sandbox)
    spec = MachineSpec(
        machine=sandbox.machine,
        memory_mib=sandbox.memory_mb,
        vcpus=sandbox.vcpus,
        disk_gib=sandbox.disk_gib,
        # Where a variable and a secret have one name the secret wins.
        identity=Identity(hostname=_hostname(sandbox), env={**sandbox.env, **bundle.env}),
        policy=policy_now(sandbox=sandbox),
    )
    return spec, bundle


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
        sandbox_move,
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
    """Have the node forget the machine of a row that needs it no more, disk and all. Repeatable."""
    if sandbox.machine_removed or not is_waste(sandbox):
        return
    try:
        await runtime.node().machine_forget(sandbox.machine)
    except MachineGone:
        pass
    except VmError as error:
        log.warning("machine could not be removed yet", sandbox=sandbox.public_id, error=str(error))
        return
    await in_thread(sandbox_removed, sandbox=sandbox)


def sandbox_removed(*, sandbox: Sandbox) -> None:
    """Nothing of its machine is left on the node. Repeatable."""
    with transaction.atomic():
        removed = Sandbox.objects.filter(pk=sandbox.pk, machine_removed=False).update(machine_removed=True)
        sandbox.refresh_from_db()
        secrets.secrets_forget(sandbox=sandbox)
        if removed and states.can_start_again(sandbox.kind):
            timeline.record_happening(sandbox=sandbox, text="Its disk was removed for good")


def is_waste(sandbox: Sandbox) -> bool:
    """Whether what its machine left behind can never be wanted again."""
    if not states.can_start_again(sandbox.kind):
        return sandbox.state in (SandboxState.STOPPED, SandboxState.DELETED)
    if sandbox.state != SandboxState.DELETED:
        return False
    kept_until = sandbox.deleted_at and sandbox.deleted_at + states.RESTORABLE_FOR + PURGE_MARGIN
    return kept_until is None or kept_until <= timezone.now()


def sandbox_start(*, sandbox: Sandbox, actor: Actor) -> Sandbox:
    """Queue a stopped workspace again on its own disk; `sandbox_boot` is the next step. Conflict for anything else."""
    permissions.require(actor, "sandbox.start", sandbox.organization_id)
    if not states.can_start_again(sandbox.kind):
        raise Conflict("a sandbox is gone when it stops; only a workspace can be started again", state=sandbox.state)
    with transaction.atomic():
        require_room(sandbox.organization_id, limits.to_run(sandbox))
        if not sandbox_move(
            sandbox=sandbox,
            move=Move.START,
            actor=actor,
            stop_cause="",
            stop_detail="",
            stopped_by="",
            started_at=None,
            stopped_at=None,
            # A deadline that has passed has done its work: it would end the new run at once.
            stop_at=Case(When(stop_at__lte=timezone.now(), then=None), default=F("stop_at")),
            stages={},
            origin="",
            note="",
        ):
            raise Conflict(f"it is {sandbox.state}, not stopped", state=sandbox.state)
    return sandbox


async def sandbox_delete(*, sandbox: Sandbox, actor: Actor) -> None:
    """Stop it if it runs and hide its row; the disk of a workspace is kept for a day, in which it can be restored.

    Unavailable while the node of a running one is silent.
    """
    permissions.require(actor, "sandbox.delete", sandbox.organization_id)
    if sandbox.state != SandboxState.STOPPED and sandbox.state != SandboxState.DELETED:
        await sandbox_stop(sandbox=sandbox, actor=actor, beside=False)
        if sandbox.state != SandboxState.STOPPED:
            raise Unavailable("the machine's host does not answer: it is stopped, and can be deleted, once it does")
    if not await in_thread(sandbox_move, sandbox=sandbox, move=Move.DELETE, actor=actor, deleted_at=timezone.now()):
        if sandbox.state == SandboxState.DELETED:
            raise NotFound
        raise Conflict(f"it is {sandbox.state}", state=sandbox.state)
    background.spawn(sandbox_clean(sandbox=sandbox), name=f"clean {sandbox.public_id}")


def sandbox_restore(*, sandbox: Sandbox, actor: Actor) -> Sandbox:
    """Bring a deleted workspace back as a stopped one, on its disk. NotFound once that is removed; Conflict."""
    permissions.require(actor, "sandbox.restore", sandbox.organization_id)
    if sandbox.state != SandboxState.DELETED:
        raise Conflict(f"it is {sandbox.state}, not deleted", state=sandbox.state)
    if states.restorable_until(sandbox) is None:
        raise NotFound("its disk is removed: a workspace can be restored for a day after it was deleted")
    if not sandbox_move(sandbox=sandbox, move=Move.RESTORE, actor=actor, deleted_at=None):
        raise Conflict(f"it is {sandbox.state}, not deleted", state=sandbox.state)
    return sandbox


class Unchanged:
    """Stands for a value that stays as it is, where None means something."""


UNCHANGED = Unchanged()


def sandbox_change(
    *,
    sandbox: Sandbox,
    actor: Actor,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    idle_minutes: int | Unchanged | None = UNCHANGED,
) -> Sandbox:
    """Give it another name, other labels, another time after which it is suspended for want of use."""
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    fields: dict[str, Any] = {}
    if name is not None:
        quotas.check_name(name)
        fields["name"] = name.strip()
    if labels is not None:
        quotas.check_labels(labels)
        fields["labels"] = dict(labels)
    if not isinstance(idle_minutes, Unchanged):
        quotas.check_idle_minutes(idle_minutes or 0)
        fields["idle_minutes"] = idle_minutes
    if fields:
        with transaction.atomic():
            sandbox_update(sandbox=sandbox, **fields)
            if labels is not None:
                secrets.secrets_relabelled(sandbox=sandbox)
            audit.record(
                actor=actor,
                organization_id=sandbox.organization_id,
                action="sandbox.change",
                target=sandbox.public_id,
                **fields,
            )
    return sandbox


def sandbox_extend(*, sandbox: Sandbox, actor: Actor, stop_at: datetime) -> datetime:
    """The deadline after the request: never earlier than before, never further away than the organization's limit.

    A session sandbox gets no deadline by it; what is returned is then only the time that was promised.
    Conflict when it has ended.
    """
    permissions.require(actor, "sandbox.extend", sandbox.organization_id)
    now = timezone.now()
    if stop_at <= now:
        raise Invalid("the new deadline lies in the past", field="stop_at_ms")
    with transaction.atomic():
        sandbox = Sandbox.objects.select_for_update(of=("self",)).select_related("organization").get(pk=sandbox.pk)
        longest = limits.max_lifetime(sandbox.organization)
        wanted = stop_at if longest is None else min(stop_at, now + longest)
        if sandbox.state not in states.ALIVE:
            raise Conflict(f"it is {sandbox.state}", state=sandbox.state)
        if sandbox.stop_at is None:
            return wanted
        later = max(sandbox.stop_at, wanted)
        sandbox_update(sandbox=sandbox, stop_at=later)
        timeline.record_happening(
            sandbox=sandbox, text=f"Its deadline is now {later:%Y-%m-%d %H:%M:%S} UTC", actor=actor.label[:150]
        )
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="sandbox.extend",
            target=sandbox.public_id,
            stop_at=later.isoformat(),
        )
    return later


def sandboxes_hide(*, stopped_before: datetime) -> None:
    """Hide sandboxes of which nothing has been left for a while; workspaces stay."""
    Sandbox.objects.filter(
        kind=Kind.SANDBOX, state=SandboxState.STOPPED, machine_removed=True, stopped_at__lt=stopped_before
    ).update(state=SandboxState.DELETED)


def sandboxes_used(*, seen: Mapping[int, datetime]) -> None:
    """Note when each row, by its key, was last used. No event: it happens all the time."""
    for key, moment in seen.items():
        Sandbox.objects.filter(Q(active_at=None) | Q(active_at__lt=moment), pk=key).update(active_at=moment)
