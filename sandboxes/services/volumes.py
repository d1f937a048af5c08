"""A volume or snapshot from its creation to its removal: the only module that writes their rows.

The node is asked outside of transactions: a row that is being made or was deleted says what is still to be done, and
`volumes_settle` does it, whoever died in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from sandboxes import audit, ids, permissions, quotas, runtime, timeline, volume_rules
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Invalid, NotFound, SlugInUse, Unavailable, VolumeInUse
from sandboxes.events import publish_volume
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, StrayVolume, Volume, VolumeKind, VolumeState
from sandboxes.permissions import SYSTEM, Actor, AnyActor
from sandboxes.selectors.volumes import RESTORABLE_FOR, restorable_until, volume_get
from sandboxes.services import host_data, limits, mounts
from vm.api import SYSTEM as NODE_SYSTEM
from vm.api import VolumeInfo
from vm.errors import MachineGone, NodeUnreachable, VmError, VolumeBusy, VolumeDamaged

log = structlog.get_logger("atoll.volumes")

MAKING = timedelta(minutes=2)
"""After which a row that is still being made is looked after: whoever made it is gone."""
PURGE_MARGIN = timedelta(minutes=1)
"""By which a deleted volume outlives the last moment at which it can be restored."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants a volume to be. `capacity`: bytes, or a text with a unit; `source`: "" for an empty one."""

    slug: str
    capacity: int | str
    source: str = ""


async def volume_create(*, wanted: Wanted, actor: Actor) -> Volume:
    """A volume that can be used. Forbidden, Invalid, NotFound (its source), SlugInUse, QuotaExceeded; Unavailable.

    Whatever fails leaves no row behind.
    """
    volume = await in_thread(_volume_insert, wanted, actor)
    system = NODE_SYSTEM if wanted.source else ""
    source = volume.base.disk if volume.base else system
    try:
        info = await runtime.node().volume_create(volume.disk, capacity=volume.capacity, source=source)
    except VolumeDamaged as error:
        await in_thread(_not_made, volume, actor, error.detail)
        raise Conflict(f"no volume can be made of it: {error.detail}") from error
    except VmError as error:
        log.warning("a volume could not be made", volume=volume.public_id, error=str(error))
        await in_thread(_not_made, volume, actor, error.detail or str(error))
        raise Unavailable(f"the volume could not be made: {error.detail or error}") from error
    return await in_thread(_made, volume, info, actor)


async def volume_snapshot(*, volume: Volume, slug: str, actor: Actor) -> Volume:
    """A snapshot of what a volume holds now, also while a sandbox has it, which goes on. Forbidden, Invalid, SlugInUse.

    Conflict while that sandbox comes or goes, or is suspended; NotFound once the volume is deleted; QuotaExceeded;
    Unavailable. Whatever fails leaves no row behind.
    """
    snapshot = await in_thread(_snapshot_insert, volume, slug, actor)
    try:
        info = await runtime.node().volume_snapshot(volume.disk, snapshot.disk)
    except VolumeBusy as error:
        await in_thread(_not_made, snapshot, actor, error.detail)
        raise Conflict(f"no snapshot can be taken now: {error.detail}") from error
    except VmError as error:
        log.warning("a snapshot could not be taken", volume=volume.public_id, error=str(error))
        await in_thread(_not_made, snapshot, actor, error.detail or str(error))
        raise Unavailable(f"the snapshot could not be taken: {error.detail or error}") from error
    return await in_thread(_made, snapshot, info, actor)


async def sandbox_snapshot(
    *,
    sandbox: Sandbox,
    slug: str,
    actor: AnyActor,
    kind: VolumeKind = VolumeKind.SNAPSHOT,
    memory: bool = False,
    besides: Callable[[Volume], None] = lambda snapshot: None,
) -> Volume:
    """A snapshot of a sandbox's disk: others can boot from it. As `volume_snapshot`.

    One that runs goes on; of one that is suspended, and of a stopped workspace, it is the disk as it was left. With its
    `memory`, of one that runs and has no volumes, others go on from that moment. Volumes are not in it. Conflict while
    it comes or goes. `besides` is called in the transaction of the new row.
    """
    snapshot = await in_thread(_sandbox_snapshot_insert, sandbox, slug, actor, kind, memory, besides)
    try:
        info = await runtime.node().machine_snapshot(sandbox.machine, snapshot.disk, memory=memory)
    except (VolumeBusy, MachineGone) as error:
        await in_thread(_not_made, snapshot, actor, error.detail)
        raise Conflict(f"no snapshot can be taken now: {error.detail}") from error
    except VmError as error:
        log.warning("a snapshot could not be taken", sandbox=sandbox.public_id, error=str(error))
        await in_thread(_not_made, snapshot, actor, error.detail or str(error))
        raise Unavailable(f"the snapshot could not be taken: {error.detail or error}") from error
    return await in_thread(_made, snapshot, info, actor)


