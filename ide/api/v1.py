"""`/api/v1/`: the router of all nouns, its errors, and the check of who is asking."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError

from ide.api import (
    apps,
    checkpoints,
    device,
    exposures,
    members,
    network,
    organization,
    sandboxes,
    secrets,
    ssh,
    tokens,
    usage,
    volumes,
)
from ide.api.access import actor_of_request
from ide.errors import body_of, headers_of, status_of
from sandboxes.database import in_thread
from sandboxes.errors import DomainError, Invalid


async def _access(request: HttpRequest) -> Any:
    return await in_thread(actor_of_request, request)


api = NinjaAPI(
    title="Atoll",
    version="1",
    description="Sandboxes, their network, secrets, volumes, people, tokens and use. docs/api.md explains it.",
    auth=_access,
    docs_url=None,
    urls_namespace="api-v1",
)
api.add_router("/sandboxes", sandboxes.router)
api.add_router("/sandboxes", exposures.router)
api.add_router("/sandboxes", checkpoints.router)
api.add_router("", secrets.router)
api.add_router("/members", members.router)
api.add_router("/tokens", tokens.router)
api.add_router("/device", device.router)
api.add_router("/ssh", ssh.router)
api.add_router("", organization.router)
api.add_router("", usage.router)
api.add_router("", network.router)
api.add_router("", volumes.router)
api.add_router("", apps.router)


@api.exception_handler(DomainError)
def _domain(request: HttpRequest, error: DomainError) -> HttpResponse:
    response = api.create_response(request, body_of(error), status=status_of(error))
    for name, value in headers_of(error).items():
        response[name] = value
    return response


@api.exception_handler(ValidationError)
def _validation(request: HttpRequest, error: ValidationError) -> HttpResponse:
    first = error.errors[0] if error.errors else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:])
    return _domain(request, Invalid(f"{where}: {first.get('msg', 'not acceptable')}"))


@api.exception_handler(HttpError)
def _http(request: HttpRequest, error: HttpError) -> HttpResponse:
    code = {400: "BAD_REQUEST", 404: "NOT_FOUND"}.get(error.status_code, "ERROR")
    return api.create_response(request, {"code": code, "message": str(error)}, status=error.status_code)
