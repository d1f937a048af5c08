"""A workspace's timeline of checkpoints: taken by hand and by themselves, restored, dropped; it writes their rows.

A checkpoint is a snapshot of the workspace's disk (services/volumes.py) of which nobody but its timeline knows. What is
due is decided from rows at each turn, so a worker that dies loses no more than a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Max, Q
from django.utils import timezone

from sandboxes import audit, ids, permissions, quotas, runtime, timeline
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, DomainError, Unavailable
from sandboxes.events import publish_sandbox
from sandboxes.models import (
    Checkpoint,
    CheckpointCause,
    Kind,
    Sandbox,
    SandboxState,
    TimelineEntry,
    Volume,
    VolumeKind,
    VolumeState,
)
from sandboxes.permissions import SYSTEM, Actor, AnyActor
from sandboxes.services import lifecycle, volumes
from vm.errors import NotBootable, VmError, VolumeBusy, VolumeDamaged, VolumeGone

log = structlog.get_logger("atoll.checkpoints")

RETRY = timedelta(minutes=5)
"""For which one that could not be taken by itself is not tried again."""
LOOKED_BACK = timedelta(hours=1)
"""How long after a workspace came to rest its checkpoint is still taken, whoever was away meanwhile."""
AT_ONCE = 20
"""Checkpoints that one turn takes."""
NOTE = 200


async def checkpoint_take(*, sandbox: Sandbox, cause: CheckpointCause, actor: AnyActor, note: str = "") -> Checkpoint:
    """Keep what a workspace's disk holds now; the one hook for whatever wants a checkpoint of it. Forbidden.

    In whatever state it is but on its way from one to another (Conflict). QuotaExceeded; Unavailable. Beyond the
    installation's number the oldest of its timeline go, those that were taken by hand last.
    """
    if sandbox.kind != Kind.WORKSPACE:
        raise Conflict("only a workspace has checkpoints: a sandbox is thrown away when it stops", state=sandbox.state)

    def row(volume: Volume) -> None:
        Checkpoint.objects.create(sandbox=sandbox, volume=volume, cause=cause, note=note.strip()[:NOTE])

    volume = await volumes.sandbox_snapshot(
        sandbox=sandbox, slug=ids.checkpoint_slug(), actor=actor, kind=VolumeKind.CHECKPOINT, besides=row
    )
    return await in_thread(_kept, sandbox, volume)


def _kept(sandbox: Sandbox, volume: Volume) -> Checkpoint:
    """The checkpoint that was just taken, with room made for it in its timeline."""
    rows = Checkpoint.objects.select_related("volume").filter(sandbox=sandbox, volume__state=VolumeState.READY)
    made = rows.get(volume=volume)
    others = sorted(rows.exclude(pk=made.pk), key=lambda one: (one.cause == CheckpointCause.HAND, one.pk))
    # By hand one can be had even where none is taken by itself
    beyond = len(others) + 1 - max(1, config()["checkpoints_kept"])
    for one in others[: max(0, beyond)]:
        volumes.checkpoint_drop(volume=one.volume, actor=SYSTEM)
    return made


def checkpoint_drop(*, checkpoint: Checkpoint, actor: Actor) -> None:
    """Take one out of its timeline for good; what was made of it stays."""
    permissions.require(actor, "volume.delete", checkpoint.volume.organization_id)
    volumes.checkpoint_drop(volume=checkpoint.volume, actor=actor)


async def checkpoint_restore(*, sandbox: Sandbox, checkpoint: Checkpoint, actor: Actor) -> Sandbox:
    """Let the workspace's disk be what it was then; one that runs or is suspended is stopped for it, and started again.

    What it holds now becomes a checkpoint before, so that this can be undone. Forbidden; Conflict while it comes or
    goes, or if something else starts it meanwhile; Unavailable.
    """
    permissions.require(actor, "sandbox.start", sandbox.organization_id)
    permissions.require(actor, "sandbox.stop", sandbox.organization_id)
    await in_thread(sandbox.refresh_from_db)
    ran = sandbox.state in (SandboxState.RUNNING, SandboxState.SUSPENDED)
    if ran:
        await lifecycle.sandbox_stop(sandbox=sandbox, actor=actor, beside=False, detail="a checkpoint is restored")
    if sandbox.state != SandboxState.STOPPED:
        raise Conflict(f"it is {sandbox.state}: a checkpoint is restored of one that is stopped", state=sandbox.state)
    await checkpoint_take(sandbox=sandbox, cause=CheckpointCause.RESTORE, actor=actor)
    try:
        await runtime.node().machine_restore(sandbox.machine, checkpoint.volume.disk)
    except (VolumeBusy, VolumeDamaged, NotBootable, VolumeGone) as error:
        raise Conflict(f"the checkpoint cannot be restored: {error.detail}") from error
    except VmError as error:
        raise Unavailable(f"the checkpoint could not be restored: {error.detail or error}") from error
    await in_thread(_restored, sandbox, checkpoint, actor)
    if ran:
        await in_thread(lifecycle.sandbox_start, sandbox=sandbox, actor=actor)
        lifecycle.sandbox_boot_beside(sandbox=sandbox)
    return sandbox


def _restored(sandbox: Sandbox, checkpoint: Checkpoint, actor: Actor) -> None:
    with transaction.atomic():
        taken = f"{checkpoint.volume.created_at:%Y-%m-%d %H:%M:%S} UTC"
        timeline.record_happening(
            sandbox=sandbox, text=f"Its disk is that of the checkpoint of {taken}", actor=actor.label[:150]
        )
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="checkpoint.restore",
            target=sandbox.public_id,
            checkpoint=checkpoint.volume.public_id,
        )


def checkpoint_every(*, sandbox: Sandbox, minutes: int | None, actor: Actor) -> Sandbox:
    """Have one taken each so many minutes while it is used; 0: never, None: as the installation does. Invalid."""
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    quotas.check_checkpoint_minutes(minutes or 0)
    with transaction.atomic():
        Sandbox.objects.filter(pk=sandbox.pk).update(checkpoint_minutes=minutes)
        sandbox.refresh_from_db()
        publish_sandbox(sandbox)
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="sandbox.change",
            target=sandbox.public_id,
            checkpoint_minutes=minutes,
        )
    return sandbox


async def checkpoints_turn() -> None:
    """Take what is due, and drop the timelines of workspaces that are gone. Repeatable, also beside itself."""
    await in_thread(_forget)
    if config()["checkpoints_kept"] == 0:
        return
    for sandbox, cause in await in_thread(_due, timezone.now()):
        if not await in_thread(_claim, sandbox):
            continue
        try:
            await checkpoint_take(sandbox=sandbox, cause=cause, actor=SYSTEM)
        except DomainError as error:
            log.warning("no checkpoint was taken", sandbox=sandbox.public_id, cause=cause, error=error.message)


def _forget() -> None:
    gone = Checkpoint.objects.select_related("volume").filter(sandbox__machine_removed=True)
    for checkpoint in gone.filter(volume__state=VolumeState.READY)[:1000]:
        volumes.checkpoint_drop(volume=checkpoint.volume, actor=SYSTEM)
    # The row says nothing more once its disk is gone
    Checkpoint.objects.filter(volume__removed=True).delete()


def _claim(sandbox: Sandbox) -> bool:
    now = timezone.now()
    free = Q(checkpoint_tried_at=sandbox.checkpoint_tried_at)
    return bool(Sandbox.objects.filter(free, pk=sandbox.pk, state=sandbox.state).update(checkpoint_tried_at=now))


def _due(now: datetime) -> Sequence[tuple[Sandbox, CheckpointCause]]:
    """Workspaces that came to rest since their last checkpoint, and those used for long enough since."""
    rows = Sandbox.objects.filter(kind=Kind.WORKSPACE, machine_removed=False, unresponsive=False).exclude(
        started_at=None
    )
    rows = rows.annotate(last=Max("checkpoints__volume__created_at"))
    resting = rows.filter(state__in=(SandboxState.SUSPENDED, SandboxState.STOPPED), state_since__gte=now - LOOKED_BACK)
    found: list[tuple[Sandbox, CheckpointCause]] = []
    for sandbox in resting.order_by("state_since")[:500]:
        if not _tried(sandbox, sandbox.state_since, now) and _ran_since(sandbox):
            rested = sandbox.state == SandboxState.SUSPENDED
            found.append((sandbox, CheckpointCause.IDLE if rested else CheckpointCause.STOP))
    for sandbox in rows.filter(state=SandboxState.RUNNING, active_at__isnull=False).order_by("active_at"):
        minutes = config()["checkpoint_minutes"] if sandbox.checkpoint_minutes is None else sandbox.checkpoint_minutes
        since = max(filter(None, (_last(sandbox), sandbox.started_at)))
        used = sandbox.active_at is not None and sandbox.active_at > since
        if minutes and used and since <= now - timedelta(minutes=minutes) and not _tried(sandbox, since, now):
            found.append((sandbox, CheckpointCause.TIMER))
    return found[:AT_ONCE]


def _last(sandbox: Sandbox) -> datetime | None:
    last: datetime | None = getattr(sandbox, "last", None)
    return last


def _tried(sandbox: Sandbox, since: datetime, now: datetime) -> bool:
    """Whether that has been begun lately, whatever came of it."""
    tried = sandbox.checkpoint_tried_at
    return tried is not None and tried > since and tried > now - RETRY


def _ran_since(sandbox: Sandbox) -> bool:
    """Whether it has run since its last checkpoint: its timeline says until when it did."""
    last = _last(sandbox)
    if last is None:
        return True
    entries = TimelineEntry.objects.filter(sandbox=sandbox)
    run = entries.filter(state=SandboxState.RUNNING).order_by("-pk").first()
    if run is None:
        return False
    until = entries.filter(pk__gt=run.pk).exclude(state=SandboxState.RUNNING).order_by("pk").first()
    return until is None or until.at > last
