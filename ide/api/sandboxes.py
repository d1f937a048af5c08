"""`/api/v1/sandboxes`: create, list, start, stop, delete, and files as downloads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from ninja import Router, Status

from ide.api import downloads
from ide.api.schemas import Problem, SandboxChange, SandboxIn, SandboxOut
from sandboxes.database import in_thread
from sandboxes.events import sandbox_payload
from sandboxes.models import Kind, Sandbox
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get, sandbox_list
from sandboxes.services import lifecycle
from sandboxes.services.lifecycle import Wanted

router = Router(tags=["sandboxes"])
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _get(request: HttpRequest, sandbox: str, action: str = "sandbox.view") -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action=action)


@router.get("", response={200: list[SandboxOut], 400: Problem})
async def sandboxes(
    request: HttpRequest, state: Literal["all", "active"] = "all", kind: Literal["", "sandbox", "workspace"] = ""
) -> list[Json]:
    """The organization's sandboxes, newest first."""
    rows = await in_thread(sandbox_list, actor=_actor(request), active=state == "active", kind=kind)
    return [sandbox_payload(row) for row in rows]


@router.post("", response={201: SandboxOut, 400: Problem, 429: Problem})
async def create(request: HttpRequest, body: SandboxIn) -> Any:
    """Make one and start it."""
    lifetime = body.lifetime_seconds
    wanted = Wanted(
        kind=Kind(body.kind),
        name=body.name,
        memory_mb=body.memory_mb,
        labels=body.labels,
        env=body.env,
        stop_at=timezone.now() + timedelta(seconds=lifetime) if lifetime else None,
    )
    sandbox = await in_thread(lifecycle.sandbox_create, wanted=wanted, actor=_actor(request))
    payload = sandbox_payload(sandbox)
    lifecycle.sandbox_boot_beside(sandbox=sandbox)
    return Status(201, payload)


@router.get("/{sandbox}", response={200: SandboxOut, 404: Problem})
async def sandbox(request: HttpRequest, sandbox: str) -> Json:
    """One of them."""
    return sandbox_payload(await _get(request, sandbox))


@router.patch("/{sandbox}", response={200: SandboxOut, 404: Problem})
async def change(request: HttpRequest, sandbox: str, body: SandboxChange) -> Json:
    """Another name, other labels."""
    row = await _get(request, sandbox)
    row = await in_thread(
        lifecycle.sandbox_rename, sandbox=row, actor=_actor(request), name=body.name, labels=body.labels
    )
    return sandbox_payload(row)


@router.post("/{sandbox}/stop", response={202: SandboxOut, 404: Problem})
async def stop(request: HttpRequest, sandbox: str) -> Any:
    """End its machine; a workspace keeps its disk."""
    row = await _get(request, sandbox)
    row = await lifecycle.sandbox_stop(sandbox=row, actor=_actor(request))
    return Status(202, sandbox_payload(row))


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
    """Stop it if it runs, and remove it with its disk."""
    await lifecycle.sandbox_delete(sandbox=await _get(request, sandbox), actor=_actor(request))
    return Status(204, None)


@router.get("/{sandbox}/files/content", response={404: Problem})
async def content(request: HttpRequest, sandbox: str, path: str) -> StreamingHttpResponse:
    """A file as a download."""
    row = await _get(request, sandbox, "sandbox.use")
    return await downloads.file_response(sandbox=row, actor=_actor(request), path=path)


@router.get("/{sandbox}/files/archive", response={404: Problem})
async def archive(request: HttpRequest, sandbox: str, path: str) -> StreamingHttpResponse:
    """A directory as a .tar.gz."""
    row = await _get(request, sandbox, "sandbox.use")
    return await downloads.archive_response(sandbox=row, actor=_actor(request), path=path)
