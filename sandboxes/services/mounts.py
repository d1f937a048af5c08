"""Which sandbox has which volume: the only module that writes that down, and has nodes do it.

A volume has one sandbox at a time. That is decided in the transaction that takes it, which holds the organization's
row; it is given up when the sandbox has stopped, whose machine has let go of it by then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q

from sandboxes import audit, permissions, runtime, timeline, volume_rules
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Invalid, NotFound, Unavailable, VolumeInUse
from sandboxes.events import publish_sandbox
from sandboxes.models import Organization, Sandbox, SandboxState, Volume, VolumeKind, VolumeMount, VolumeState
from sandboxes.permissions import Actor, AnyActor
from sandboxes.selectors.volumes import volume_get
from vm.api import VolumeInfo
from vm.api import VolumeMount as MachineMount
from vm.errors import MachineFailed, NodeUnreachable, VmError, VolumeBusy

log = structlog.get_logger("atoll.volumes")

PATIENCE = 5.0
"""Seconds that a create waits for a volume that its sandbox is about to give up."""
_LOOK = 0.2
_GIVEN_UP = (SandboxState.STOPPED, SandboxState.DELETED)


@dataclass(frozen=True, slots=True)
class WantedMount:
    """A volume or snapshot, by id or slug, that a sandbox is to have at `path`.

    `read_only`: of a volume its last snapshot. A snapshot is never anything else.
    """

    volume: str
    path: str
    read_only: bool = False


async def when_free[R](work: Callable[[], Awaitable[R]]) -> R:
    """What `work` returns, tried for a while as long as it raises VolumeInUse."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await work()
        except VolumeInUse:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_LOOK)


def root_of(*, name: str, actor: Actor) -> Volume | None:
    """The volume or snapshot that a new sandbox is to boot from, by id or slug; None for "".

    To be called in the transaction that makes it its root, which holds the organization's row. NotFound; Invalid if
    there is no system on it; VolumeInUse.
    """
    if not name:
        return None
    root = volume_get(actor=actor, name=name, kind=None, action="volume.attach")
    if not root.bootable:
        raise Invalid(
            f"{root.kind} {root.slug!r} is not bootable: only what was made from {volume_rules.SYSTEM!r} is",
            field="root",
        )
    _require_free(root, None, read_only=root.kind != VolumeKind.VOLUME)
    return root


def mounts_insert(*, sandbox: Sandbox, wanted: Sequence[WantedMount], actor: Actor) -> None:
    """Give a sandbox its volumes, in the caller's transaction, which holds the organization's row.

    Invalid, NotFound, Conflict; VolumeInUse while another sandbox has one.
    """
    for one in wanted:
        _insert(sandbox, one, actor)


def mounts_copy(*, source: Sandbox, fork: Sandbox) -> None:
    """Give a fork the snapshots that its source has, in the caller's transaction; a volume is in one sandbox only."""
    for mount in source.mounts.filter(read_only=True):
        VolumeMount.objects.create(sandbox=fork, volume=mount.volume, path=mount.path, read_only=True)


def mounts_require(*, sandbox: Sandbox) -> None:
    """Return if a sandbox that stopped may have its volumes again. As `mounts_insert`. Conflict, VolumeInUse."""
    root = None if sandbox.root_id is None else Volume.objects.get(pk=sandbox.root_id)
    if root is not None and root.kind == VolumeKind.VOLUME:
        if root.state != VolumeState.READY:
            raise Conflict(f"the volume {root.slug!r} that it boots from is deleted: restore it first")
        _require_free(root, sandbox, read_only=False)
    for mount in sandbox.mounts.select_related("volume"):
        if mount.volume.state != VolumeState.READY:
            raise Conflict(f"its {mount.volume.kind} {mount.volume.slug!r} is deleted: restore it, or detach it first")
        _require_free(mount.volume, sandbox, mount.read_only)


def mounts_for_machine(*, sandbox: Sandbox) -> tuple[MachineMount, ...]:
    """What its machine is to have."""
    rows = sandbox.mounts.select_related("volume").order_by("path")
    return tuple(MachineMount(row.volume.disk, row.path, row.read_only) for row in rows)


def holders(volume: Volume) -> list[Sandbox]:
    """The sandbox that has the volume for itself now, if there is one; a snapshot is nobody's."""
    mounted = Q(mounts__volume=volume, mounts__read_only=False)
    rooted = Q(root=volume) if volume.kind == VolumeKind.VOLUME else Q(pk=None)
    return list(Sandbox.objects.filter(mounted | rooted).exclude(state__in=_GIVEN_UP).distinct())


async def volume_attach(*, sandbox: Sandbox, wanted: WantedMount, actor: Actor) -> VolumeMount:
    """Give a sandbox another volume; in one that runs it can be used when this returns. Forbidden.

    Invalid, NotFound, Conflict, VolumeInUse; Unavailable while its host is silent. What fails leaves it as it was.
    """
    mount = await in_thread(_attach_row, sandbox, wanted, actor)
    if sandbox.state != SandboxState.RUNNING:
        return mount
    try:
        await runtime.node().volume_attach(
            sandbox.machine, MachineMount(mount.volume.disk, mount.path, mount.read_only)
        )
    except NodeUnreachable as error:
        # It may have been done all the same: both are brought together once the node answers.
        await in_thread(_drop, mount, sandbox, actor)
        raise Unavailable(f"the machine's host does not answer: {error.detail}") from error
    except VmError as error:
        await in_thread(_drop, mount, sandbox, actor)
        raise Conflict(f"the volume could not be mounted: {error.detail or error}") from error
    return mount