def _sandbox_snapshot_insert(
    sandbox: Sandbox,
    slug: str,
    actor: AnyActor,
    kind: VolumeKind,
    memory: bool,
    besides: Callable[[Volume], None],
) -> Volume:
    permissions.require(actor, "volume.snapshot", sandbox.organization_id)
    slug = volume_rules.check_slug(slug)
    checkpoint = kind == VolumeKind.CHECKPOINT
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=sandbox.organization_id)
        sandbox.refresh_from_db()
        _require_disk(sandbox, memory)
        limits.room_require(
            organization=organization,
            asked=quotas.Amount(disk_gib=1 + memory * limits.gib(sandbox.memory_mb * 2**20)),
            new=False,
        )
        root = None if sandbox.root_id is None else Volume.objects.get(pk=sandbox.root_id)
        snapshot = _insert(
            organization_id=sandbox.organization_id,
            actor=actor,
            public_id=(ids.checkpoint_id if checkpoint else ids.snapshot_id)(sandbox.region),
            kind=kind,
            slug=slug,
            region=sandbox.region,
            capacity=max(sandbox.disk_gib * 2**30, root.capacity if root else 0),
            bootable=True,
            base=root.base if root and root.kind == VolumeKind.VOLUME else root,
            source=root if root and root.kind == VolumeKind.VOLUME else None,
            taken_of=sandbox.public_id,
            memory_mb=sandbox.memory_mb if memory else 0,
        )
        what = "A checkpoint" if checkpoint else f"Snapshot {slug}{' with its memory' if memory else ''}"
        timeline.record_happening(sandbox=sandbox, text=f"{what} was taken", actor=actor.label[:150])
        besides(snapshot)
    return snapshot


def _require_disk(sandbox: Sandbox, memory: bool) -> None:
    """Return if its disk, and its memory, hold what a snapshot can be taken of. Conflict."""
    if sandbox.state == SandboxState.RUNNING and sandbox.unresponsive:
        raise Conflict("the sandbox is silent: a snapshot is taken of one that answers", state=sandbox.state)
    if memory and sandbox.state != SandboxState.RUNNING:
        raise Conflict(f"the sandbox is {sandbox.state}: memory is kept of one that runs", state=sandbox.state)
    if memory and (sandbox.mounts.exists() or (sandbox.root is not None and sandbox.root.kind == VolumeKind.VOLUME)):
        raise Conflict("its memory knows volumes, which are not in a snapshot: detach them first", state=sandbox.state)
    rests = sandbox.state == SandboxState.STOPPED and sandbox.kind == Kind.WORKSPACE
    if not rests and sandbox.state not in (SandboxState.RUNNING, SandboxState.SUSPENDED):
        raise Conflict(f"the sandbox is {sandbox.state}: a snapshot waits until it runs or rests", state=sandbox.state)


async def volume_grow(*, volume: Volume, capacity: int | str, actor: Actor) -> Volume:
    """Let a volume have more room, also while a sandbox has it. Forbidden, Invalid if it is less, QuotaExceeded.

    Conflict while its sandbox comes or goes, or is suspended; Unavailable. What failed may be asked for again.
    """
    permissions.require(actor, "volume.create", volume.organization_id)
    wanted = volume_rules.capacity_of(capacity)
    before = volume.capacity
    await in_thread(_grow_row, volume, wanted, actor)
    try:
        await runtime.node().volume_grow(volume.disk, capacity=wanted)
    except VmError as error:
        await in_thread(Volume.objects.filter(pk=volume.pk, capacity=wanted).update, capacity=before)
        kind = Conflict if isinstance(error, VolumeBusy) else Unavailable
        raise kind(f"the volume could not grow: {error.detail or error}") from error
    return volume


def _grow_row(volume: Volume, wanted: int, actor: Actor) -> None:
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=volume.organization_id)
        volume.refresh_from_db()
        if volume.state != VolumeState.READY:
            raise NotFound
        if wanted < volume.capacity:
            raise Invalid(f"it has {volume.capacity} bytes: a volume grows, and never shrinks", field="capacity")
        asked = quotas.Amount(disk_gib=limits.gib(wanted) - limits.gib(volume.capacity))
        limits.room_require(organization=organization, asked=asked, new=False)
        volume.capacity = wanted
        volume.save(update_fields=["capacity"])
        _record(volume, actor, "grow", capacity=wanted)


