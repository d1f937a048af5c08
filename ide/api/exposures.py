"""`/api/v1/sandboxes/{id}/exposures`: what of a sandbox is visited from outside, and by whom; and its ports."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.access_schemas import ExposureIn, ExposureMade, ExposureOut, PortOut, SshAddress
from ide.api.schemas import Problem
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Access, Exposure, ExposureKind, Sandbox
from sandboxes.permissions import Actor
from sandboxes.selectors.exposures import exposure_get, exposure_list
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import exposures, streams
from sandboxes.services.exposures import exposure_link

router = Router(tags=["exposures"])
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _sandbox(request: HttpRequest, sandbox: str, action: str) -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action=action)


def _shown(row: Exposure) -> Json:
    return {
        "id": row.public_id,
        "kind": row.kind,
        # The name of a login is all that it needs: whoever made it has it
        "url": f"https://{row.domain}" if row.kind == ExposureKind.HTTP else None,
        "port": row.port,
        "pid": row.pid,
        "access": row.access,
        "sdk": row.sdk,
        "expires_at": timestamp(row.expires_at),
        "created_by": row.creator_name,
        "created_at": timestamp(row.created_at),
    }


@router.get("/{sandbox}/exposures", response={200: list[ExposureOut], 403: Problem, 404: Problem})
async def everything(request: HttpRequest, sandbox: str) -> list[Json]:
    """What is exposed now, newest first, the SDKs' exposures among them."""
    row = await _sandbox(request, sandbox, "exposure.view")
    return [_shown(one) for one in await in_thread(exposure_list, actor=_actor(request), sandbox=row)]


@router.post(
    "/{sandbox}/exposures",
    response={201: ExposureMade, 400: Problem, 403: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def create(request: HttpRequest, sandbox: str, body: ExposureIn) -> Any:
    """Expose a port; with a link its address is in this answer and nowhere else."""
    row = await _sandbox(request, sandbox, "exposure.edit")
    made, token = await in_thread(
        exposures.exposure_create,
        sandbox=row,
        actor=_actor(request),
        port=body.port,
        access=Access(body.access),
        password=body.password,
        hours=body.hours,
    )
    return Status(201, {"exposure": _shown(made), "link": exposure_link(exposure=made, token=token) or None})


@router.delete("/{sandbox}/exposures/{exposure}", response={204: None, 403: Problem, 404: Problem})
async def close(request: HttpRequest, sandbox: str, exposure: str) -> Any:
    """Nobody comes in any more, and who is inside is sent away within seconds."""
    row = await _sandbox(request, sandbox, "exposure.edit")
    found = await in_thread(exposure_get, actor=_actor(request), sandbox=row, public_id=exposure)
    await in_thread(exposures.exposure_close, exposure=found, actor=_actor(request))
    return Status(204, None)


@router.get("/{sandbox}/ports", response={200: list[PortOut], 403: Problem, 404: Problem, 409: Problem, 503: Problem})
async def ports(request: HttpRequest, sandbox: str) -> list[Json]:
    """The TCP ports that programs in it listen on, as the agent in it says. It resumes nothing."""
    row = await _sandbox(request, sandbox, "sandbox.use")
    return await streams.guest_ports(sandbox=row, actor=_actor(request))


@router.get("/{sandbox}/ssh", response={200: SshAddress, 403: Problem, 404: Problem, 503: Problem})
async def ssh(request: HttpRequest, sandbox: str) -> Json:
    """Where one's own keys log in to it."""
    row = await _sandbox(request, sandbox, "sandbox.use")
    host, port = await in_thread(exposures.ssh_address_required)
    return {"host": host, "port": port, "user": row.public_id}
