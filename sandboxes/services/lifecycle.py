"""A sandbox from its first boot to its end.

Its row is made in creation.py, and what people change of it is in changes.py; suspending, resuming and forking is in
suspension.py, by means of what is here. Nothing else writes sandbox rows, and only retention.py drops them.

Rows change in short transactions of their own and the node is asked outside of them. Whatever dies between two steps
leaves a row that sandboxes/reconcile.py settles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from sandboxes import audit, events, permissions, runtime, states, timeline
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, NotFound, SecretsLocked, Unavailable
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause, TimelineEntry
from sandboxes.permissions import SYSTEM, Actor, AnyActor, System
from sandboxes.services import delivery, exposures, host_data, limits, mounts, secrets, usage
from sandboxes.services.creation import require_room
from sandboxes.services.egress import policy_now
from sandboxes.services.secrets import Bundle
from sandboxes.states import Move
from vm import background
from vm.api import Identity, MachineInfo, MachineSpec, MachineState, policy_digest
from vm.errors import HostFull, ImageMissing, MachineExists, MachineGone, NodeUnreachable, VmError

log = structlog.get_logger("atoll.lifecycle")

type Asked = asyncio.Future[MachineInfo | None]
"""Done when a node was asked for a machine: with its answer, or None where it gave none."""

_OF_NODE = {
    MachineState.QUEUED: SandboxState.QUEUED,
    MachineState.STARTING: SandboxState.STARTING,
    MachineState.READY: SandboxState.RUNNING,
    MachineState.LOST: SandboxState.RUNNING,
}
HIDDEN_AT_ONCE = 5000
"""Rows that one turn hides, each in a transaction of its own."""
PURGE_MARGIN = timedelta(minutes=1)
"""By which the disk of a deleted workspace outlives the last moment at which it can be restored."""


def sandbox_move(
    *,
    sandbox: Sandbox,
    move: Move,
    actor: AnyActor,
    detail: Any = None,
    why: str = "",
    when: Q | None = None,
    **fields: Any,
) -> bool:
    """Make the move in one conditional UPDATE, with event, timeline and audit; False if the row is elsewhere by now.

    `why` is for people, `detail` for the audit; `when` must be true of the row besides.
    """
    now = timezone.now()
    target = states.target(move)
    with transaction.atomic():
        moved = Sandbox.objects.filter(when or Q(), pk=sandbox.pk, state__in=states.sources(move)).update(
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
            if target in states.ENDED:
                # What a person has exposed of a workspace is there again when it runs again
                gone = target == SandboxState.DELETED or not states.can_start_again(sandbox.kind)
                exposures.exposures_end(sandbox=sandbox, all_of_them=gone)
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
            news = info.since > sandbox.state_since.timestamp()
            if sandbox.state == SandboxState.RESUMING and news:
                sandbox_put_off(sandbox=sandbox, why=info.detail or "its host does not say why")
            elif sandbox.state == SandboxState.SUSPENDING or news:
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


def sandbox_put_off(*, sandbox: Sandbox, why: str) -> bool:
    """It could not be resumed, and is suspended as before: somebody may try again."""
    return sandbox_move(
        sandbox=sandbox,
        move=Move.PUT_OFF,
        actor=SYSTEM,
        why=why,
        unresponsive=False,
        queue_position=0,
        note=f"could not be resumed: {why}"[:500],
    )


def sandbox_ended(*, sandbox: Sandbox, cause: StopCause, detail: str = "") -> bool:
    """The machine is gone. A cause that a stop under way has written down already stays."""
    fields: dict[str, Any] = {"stopped_at": timezone.now(), "unresponsive": False, "queue_position": 0}
    # Judged by the row as it is then: whoever follows the machine may have read it before the stop was written down
    known = Q(state=SandboxState.STOPPING) & ~Q(stop_cause="")
    for name, value in (("stop_cause", cause), ("stop_detail", detail[:500]), ("stopped_by", SYSTEM.label)):
        fields[name] = Case(When(known, then=F(name)), default=Value(value))
    ended = sandbox_move(sandbox=sandbox, move=Move.END, actor=SYSTEM, detail={"seen": cause}, **fields)
    if ended and sandbox.forked_from and cause == StopCause.CREATE_DIED and _has_ended_once(sandbox):
        # The copy was never made: there is nothing it could be started from.
        sandbox_move(sandbox=sandbox, move=Move.DELETE, actor=SYSTEM, deleted_at=None)
    return ended


def _has_ended_once(sandbox: Sandbox) -> bool:
    return TimelineEntry.objects.filter(sandbox=sandbox, state=SandboxState.STOPPED).count() == 1


def sandbox_lost(*, sandbox: Sandbox) -> None:
    """The node does not know its machine. It is not gone where the node has another data directory than before."""
    if not host_data.host_data_trouble():
        sandbox_ended(sandbox=sandbox, cause=StopCause.MACHINE_LOST)


async def sandbox_boot(*, sandbox: Sandbox, asked: Asked | None = None) -> Sandbox:
    """Have the node start the machine, and follow it until it runs or ended; the row says which. Raises no VmError.

    `asked` is done once the node knows the machine, with what it says of it, or will not be asked any more.
    """
    try:
        await in_thread(host_data.host_data_require)
        spec, bundle = await in_thread(machine_wanted, sandbox)
        info = await runtime.node().machine_start(spec, secrets=bundle.secrets)
        there = info.state is MachineState.READY
        if there:
            # One of the pool: whoever is let in now finds a row that runs
            await in_thread(sandbox_observe, sandbox=sandbox, info=info)
        await machine_given(sandbox, spec, bundle, env=True)
        # Not before: JavaScript's SDK sets its variables anew as soon as it is let in, and a secret's is known by then
        if asked is not None:
            asked.set_result(info)
        if not there:
            await sandbox_follow(sandbox=sandbox, info=info)
    except MachineExists:
        # A second boot of the same row: the first one, or the reconciler, follows the machine.
        pass
    except MachineGone:
        await in_thread(sandbox_lost, sandbox=sandbox)
    except HostFull as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=error.detail)
    except ImageMissing as error:
        await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.BOOT_FAILED, detail=error.detail)
    except Unavailable as error:
        # Its disk is in the directory from before; if it has a machine already, the reconciler goes on with that
        if sandbox.state == SandboxState.QUEUED:
            await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.NO_CAPACITY, detail=error.message)
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
    finally:
        if asked is not None and not asked.done():
            asked.set_result(None)
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


async def machine_given(sandbox: Sandbox, spec: MachineSpec, bundle: Bundle, *, env: bool) -> None:
    """Note that a new machine has its policy and secrets, and tell it of what changed while it was being made."""

    def behind() -> bool:
        newer = secrets.secrets_given(sandbox=sandbox, bundle=bundle, env=env)
        return newer or policy_digest(spec.policy) != policy_digest(policy_now(sandbox=sandbox))

    if await in_thread(behind):
        # Whoever changed it was told that it holds once the machine is there
        await delivery.secrets_push_or_later(sandbox=sandbox)


def machine_wanted(sandbox: Sandbox) -> tuple[MachineSpec, Bundle]:
    """What its machine is to be, and the secrets it is to have. SecretsLocked."""
    bundle = secrets.secrets_for_machine(sandbox=sandbox)
    spec = MachineSpec(
        machine=sandbox.machine,
        memory_mib=sandbox.memory_mb,
        vcpus=sandbox.vcpus,
        disk_gib=sandbox.disk_gib,
        # Where a variable and a secret have one name the secret wins.
        identity=Identity(hostname=_hostname(sandbox), env={**delivery.variables(sandbox), **bundle.env}),
        policy=policy_now(sandbox=sandbox),
        volumes=mounts.mounts_for_machine(sandbox=sandbox),
        root=sandbox.root.disk if sandbox.root else "",
    )
    return spec, bundle


def _hostname(sandbox: Sandbox) -> str:
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in sandbox.name.lower()).strip("-")
    return name[:40].strip("-") or sandbox.public_id.rsplit("_", 1)[-1]


def sandbox_boot_beside(*, sandbox: Sandbox) -> Asked:
    """`sandbox_boot` beside the caller, on the running event loop: its `asked`."""
    asked: Asked = asyncio.get_running_loop().create_future()
    background.spawn(sandbox_boot(sandbox=sandbox, asked=asked), name=f"boot {sandbox.public_id}")
    return asked


async def sandbox_stop(
    *,
    sandbox: Sandbox,
    actor: AnyActor,
    cause: StopCause = StopCause.REQUESTED,
    detail: str = "",
    beside: bool = True,
    when: Q | None = None,
) -> Sandbox:
    """Mark it stopping, with who and why, and end its machine: `beside` the caller, or before returning.

    Repeatable: one that is stopping or stopped is returned as it is, and so is one of which `when` is not true.
    """
    if not isinstance(actor, System):
        permissions.require(actor, "sandbox.stop", sandbox.organization_id)
    begun = await in_thread(
        sandbox_move,
        sandbox=sandbox,
        move=Move.STOP,
        actor=actor,
        detail={"cause": cause},
        when=when,
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
    """End the machine of a stopping row and write the end down. Repeatable; the reconciler repeats what failed.

    Where the node has another data directory than before, a machine that it does not know is no end: the row waits.
    """
    try:
        info = await runtime.node().machine_stop(sandbox.machine)
        await in_thread(usage.usage_measure, sandbox=sandbox, info=info)
    except MachineGone:
        if await in_thread(host_data.host_data_trouble):
            return
    except VmError as error:
        log.warning("machine could not be stopped yet", sandbox=sandbox.public_id, error=str(error))
        return
    await in_thread(sandbox_ended, sandbox=sandbox, cause=StopCause.REQUESTED)
    await sandbox_clean(sandbox=sandbox)


async def sandbox_clean(*, sandbox: Sandbox) -> None:
    """Have the node forget the machine of a row that needs it no more, disk and all. Repeatable.

    As with a stop, what a node with another data directory does not know is not taken for removed.
    """
    if sandbox.machine_removed or not is_waste(sandbox):
        return
    try:
        await runtime.node().machine_forget(sandbox.machine)
    except MachineGone:
        if await in_thread(host_data.host_data_trouble):
            return
    except VmError as error:
        log.warning("machine could not be removed yet", sandbox=sandbox.public_id, error=str(error))
        return
    await in_thread(sandbox_removed, sandbox=sandbox)


def sandbox_removed(*, sandbox: Sandbox) -> None:
    """Nothing of its machine is left on the node, and no variable is needed any more. Repeatable."""
    with transaction.atomic():
        removed = Sandbox.objects.filter(pk=sandbox.pk, machine_removed=False).update(machine_removed=True, env={})
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
        mounts.mounts_require(sandbox=sandbox)
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
    """Bring a deleted workspace back as a stopped one, on its disk. NotFound once that is removed; Conflict.

    It asks for no room: its disk has counted all the time.
    """
    permissions.require(actor, "sandbox.restore", sandbox.organization_id)
    if sandbox.state != SandboxState.DELETED:
        raise Conflict(f"it is {sandbox.state}, not deleted", state=sandbox.state)
    if states.restorable_until(sandbox) is None:
        raise NotFound("its disk is removed: a workspace can be restored for a day after it was deleted")
    if not sandbox_move(sandbox=sandbox, move=Move.RESTORE, actor=actor, deleted_at=None):
        raise Conflict(f"it is {sandbox.state}, not deleted", state=sandbox.state)
    return sandbox


def sandboxes_hide(*, stopped_before: datetime) -> None:
    """Hide sandboxes of which nothing has been left for a while, at most HIDDEN_AT_ONCE; workspaces stay."""
    rows = Sandbox.objects.filter(
        kind=Kind.SANDBOX, state=SandboxState.STOPPED, machine_removed=True, stopped_at__lt=stopped_before
    )
    for sandbox in rows.order_by("stopped_at")[:HIDDEN_AT_ONCE]:
        sandbox_move(sandbox=sandbox, move=Move.DELETE, actor=SYSTEM, detail={"why": "nothing of it was left"})


def sandboxes_used(*, seen: Mapping[int, datetime]) -> None:
    """Note when each row, by its key, was last used. No event: it happens all the time."""
    for key, moment in seen.items():
        Sandbox.objects.filter(Q(active_at=None) | Q(active_at__lt=moment), pk=key).update(active_at=moment)
