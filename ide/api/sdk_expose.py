"""The SDKs' calls that reserve addresses of a sandbox for visitors."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse

from ide.api.sdk import sdk_view
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.models import ExposureKind
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services.exposures import exposure_reserve


async def authority(request: HttpRequest) -> HttpResponse:
    """The installation's certificate authority, for whoever visits exposed ports: nothing about it is secret."""
    try:
        text = await in_thread(config()["authority"].read_text)
    except FileNotFoundError:
        return HttpResponse("there is none\n", status=404, content_type="text/plain")
    return HttpResponse(text, content_type="application/x-pem-file")


@sdk_view("POST")
async def http(request: HttpRequest, actor: Actor, sandbox: str) -> HttpResponse:
    """A new address, which the RPC `exposeHttp` binds to a port or a process; what the body says is not needed."""
    row = await in_thread(sandbox_get, actor=actor, public_id=sandbox, action="exposure.edit")
    exposure = await in_thread(exposure_reserve, sandbox=row, actor=actor)
    return JsonResponse({"domain": exposure.domain})


@sdk_view("POST")
async def ssh(request: HttpRequest, actor: Actor, sandbox: str) -> HttpResponse:
    """A new login, whose user name is all that it needs."""
    row = await in_thread(sandbox_get, actor=actor, public_id=sandbox, action="exposure.edit")
    exposure = await in_thread(exposure_reserve, sandbox=row, actor=actor, kind=ExposureKind.SSH)
    hostname, _, port = exposure.domain.rpartition(":")
    return JsonResponse({"hostname": hostname, "username": exposure.name, "port": int(port)})
