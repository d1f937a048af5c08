"""`/api/v1/volumes` and `/api/v1/snapshots`: their whole life, and who has them."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Query, Router, Status

from ide.api.schemas import MountIn, Problem
from ide.api.volume_schemas import (
    LineageOut,
    MountOut,
    SandboxSnapshotIn,
    SnapshotIn,
    VolumeChange,
    VolumeIn,
    VolumeOut,
    VolumePage,
    VolumeShown,
    VolumesWanted,
)
from sandboxes.database import in_thread
from sandboxes.events import volume_payload
from sandboxes.models import Sandbox, Volume, VolumeKind, VolumeMount
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.selectors.volumes import lineage_of, mount_list, uses_of, volume_get, volume_list
from sandboxes.services import volumes as service
from sandboxes.services.mounts import WantedMount, volume_attach, volume_detach, when_free
from sandboxes.services.volumes import Wanted

router = Router(tags=["volumes"])
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _sandbox(request: HttpRequest, sandbox: str, action: str = "sandbox.view") -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action=action)


def _mount(mount: VolumeMount) -> Json:
    return {"volume": volume_payload(mount.volume), "path": mount.path, "read_only": mount.read_only}


@router.get("/sandboxes/{sandbox}/volumes", response={200: list[MountOut], 404: Problem})
async def mounts(request: HttpRequest, sandbox: str) -> list[Json]:
    """The volumes that a sandbox has."""
    row = await _sandbox(request, sandbox)
    return [_mount(one) for one in await in_thread(mount_list, actor=_actor(request), sandbox=row)]


@router.post(
    "/sandboxes/{sandbox}/volumes",
    response={201: MountOut, 400: Problem, 404: Problem, 409: Problem, 503: Problem},
)
async def attach(request: HttpRequest, sandbox: str, body: MountIn) -> Any:
    """Give a sandbox another volume, also while it runs; a volume that is being given up is waited for."""
    row = await _sandbox(request, sandbox)
    wanted = WantedMount(body.volume, body.path, body.read_only)
    mount = await when_free(lambda: volume_attach(sandbox=row, wanted=wanted, actor=_actor(request)))
    return Status(201, await in_thread(_mount, mount))


@router.delete("/sandboxes/{sandbox}/volumes/{volume}", response={204: None, 404: Problem, 409: Problem, 503: Problem})
async def detach(request: HttpRequest, sandbox: str, volume: str) -> Any:
    """Take a volume from a sandbox: what was written is on it then."""
    row = await _sandbox(request, sandbox)
    await volume_detach(sandbox=row, volume=volume, actor=_actor(request))
    return Status(204, None)


async def _get(
    request: HttpRequest, volume: str, kind: VolumeKind = VolumeKind.VOLUME, *, restorable: bool = False
) -> Volume:
    return await in_thread(volume_get, actor=_actor(request), name=volume, kind=kind, restorable=restorable)


def _shown(rows: list[Volume]) -> list[Json]:
    uses = uses_of(rows)
    return [
        {
            **volume_payload(row),
            "used_by": [
                {
                    "id": use.sandbox.public_id,
                    "name": use.sandbox.name,
                    "state": use.sandbox.state,
                    "path": use.path,
                    "read_only": use.read_only,
                }
                for use in uses[row.pk]
            ],
        }
        for row in rows
    ]


async def _page(request: HttpRequest, kind: VolumeKind, wanted: VolumesWanted) -> Json:
    rows, following = await in_thread(
        volume_list,
        actor=_actor(request),
        kind=kind,
        search=wanted.search,
        limit=wanted.limit,
        cursor=wanted.cursor,
        deleted=wanted.state == "deleted",
    )
    return {"items": await in_thread(_shown, rows), "next": following or None}


async def _one(row: Volume) -> Json:
    (shown,) = await in_thread(_shown, [row])
    return shown


async def _lineage(row: Volume) -> Json:
    lineage = await in_thread(lineage_of, volume=row)
    return {
        name: [{"id": one.public_id, "kind": one.kind, "slug": one.slug, "state": one.state} for one in rows]
        for name, rows in (("ancestors", lineage.ancestors), ("children", lineage.children))
    }


@router.get("/volumes", response={200: VolumePage, 400: Problem})
async def volumes(request: HttpRequest, wanted: Query[VolumesWanted]) -> Json:
    """The organization's volumes, newest first; `deleted`: those that can still be restored."""
    return await _page(request, VolumeKind.VOLUME, wanted)


