"""`/api/v1/sandboxes`: their whole life, their timeline, and files as downloads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from ninja import Router, Status

from ide.api import downloads
from ide.api.schemas import (
    Extension,
    Fork,
    Problem,
    Resources,
    SandboxChange,
    SandboxIn,
    SandboxOut,
    TimelineOut,
)
from ide.api.secrets import wanted_secret
from sandboxes import states
from sandboxes.database import in_thread
from sandboxes.errors import Conflict
from sandboxes.events import sandbox_payload
from sandboxes.models import Kind, Sandbox, SandboxState
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get, sandbox_list, sandbox_list_deleted
from sandboxes.selectors.timeline import timeline_list
from sandboxes.services import changes, creation, lifecycle, streams, suspension
from sandboxes.services.activity import activity
from sandboxes.services.creation import Wanted
from sandboxes.services.mounts import WantedMount, when_free

router = Router(tags=["sandboxes"])
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _get(
    request: HttpRequest, sandbox: str, action: str = "sandbox.view", *, restorable: bool = False
) -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action=action, restorable=restorable)


async def _awake(request: HttpRequest, sandbox: str) -> Sandbox:
    """The sandbox for a download, which resumes it like any other use."""
    row = await _get(request, sandbox, "sandbox.use")
    if row.state in states.PAUSED:
        await suspension.sandbox_wake(sandbox=row, actor=_actor(request), why="something is downloaded from it")
    if row.state == SandboxState.RESUMING:
        await streams.guest_ready(sandbox=row, timeout=60)
    activity.note(row)
    return row


@router.get("", response={200: list[SandboxOut], 400: Problem})
async def sandboxes(
    request: HttpRequest,
    state: Literal["all", "active", "deleted"] = "all",
    kind: Literal["", "sandbox", "workspace"] = "",
) -> list[Json]:
    """The organization's sandboxes, newest first; `deleted`: workspaces that can still be restored."""
    if state == "deleted":
        rows = await in_thread(sandbox_list_deleted, actor=_actor(request))
    else:
        rows = await in_thread(sandbox_list, actor=_actor(request), active=state == "active", kind=kind)
    return [sandbox_payload(row) for row in rows]


@router.post("", response={201: SandboxOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem})
async def create(request: HttpRequest, body: SandboxIn) -> Any:
    """Make one and start it."""
    lifetime = body.lifetime_seconds
    wanted = Wanted(
        kind=Kind(body.kind),
        name=body.name,
        memory_mb=body.memory_mb,
        labels=body.labels,
        env=body.env,
        allow_net=body.allow_net,
        deny_net=body.deny_net,
        ask_net=body.ask_net,
        secrets=[wanted_secret(one) for one in body.secrets],
        stop_at=timezone.now() + timedelta(seconds=lifetime) if isinstance(lifetime, int) else None,
        unlimited=lifetime == "unlimited",
        root=body.root,
        volumes=[WantedMount(one.volume, one.path, one.read_only) for one in body.volumes],
    )
    sandbox = await when_free(lambda: in_thread(creation.sandbox_create, wanted=wanted, actor=_actor(request)))
    payload = sandbox_payload(sandbox)
    lifecycle.sandbox_boot_beside(sandbox=sandbox)
    return Status(201, payload)


@router.get("/{sandbox}", response={200: SandboxOut, 404: Problem})
async def sandbox(request: HttpRequest, sandbox: str) -> Json:
    """One of them; also a deleted workspace, as long as it can be restored."""
    return sandbox_payload(await _get(request, sandbox, restorable=True))


@router.patch("/{sandbox}", response={200: SandboxOut, 404: Problem})
async def change(request: HttpRequest, sandbox: str, body: SandboxChange) -> Json:
    """Another name, other labels, another time of idleness; what is absent stays."""
    row = await _get(request, sandbox)
    row = await in_thread(changes.sandbox_change, sandbox=row, actor=_actor(request), **body.dict(exclude_unset=True))
    return sandbox_payload(row)


@router.post("/{sandbox}/stop", response={202: SandboxOut, 404: Problem})
async def stop(request: HttpRequest, sandbox: str) -> Any:
    """End its machine; a workspace keeps its disk."""
    row = await _get(request, sandbox)
    row = await lifecycle.sandbox_stop(sandbox=row, actor=_actor(request))
    return Status(202, sandbox_payload(row))