async def volume_detach(*, sandbox: Sandbox, volume: str, actor: Actor) -> None:
    """Take a volume, by id or slug, from a sandbox; what was written is on it when this returns. Forbidden, NotFound.

    Conflict while programs use it, or while the sandbox comes or goes; Unavailable.
    """
    permissions.require(actor, "volume.attach", sandbox.organization_id)
    mount = await in_thread(_mount, sandbox, volume)
    if sandbox.state == SandboxState.RUNNING:
        try:
            await runtime.node().volume_detach(sandbox.machine, mount.volume.disk)
        except (VolumeBusy, MachineFailed) as error:
            raise Conflict(f"the volume cannot be unmounted: {error.detail}") from error
        except VmError as error:
            raise Unavailable(f"the volume could not be unmounted: {error.detail or error}") from error
    elif sandbox.state not in _GIVEN_UP:
        raise Conflict(f"the sandbox is {sandbox.state}: its volumes come and go while it runs, or is stopped")
    await in_thread(_drop, mount, sandbox, actor)


async def mounts_settle(known: Sequence[VolumeInfo]) -> None:
    """Take volumes from machines whose sandbox has them no more: whoever attached them heard no answer. Repeatable.

    To be called with what the node has said: a mount has its row before its machine has the volume.
    """
    for machine, volume in await in_thread(_nobodys, known):
        try:
            await runtime.node().volume_detach(machine, volume)
        except VmError as error:
            log.warning("could not take a volume from a machine yet", volume=volume, error=str(error))


def _nobodys(known: Sequence[VolumeInfo]) -> list[tuple[str, str]]:
    seen = {(machine, info.volume) for info in known for machine in info.used_by}
    rows = VolumeMount.objects.filter(volume__disk__in={volume for _machine, volume in seen})
    # What is no sandbox's machine is stopped, and lets go by that
    running = Sandbox.objects.filter(machine__in={machine for machine, _volume in seen}, state=SandboxState.RUNNING)
    named = set(rows.values_list("sandbox__machine", "volume__disk"))
    named |= set(running.filter(root__isnull=False).values_list("machine", "root__disk"))
    machines = set(running.values_list("machine", flat=True))
    return [pair for pair in seen - named if pair[0] in machines]


def _attach_row(sandbox: Sandbox, wanted: WantedMount, actor: Actor) -> VolumeMount:
    with transaction.atomic():
        Organization.objects.select_for_update(no_key=True).get(pk=sandbox.organization_id)
        sandbox.refresh_from_db()
        if sandbox.state not in (SandboxState.RUNNING, SandboxState.STOPPED):
            raise Conflict(f"the sandbox is {sandbox.state}: its volumes come and go while it runs, or is stopped")
        mount = _insert(sandbox, wanted, actor)
        _record(mount, sandbox, actor, "volume.attach")
    return mount


def _insert(sandbox: Sandbox, wanted: WantedMount, actor: Actor) -> VolumeMount:
    path = volume_rules.check_path(wanted.path)
    volume = volume_get(actor=actor, name=wanted.volume, kind=None, action="volume.attach")
    read_only = wanted.read_only or volume.kind != VolumeKind.VOLUME
    if read_only and volume.kind == VolumeKind.VOLUME:
        last = volume.snapshots.filter(kind=VolumeKind.SNAPSHOT, state=VolumeState.READY).order_by("-pk").first()
        if last is None:
            raise Conflict(f"volume {volume.slug!r} has no snapshot, and only those are mounted read-only")
        volume = last
    taken = list(sandbox.mounts.values_list("path", flat=True))
    if len(taken) >= volume_rules.MOUNTS:
        raise Invalid(f"a sandbox has at most {volume_rules.MOUNTS} volumes", field="volumes")
    if any(path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/") for one in taken):
        raise Invalid(f"{path} is another volume's path, or one lies within the other", field="volumes")
    if not read_only and volume.pk == sandbox.root_id:
        raise Conflict(f"the sandbox boots from {volume.slug!r} already")
    _require_free(volume, sandbox, read_only)
    try:
        with transaction.atomic():
            return VolumeMount.objects.create(sandbox=sandbox, volume=volume, path=path, read_only=read_only)
    except IntegrityError as error:
        raise Conflict(f"the sandbox has {volume.slug!r} already") from error


def _require_free(volume: Volume, sandbox: Sandbox | None, read_only: bool) -> None:
    others = [] if read_only else [one for one in holders(volume) if sandbox is None or one.pk != sandbox.pk]
    if others:
        raise VolumeInUse(f"volume {volume.slug!r} is in use by sandbox {others[0].public_id}", state=others[0].state)


def _mount(sandbox: Sandbox, volume: str) -> VolumeMount:
    # Also a deleted one can be taken away
    rows = sandbox.mounts.select_related("volume")
    found = rows.filter(volume__public_id=volume).first() or rows.filter(volume__slug=volume).first()
    if found is None:
        raise NotFound(f"the sandbox has no volume {volume[:40]!r}")
    sandbox.refresh_from_db()
    return found


def _drop(mount: VolumeMount, sandbox: Sandbox, actor: AnyActor) -> None:
    with transaction.atomic():
        if VolumeMount.objects.filter(pk=mount.pk).delete()[0]:
            _record(mount, sandbox, actor, "volume.detach")


def _record(mount: VolumeMount, sandbox: Sandbox, actor: AnyActor, action: str) -> None:
    audit.record(
        actor=actor,
        organization_id=sandbox.organization_id,
        action=action,
        target=mount.volume.public_id,
        sandbox=sandbox.public_id,
        path=mount.path,
        read_only=mount.read_only,
    )
    what = f"{mount.volume.kind.capitalize()} {mount.volume.slug}"
    done = f"mounted at {mount.path}" if action == "volume.attach" else "unmounted"
    timeline.record_happening(sandbox=sandbox, text=f"{what} was {done}", actor=actor.label[:150])
    publish_sandbox(sandbox)
