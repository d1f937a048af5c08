"""The SDKs' plain HTTP calls about volumes and snapshots."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

from ide.api.sdk import sdk_view
from ide.api.sdk_json import json_object, page_asked, page_response
from sandboxes.database import in_thread
from sandboxes.errors import Invalid
from sandboxes.models import Volume, VolumeKind
from sandboxes.permissions import Actor
from sandboxes.selectors.volumes import volume_get, volume_list
from sandboxes.services import volumes
from sandboxes.services.mounts import when_free
from sandboxes.services.volumes import Wanted


@sdk_view("GET", "POST")
async def volumes_view(request: HttpRequest, actor: Actor) -> HttpResponse:
    """GET lists, POST creates."""
    if request.method == "GET":
        return await _page(request, actor, VolumeKind.VOLUME)
    body = json_object(request)
    source = body.get("from")
    if source is not None and not isinstance(source, str):
        raise Invalid("'from' is not a text", field="from")
    wanted = Wanted(slug=body.get("slug", ""), capacity=body.get("capacity", ""), source=source or "")
    return JsonResponse(_volume(await volumes.volume_create(wanted=wanted, actor=actor)), status=201)


@sdk_view("GET", "DELETE")
async def volume_view(request: HttpRequest, actor: Actor, volume: str) -> HttpResponse:
    """One volume, by id or slug."""
    row = await in_thread(volume_get, actor=actor, name=volume)
    if request.method == "DELETE":
        # Its sandbox may have been stopped a moment ago
        await when_free(lambda: in_thread(volumes.volume_delete, volume=row, actor=actor))
        return HttpResponse(status=204)
    return JsonResponse(_volume(row))


@sdk_view("POST")
async def volume_snapshot(request: HttpRequest, actor: Actor, volume: str) -> HttpResponse:
    """Take a snapshot of a volume."""
    row = await in_thread(volume_get, actor=actor, name=volume)
    made = await volumes.volume_snapshot(volume=row, slug=json_object(request).get("slug", ""), actor=actor)
    return JsonResponse(_snapshot(made), status=201)


@sdk_view("GET")
async def snapshots_view(request: HttpRequest, actor: Actor) -> HttpResponse:
    """The organization's snapshots."""
    return await _page(request, actor, VolumeKind.SNAPSHOT)


@sdk_view("GET", "DELETE")
async def snapshot_view(request: HttpRequest, actor: Actor, snapshot: str) -> HttpResponse:
    """One snapshot, by id or slug."""
    row = await in_thread(volume_get, actor=actor, name=snapshot, kind=VolumeKind.SNAPSHOT)
    if request.method == "DELETE":
        await in_thread(volumes.volume_delete, volume=row, actor=actor)
        return HttpResponse(status=204)
    return JsonResponse(_snapshot(row))


async def _page(request: HttpRequest, actor: Actor, kind: VolumeKind) -> HttpResponse:
    search = request.GET.get("search", "")
    asked = page_asked(request)
    rows, following = await in_thread(volume_list, actor=actor, kind=kind, search=search, **asked)
    return page_response(request, [_item(row) for row in rows], following)


def _item(row: Volume) -> dict[str, Any]:
    return _volume(row) if row.kind == VolumeKind.VOLUME else _snapshot(row)


def _snapshot(row: Volume) -> dict[str, Any]:
    # JavaScript reads the volume that it is of, Python's types have the snapshot that this was made from
    return {
        "id": row.public_id,
        "slug": row.slug,
        "region": row.region,
        "allocated_size": row.allocated,
        "flattened_size": row.flattened,
        "is_bootable": row.bootable,
        # One of a sandbox's own disk is of no volume, but clients read an id and a slug here
        "volume": _named(row.source) or {"id": row.taken_of, "slug": row.taken_of},
        "base_snapshot": _named(row.base),
    }


def _volume(row: Volume) -> dict[str, Any]:
    # Exactly these keys: clients compare the whole object
    return {
        "id": row.public_id,
        "slug": row.slug,
        "region": row.region,
        "capacity": row.capacity,
        "estimated_allocated_size": row.allocated,
        "estimated_flattened_size": row.flattened,
        "is_bootable": row.bootable,
        "base_snapshot": _named(row.base),
    }


def _named(row: Volume | None) -> dict[str, str] | None:
    return {"id": row.public_id, "slug": row.slug} if row else None