@router.post("/{sandbox}/suspend", response={202: SandboxOut, 404: Problem, 409: Problem})
async def suspend(request: HttpRequest, sandbox: str) -> Any:
    """Save its memory and end its machine: it can go on where it was."""
    row = await _get(request, sandbox)
    row = await suspension.sandbox_suspend(sandbox=row, actor=_actor(request))
    return Status(202, sandbox_payload(row))


@router.post("/{sandbox}/resume", response={202: SandboxOut, 404: Problem, 409: Problem, 429: Problem})
async def resume(request: HttpRequest, sandbox: str) -> Any:
    """Have a suspended one go on; one that runs is answered as it is."""
    row = await _get(request, sandbox)
    row = await suspension.sandbox_wake(sandbox=row, actor=_actor(request))
    return Status(202, sandbox_payload(row))


@router.post("/{sandbox}/fork", response={201: SandboxOut, 404: Problem, 409: Problem, 429: Problem, 503: Problem})
async def fork(request: HttpRequest, sandbox: str, body: Fork) -> Any:
    """A copy of a running one, with its memory; both go on."""
    row = await _get(request, sandbox)
    lifetime = timedelta(seconds=body.lifetime_seconds) if body.lifetime_seconds else None
    made = await suspension.sandbox_fork(sandbox=row, actor=_actor(request), name=body.name, lifetime=lifetime)
    return Status(201, sandbox_payload(made))


@router.post("/{sandbox}/extend", response={200: SandboxOut, 404: Problem, 409: Problem})
async def extend(request: HttpRequest, sandbox: str, body: Extension) -> Json:
    """Have it live for that long from now at least, within the organization's limit."""
    row = await _get(request, sandbox)
    if row.stop_at is None:
        raise Conflict("it has no deadline that could be later", state=row.state)
    wanted = timezone.now() + timedelta(seconds=body.seconds)
    await in_thread(changes.sandbox_extend, sandbox=row, actor=_actor(request), stop_at=wanted)
    return sandbox_payload(await _get(request, sandbox))


@router.post("/{sandbox}/restore", response={202: SandboxOut, 404: Problem, 409: Problem})
async def restore(request: HttpRequest, sandbox: str) -> Any:
    """Bring a deleted workspace back, stopped and with its disk, within a day."""
    row = await _get(request, sandbox, restorable=True)
    row = await in_thread(lifecycle.sandbox_restore, sandbox=row, actor=_actor(request))
    return Status(202, sandbox_payload(row))


@router.get("/{sandbox}/timeline", response={200: list[TimelineOut], 404: Problem})
async def timeline(request: HttpRequest, sandbox: str) -> list[Json]:
    """What happened to it, oldest first."""
    row = await _get(request, sandbox, restorable=True)
    return await in_thread(timeline_list, actor=_actor(request), sandbox=row)


@router.get("/{sandbox}/resources", response={200: Resources, 404: Problem, 409: Problem, 503: Problem})
async def resources(request: HttpRequest, sandbox: str) -> Json:
    """What its machine uses now, as the agent in it says."""
    return await streams.guest_resources(sandbox=await _get(request, sandbox), actor=_actor(request))


@router.post("/{sandbox}/start", response={202: SandboxOut, 404: Problem, 409: Problem, 429: Problem})
async def start(request: HttpRequest, sandbox: str) -> Any:
    """Start a stopped workspace on its own disk."""
    row = await _get(request, sandbox)
    row = await in_thread(lifecycle.sandbox_start, sandbox=row, actor=_actor(request))
    payload = sandbox_payload(row)
    lifecycle.sandbox_boot_beside(sandbox=row)
    return Status(202, payload)


@router.delete("/{sandbox}", response={204: None, 404: Problem, 503: Problem})
async def delete(request: HttpRequest, sandbox: str) -> Any:
    """Stop it if it runs, and remove it; a workspace can be restored for a day."""
    await lifecycle.sandbox_delete(sandbox=await _get(request, sandbox), actor=_actor(request))
    return Status(204, None)


@router.get("/{sandbox}/files/content", response={404: Problem})
async def content(request: HttpRequest, sandbox: str, path: str) -> StreamingHttpResponse:
    """A file as a download."""
    row = await _awake(request, sandbox)
    return await downloads.file_response(sandbox=row, actor=_actor(request), path=path)


@router.get("/{sandbox}/files/archive", response={404: Problem})
async def archive(request: HttpRequest, sandbox: str, path: str) -> StreamingHttpResponse:
    """A directory as a .tar.gz."""
    row = await _awake(request, sandbox)
    return await downloads.archive_response(sandbox=row, actor=_actor(request), path=path)