@router.post(
    "/volumes",
    response={201: VolumeOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def create(request: HttpRequest, body: VolumeIn) -> Any:
    """Make one: empty, of a snapshot, or of the guest's system."""
    wanted = Wanted(slug=body.slug, capacity=body.capacity, source=body.source)
    return Status(201, volume_payload(await service.volume_create(wanted=wanted, actor=_actor(request))))


@router.get("/volumes/{volume}", response={200: VolumeShown, 404: Problem})
async def volume(request: HttpRequest, volume: str) -> Json:
    """One of them, by id or slug."""
    return await _one(await _get(request, volume))


@router.get("/volumes/{volume}/lineage", response={200: LineageOut, 404: Problem})
async def lineage(request: HttpRequest, volume: str) -> Json:
    """What it was made from, nearest first, and what was taken of it."""
    return await _lineage(await _get(request, volume))


@router.patch(
    "/volumes/{volume}",
    response={200: VolumeOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def grow(request: HttpRequest, volume: str, body: VolumeChange) -> Json:
    """Let it have more room, with its file system, also while a sandbox has it."""
    row = await _get(request, volume)
    return volume_payload(await service.volume_grow(volume=row, capacity=body.capacity, actor=_actor(request)))


@router.delete("/volumes/{volume}", response={204: None, 404: Problem, 409: Problem})
async def delete(request: HttpRequest, volume: str) -> Any:
    """Take it out of use; for a day it can be restored."""
    row = await _get(request, volume)
    await when_free(lambda: in_thread(service.volume_delete, volume=row, actor=_actor(request)))
    return Status(204, None)


@router.post(
    "/volumes/{volume}/snapshot",
    response={201: VolumeOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def snapshot(request: HttpRequest, volume: str, body: SnapshotIn) -> Any:
    """Keep what it holds now; a sandbox that has it goes on."""
    row = await _get(request, volume)
    return Status(201, volume_payload(await service.volume_snapshot(volume=row, slug=body.slug, actor=_actor(request))))


@router.post(
    "/sandboxes/{sandbox}/snapshot",
    response={201: VolumeOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def snapshot_of_sandbox(request: HttpRequest, sandbox: str, body: SandboxSnapshotIn) -> Any:
    """Keep what a sandbox's disk holds now, and its memory if asked for: others boot from it, or go on."""
    row = await _sandbox(request, sandbox)
    made = await service.sandbox_snapshot(sandbox=row, slug=body.slug, memory=body.memory, actor=_actor(request))
    return Status(201, volume_payload(made))


@router.get("/snapshots", response={200: VolumePage, 400: Problem})
async def snapshots(request: HttpRequest, wanted: Query[VolumesWanted]) -> Json:
    """The organization's snapshots, newest first; `deleted`: those that can still be restored."""
    return await _page(request, VolumeKind.SNAPSHOT, wanted)


@router.get("/snapshots/{snapshot}", response={200: VolumeShown, 404: Problem})
async def one_snapshot(request: HttpRequest, snapshot: str) -> Json:
    """One of them, by id or slug."""
    return await _one(await _get(request, snapshot, VolumeKind.SNAPSHOT))


@router.get("/snapshots/{snapshot}/lineage", response={200: LineageOut, 404: Problem})
async def snapshot_lineage(request: HttpRequest, snapshot: str) -> Json:
    """What it was taken of, nearest first, and what was made from it."""
    return await _lineage(await _get(request, snapshot, VolumeKind.SNAPSHOT))


@router.delete("/snapshots/{snapshot}", response={204: None, 404: Problem})
async def delete_snapshot(request: HttpRequest, snapshot: str) -> Any:
    """Take it out of use; what was made of it stays. For a day it can be restored."""
    row = await _get(request, snapshot, VolumeKind.SNAPSHOT)
    await in_thread(service.volume_delete, volume=row, actor=_actor(request))
    return Status(204, None)


@router.post("/snapshots/{snapshot}/restore", response={200: VolumeOut, 404: Problem, 409: Problem})
async def restore_snapshot(request: HttpRequest, snapshot: str) -> Json:
    """Bring a deleted one back, by its id, within a day."""
    row = await _get(request, snapshot, VolumeKind.SNAPSHOT, restorable=True)
    return volume_payload(await in_thread(service.volume_restore, volume=row, actor=_actor(request)))


@router.post("/volumes/{volume}/restore", response={200: VolumeOut, 404: Problem, 409: Problem})
async def restore(request: HttpRequest, volume: str) -> Json:
    """Bring a deleted one back, by its id, within a day."""
    row = await _get(request, volume, restorable=True)
    return volume_payload(await in_thread(service.volume_restore, volume=row, actor=_actor(request)))
