"""The SDKs' plain HTTP calls: kill, extend, list."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from ide.api.access import actor_of_request
from ide.errors import body_of, headers_of, status_of
from ide.rpc.handshake import moment
from sandboxes.database import in_thread
from sandboxes.errors import DomainError, Invalid
from sandboxes.events import timestamp
from sandboxes.models import Sandbox, SandboxState
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get, sandbox_list
from sandboxes.services import changes, lifecycle
from sandboxes.services.host_data import TROUBLE, host_data_trouble

type View = Callable[..., Coroutine[Any, Any, HttpResponse]]


def sdk_view(*allowed: str) -> Callable[[Callable[..., Awaitable[HttpResponse]]], View]:
    """A view of these methods, with its actor as second argument and domain errors as JSON."""

    def made(work: Callable[..., Awaitable[HttpResponse]]) -> View:
        @csrf_exempt  # session requests are checked in actor_of_request
        @wraps(work)
        async def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
            if request.method not in allowed:
                return JsonResponse({"code": "METHOD_NOT_ALLOWED", "message": "not with this method"}, status=405)
            try:
                actor = await in_thread(actor_of_request, request)
                return await work(request, actor, **kwargs)
            except DomainError as error:
                return JsonResponse(body_of(error), status=status_of(error), headers=headers_of(error))

        return view  # type: ignore[no-any-return, unused-ignore]

    return made


@sdk_view("PATCH", "DELETE")
async def sandbox(request: HttpRequest, actor: Actor, sandbox: str) -> HttpResponse:
    """DELETE kills, PATCH extends."""
    row = await in_thread(sandbox_get, actor=actor, public_id=sandbox)
    if request.method == "DELETE":
        await lifecycle.sandbox_stop(sandbox=row, actor=actor)
        return HttpResponse(status=204)
    try:
        body = json.loads(request.body)
        wanted = moment(body["stop_at_ms"])
    except (ValueError, TypeError, KeyError):
        raise Invalid('the body is not {"stop_at_ms": number}', field="stop_at_ms") from None
    stop_at = await in_thread(changes.sandbox_extend, sandbox=row, actor=actor, stop_at=wanted)
    return JsonResponse({"stop_at_ms": int(stop_at.timestamp() * 1000)})


@sdk_view("GET")
async def sandboxes(request: HttpRequest, actor: Actor) -> HttpResponse:
    """The organization's sandboxes, with a filter by labels in any of its three encodings."""
    rows = await in_thread(sandbox_list, actor=actor, labels=labels_of(request))
    return JsonResponse([_item(row) for row in rows], safe=False)


def labels_of(request: HttpRequest) -> dict[str, str]:
    """The filter by labels, in any of the three ways in which clients write it. Invalid."""
    wanted = {
        found[1]: value
        for key in request.GET
        if (found := re.fullmatch(r"labels\[(.+)\]", key)) and isinstance(value := request.GET[key], str)
    }
    if text := request.GET.get("labels"):
        try:
            # Python sends the text of a dict; only literals are read, of a bounded length.
            given = json.loads(text) if text[:1] == "{" and '"' in text[:3] else ast.literal_eval(text[:4096])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise Invalid("the filter by labels is not an object", field="labels") from None
        if not isinstance(given, dict):
            raise Invalid("the filter by labels is not an object", field="labels")
        wanted |= {str(key): str(value) for key, value in given.items()}
    return wanted


def _item(row: Sandbox) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "createdAt": timestamp(row.created_at),
        "stoppedAt": timestamp(row.stopped_at or row.state_since) if _over(row) else None,
        "region": row.region,
        "status": "stopped" if _over(row) else "running",
        "labels": row.labels,
    }


def _over(row: Sandbox) -> bool:
    return row.state in (SandboxState.STOPPING, SandboxState.STOPPED)


async def health(request: HttpRequest) -> HttpResponse:
    """200 while this process serves and its database answers; a second line where the host is in trouble."""
    trouble = await in_thread(host_data_trouble)
    return HttpResponse(f"ok\n{trouble and f'{TROUBLE}{trouble}\n'}", content_type="text/plain")