def _snapshot_insert(volume: Volume, slug: str, actor: Actor) -> Volume:
    permissions.require(actor, "volume.snapshot", volume.organization_id)
    slug = volume_rules.check_slug(slug)
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=volume.organization_id)
        volume.refresh_from_db()
        if volume.state != VolumeState.READY:
            raise NotFound
        # What is written from now on is kept beside what the snapshot holds
        limits.room_require(
            organization=organization, asked=quotas.Amount(disk_gib=limits.gib(volume.allocated)), new=False
        )
        return _insert(
            organization_id=volume.organization_id,
            actor=actor,
            public_id=ids.snapshot_id(volume.region),
            kind=VolumeKind.SNAPSHOT,
            slug=slug,
            region=volume.region,
            capacity=volume.capacity,
            bootable=volume.bootable,
            base=volume.base,
            source=volume,
        )


def _volume_insert(wanted: Wanted, actor: Actor) -> Volume:
    permissions.require(actor, "volume.create", actor.organization_id)
    slug = volume_rules.check_slug(wanted.slug)
    system = wanted.source == volume_rules.SYSTEM
    least = volume_rules.SYSTEM_CAPACITY if system else volume_rules.CAPACITY[0]
    capacity = volume_rules.capacity_of(wanted.capacity, least=least)
    base = None
    if wanted.source and not system:
        base = volume_get(actor=actor, name=wanted.source, kind=VolumeKind.SNAPSHOT)
        capacity = max(capacity, base.capacity)
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)
        asked = quotas.Amount(disk_gib=limits.gib(capacity))
        limits.room_require(organization=organization, asked=asked, new=False)
        region: str = config()["region"]
        volume = _insert(
            organization_id=actor.organization_id,
            actor=actor,
            public_id=ids.volume_id(region),
            kind=VolumeKind.VOLUME,
            slug=slug,
            region=region,
            capacity=capacity,
            bootable=base.bootable if base else system,
            base=base,
        )
    return volume


def _insert(*, organization_id: int, actor: AnyActor, slug: str, **fields: object) -> Volume:
    """A row that is being made, in the caller's transaction. SlugInUse."""
    try:
        with transaction.atomic():
            volume = Volume.objects.create(
                organization_id=organization_id,
                slug=slug,
                disk=ids.machine_id(),
                creator_name=actor.label[:150],
                **fields,
            )
    except IntegrityError as error:
        raise SlugInUse(f"a volume or snapshot {slug!r} is there already") from error
    _record(volume, actor, "create", slug=slug, capacity=volume.capacity)
    return volume


def _made(volume: Volume, info: VolumeInfo, actor: AnyActor) -> Volume:
    with transaction.atomic():
        made = Volume.objects.filter(pk=volume.pk, state=VolumeState.CREATING).update(
            state=VolumeState.READY,
            allocated=info.allocated,
            flattened=info.flattened,
            measured_at=timezone.now(),
        )
        volume = Volume.objects.select_related("base", "source").get(pk=volume.pk)
        if made:
            _record(volume, actor, "ready")
    return volume


def _not_made(volume: Volume, actor: AnyActor, why: str) -> None:
    with transaction.atomic():
        if Volume.objects.filter(pk=volume.pk, state=VolumeState.CREATING).delete()[0]:
            _record(volume, actor, "create_failed", why=why[:500], gone=True)


def volume_delete(*, volume: Volume, actor: Actor) -> None:
    """Take it out of use at once; for a day it can be restored. What was made of it stays. NotFound.

    VolumeInUse while a sandbox has it.
    """
    permissions.require(actor, "volume.delete", volume.organization_id)
    with transaction.atomic():
        # Nobody takes it in the same moment
        Organization.objects.select_for_update(no_key=True).get(pk=volume.organization_id)
        if users := mounts.holders(volume):
            raise VolumeInUse(f"sandbox {users[0].public_id} has the volume: stop it, or detach it first")
        deleted = Volume.objects.filter(pk=volume.pk, state=VolumeState.READY).update(
            state=VolumeState.DELETED, deleted_at=timezone.now()
        )
        if not deleted:
            raise NotFound
        volume.refresh_from_db()
        _record(volume, actor, "delete")


