"""Reads of volumes and snapshots, within the actor's organization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q
from django.utils import timezone

from sandboxes import permissions
from sandboxes.errors import NotFound
from sandboxes.models import Kind, Sandbox, SandboxState, Volume, VolumeKind, VolumeMount, VolumeState
from sandboxes.permissions import Actor
from sandboxes.selectors.pages import PAGE, page_of

RESTORABLE_FOR = timedelta(days=1)
"""For which a deleted volume or snapshot can be brought back."""
LINEAGE = 100
"""Ancestors and children that a lineage names at most."""


def volume_get(
    *,
    actor: Actor,
    name: str,
    kind: VolumeKind | None = VolumeKind.VOLUME,
    action: str = "volume.view",
    restorable: bool = False,
) -> Volume:
    """The volume or snapshot (None: either) of that id or slug, for an actor who may do `action`. NotFound; Forbidden.

    `restorable`: a deleted one, by its id, as long as it can be brought back.
    """
    rows = Volume.objects.select_related("base", "source").filter(organization_id=actor.organization_id)
    if kind is not None:
        rows = rows.filter(kind=kind)
    if restorable:
        rows = rows.filter(_restorable(), public_id=name)
    else:
        rows = rows.filter(Q(public_id=name) | Q(slug=name), state=VolumeState.READY)
    volume = rows.first()
    if volume is None:
        raise NotFound(f"there is no {kind or 'volume or snapshot'} {name[:40]!r} in this organization")
    permissions.require(actor, action, volume.organization_id)
    return volume


def volume_list(
    *,
    actor: Actor,
    kind: VolumeKind = VolumeKind.VOLUME,
    search: str = "",
    limit: int = PAGE,
    cursor: str = "",
    deleted: bool = False,
) -> tuple[list[Volume], str]:
    """A page, newest first, and the cursor of the next one, "" on the last. `search`: a part of the slug. Invalid."""
    permissions.require(actor, "volume.view", actor.organization_id)
    rows = Volume.objects.select_related("base", "source").filter(organization_id=actor.organization_id, kind=kind)
    rows = rows.filter(_restorable()) if deleted else rows.filter(state=VolumeState.READY)
    if search:
        rows = rows.filter(slug__icontains=search)
    return page_of(rows, limit=limit, cursor=cursor)


def mount_list(*, actor: Actor, sandbox: Sandbox) -> list[VolumeMount]:
    """The volumes that a sandbox has, by their paths."""
    permissions.require(actor, "volume.view", sandbox.organization_id)
    rows = sandbox.mounts.select_related("volume", "volume__base", "volume__source")
    return list(rows.order_by("path"))


@dataclass(frozen=True, slots=True)
class Use:
    """A sandbox that has a volume at `path`, or takes it when it starts again; "/" where it boots from it."""

    sandbox: Sandbox
    path: str
    read_only: bool


def uses_of(volumes: Sequence[Volume]) -> dict[int, list[Use]]:
    """By the keys of volumes that somebody may see: who has each, those that boot from it first."""
    gone = Q(state=SandboxState.DELETED) | Q(state=SandboxState.STOPPED, kind=Kind.SANDBOX)
    uses: dict[int, list[Use]] = {volume.pk: [] for volume in volumes}
    for sandbox in Sandbox.objects.filter(root__in=volumes).exclude(gone).order_by("pk"):
        if sandbox.root_id is not None:
            frozen = any(one.pk == sandbox.root_id and one.kind != VolumeKind.VOLUME for one in volumes)
            uses[sandbox.root_id].append(Use(sandbox, "/", frozen))
    mounts = VolumeMount.objects.filter(volume__in=volumes).select_related("sandbox")
    alive = mounts.filter(sandbox__in=Sandbox.objects.exclude(gone))
    for mount in alive.order_by("pk"):
        uses[mount.volume_id].append(Use(mount.sandbox, mount.path, mount.read_only))
    return uses


@dataclass(frozen=True, slots=True)
class Lineage:
    """What something was made from, nearest first, and what was made from it directly, newest first."""

    ancestors: list[Volume]
    children: list[Volume]


def lineage_of(*, volume: Volume) -> Lineage:
    """Of a volume or snapshot that somebody may see; at most LINEAGE each way."""
    ancestors: list[Volume] = []
    parent = volume.source or volume.base
    while parent is not None and len(ancestors) < LINEAGE:
        ancestors.append(parent)
        key = parent.source_id or parent.base_id
        parent = None if key is None else Volume.objects.get(pk=key)
    children = Volume.objects.filter(Q(source=volume) | Q(base=volume, source=None)).exclude(
        Q(state=VolumeState.CREATING) | Q(kind=VolumeKind.CHECKPOINT)
    )
    return Lineage(ancestors, list(children.order_by("-pk")[:LINEAGE]))


def restorable_until(volume: Volume) -> datetime | None:
    """Until when a deleted one can be brought back; None if it cannot."""
    if volume.state != VolumeState.DELETED or volume.removed or volume.deleted_at is None:
        return None
    until = volume.deleted_at + RESTORABLE_FOR
    return until if until > timezone.now() else None


def _restorable() -> Q:
    return Q(state=VolumeState.DELETED, removed=False, deleted_at__gt=timezone.now() - RESTORABLE_FOR)