def checkpoint_drop(*, volume: Volume, actor: AnyActor) -> None:
    """Have a checkpoint removed with the next turn; what was made of it stays. Repeatable."""
    with transaction.atomic():
        if Volume.objects.filter(pk=volume.pk, kind=VolumeKind.CHECKPOINT, state=VolumeState.READY).update(
            state=VolumeState.DELETED, deleted_at=timezone.now()
        ):
            volume.refresh_from_db()
            _record(volume, actor, "delete", gone=True)


def volume_restore(*, volume: Volume, actor: Actor) -> Volume:
    """Bring a deleted one back. NotFound once it cannot be; SlugInUse if another has its slug by now.

    It asks for no room: it has counted all the time.
    """
    permissions.require(actor, "volume.restore", volume.organization_id)
    if restorable_until(volume) is None:
        raise NotFound("it is removed: a volume or snapshot can be restored for a day after it was deleted")
    with transaction.atomic():
        try:
            with transaction.atomic():
                restored = Volume.objects.filter(pk=volume.pk, state=VolumeState.DELETED, removed=False).update(
                    state=VolumeState.READY, deleted_at=None
                )
        except IntegrityError as error:
            raise SlugInUse(f"a volume or snapshot {volume.slug!r} was made meanwhile: delete that first") from error
        if not restored:
            raise NotFound
        volume.refresh_from_db()
        _record(volume, actor, "restore")
    return volume


async def volumes_settle() -> None:
    """Bring node and rows together. Repeatable, also beside itself; does nothing while the node does not answer."""
    node = runtime.node()
    waits = await in_thread(_unsettled)
    try:
        known = {info.volume: info for info in await node.volume_list()}
        tag = (await node.host_info()).data_tag
    except VmError as error:
        log.warning("the node does not say which volumes there are", error=str(error))
        return
    if not await in_thread(host_data.host_data_seen, tag):
        return
    for volume in waits:
        try:
            if volume.state == VolumeState.DELETED:
                await node.volume_remove(volume.disk)
                await in_thread(_removed, volume)
            elif volume.disk in known:
                await in_thread(_made, volume, known[volume.disk], SYSTEM)
            else:
                await in_thread(_not_made, volume, SYSTEM, "whoever made it is gone")
        except NodeUnreachable:
            return
        except VmError as error:
            log.warning("could not settle a volume yet", volume=volume.public_id, error=str(error))
    await mounts.mounts_settle(list(known.values()))
    for disk in await in_thread(_strays, known):
        log.warning("removing a volume: no row has named it for long", volume=disk)
        try:
            await node.volume_remove(disk)
        except VmError as error:
            log.warning("could not do so yet", volume=disk, error=str(error))


def _unsettled() -> list[Volume]:
    """Rows of which something is still to be done, and of which nobody is doing it."""
    now = timezone.now()
    made = Q(state=VolumeState.CREATING, created_at__lt=now - MAKING)
    gone = Q(state=VolumeState.DELETED, removed=False, deleted_at__lt=now - RESTORABLE_FOR - PURGE_MARGIN)
    dropped = Q(state=VolumeState.DELETED, removed=False, kind=VolumeKind.CHECKPOINT)
    return list(Volume.objects.filter(made | gone | dropped))


def _removed(volume: Volume) -> None:
    with transaction.atomic():
        if Volume.objects.filter(pk=volume.pk, state=VolumeState.DELETED, removed=False).update(removed=True):
            _record(volume, SYSTEM, "remove", gone=True)


def _strays(known: Mapping[str, VolumeInfo]) -> list[str]:
    """Volumes of the node that no row has named for long: the database may be an older one that was put back.

    Asked after the node: a volume has its row before it exists.
    """
    now = timezone.now()
    # Also those that are removed already as far as the row knows: the next look finds them gone
    named = set(Volume.objects.filter(disk__in=known).values_list("disk", flat=True))
    nobodys = known.keys() - named
    StrayVolume.objects.exclude(disk__in=nobodys).delete()
    for disk in nobodys:
        StrayVolume.objects.get_or_create(disk=disk, defaults={"since": now})
    kept = timedelta(hours=config()["stray_hours"])
    return list(StrayVolume.objects.filter(since__lte=now - kept).values_list("disk", flat=True))


def _record(volume: Volume, actor: AnyActor, what: str, *, gone: bool = False, **detail: object) -> None:
    """Audit and event of a change, in its transaction; `gone`: there is nothing to show any more."""
    audit.record(
        actor=actor,
        organization_id=volume.organization_id,
        action=f"{volume.kind}.{what}",
        target=volume.public_id,
        **detail,
    )
    publish_volume(volume, gone=gone)
