"""`/api/v1/sandboxes/{id}/network` and `/api/v1/network`: what sandboxes may reach, and what they reached."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from django.http import HttpRequest, StreamingHttpResponse
from ninja import Field, Query, Router

from ide.api import downloads, har
from ide.api.network_schemas import (
    ConnectionFilter,
    ConnectionOut,
    HostListOut,
    NetworkChanged,
    NetworkDefaults,
    NetworkIn,
    NetworkOut,
    NetworkSummary,
    PatternProblem,
    PatternsIn,
    ProposalOut,
    VerdictName,
    WindowName,
)
from ide.api.schemas import Problem
from sandboxes import permissions
from sandboxes.database import in_thread
from sandboxes.egress import wrong_patterns
from sandboxes.events import timestamp
from sandboxes.host_lists import host_lists
from sandboxes.models import EgressRecord, Organization, Sandbox
from sandboxes.permissions import Actor
from sandboxes.selectors import egress as selectors
from sandboxes.selectors.egress import Amounts, Window
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import egress

router = Router(tags=["network"])
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _get(request: HttpRequest, sandbox: str) -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action="sandbox.view")


def _network(actor: Actor, public_id: str) -> Json:
    sandbox = sandbox_get(actor=actor, public_id=public_id, action="sandbox.view")
    return {
        "allow_net": sandbox.allow_net,
        "deny_net": sandbox.deny_net,
        "ask_net": sandbox.ask_net,
        "organization_deny": sandbox.organization.deny_net,
        "version": sandbox.network_version,
        "denials": selectors.denials_of(sandbox),
    }


@router.get("/sandboxes/{sandbox}/network", response={200: NetworkOut, 404: Problem})
async def network(request: HttpRequest, sandbox: str) -> Json:
    """What it may reach, and what it was denied within the last minutes."""
    return await in_thread(_network, _actor(request), sandbox)


@router.put("/sandboxes/{sandbox}/network", response={200: NetworkChanged, 400: Problem, 404: Problem, 409: Problem})
async def network_set(request: HttpRequest, sandbox: str, body: NetworkIn) -> Json:
    """Let it reach something else from now on; open connections that this forbids are closed."""
    row = await _get(request, sandbox)
    applied = await egress.network_set(
        sandbox=row,
        actor=_actor(request),
        allow_net=body.allow_net,
        deny_net=body.deny_net,
        ask_net=body.ask_net,
        version=body.version,
    )
    return {**await in_thread(_network, _actor(request), sandbox), "applied": applied}


@router.post(
    "/sandboxes/{sandbox}/network/allow", response={200: NetworkChanged, 400: Problem, 404: Problem, 409: Problem}
)
async def allow(request: HttpRequest, sandbox: str, body: PatternsIn) -> Json:
    """Add to the list of what it may reach; 409 where it may reach everything."""
    row = await _get(request, sandbox)
    applied = await egress.network_allow(sandbox=row, actor=_actor(request), patterns=body.patterns)
    return {**await in_thread(_network, _actor(request), sandbox), "applied": applied}


@router.post("/sandboxes/{sandbox}/network/deny", response={200: NetworkChanged, 400: Problem, 404: Problem})
async def deny(request: HttpRequest, sandbox: str, body: PatternsIn) -> Json:
    """Add to the list of what it may not reach."""
    row = await _get(request, sandbox)
    applied = await egress.network_deny(sandbox=row, actor=_actor(request), patterns=body.patterns)
    return {**await in_thread(_network, _actor(request), sandbox), "applied": applied}


@router.get("/sandboxes/{sandbox}/network/connections", response={200: list[ConnectionOut], 400: Problem, 404: Problem})
async def connections(request: HttpRequest, sandbox: str, wanted: Query[ConnectionFilter]) -> list[Json]:
    """What it connected to, newest first."""
    row = await _get(request, sandbox)
    found = await in_thread(selectors.connections, actor=_actor(request), sandbox=row, **wanted.dict())
    return [selectors.record_payload(one) for one in found]


@router.get("/sandboxes/{sandbox}/network/connections.jsonl", response={400: Problem, 404: Problem})
async def connections_jsonl(
    request: HttpRequest, sandbox: str, host: str = "", verdict: VerdictName | None = None
) -> StreamingHttpResponse:
    """All that is kept of it as JSON lines, oldest first."""
    row = await _get(request, sandbox)
    pieces = selectors.export(actor=_actor(request), sandbox=row, host=host, verdict=verdict or "")
    return downloads.download(_lines(pieces), f"{row.public_id}-connections.jsonl", "application/x-ndjson")


@router.get("/sandboxes/{sandbox}/network/requests.har", response={400: Problem, 404: Problem})
async def requests_har(
    request: HttpRequest, sandbox: str, host: str = "", verdict: VerdictName | None = None
) -> StreamingHttpResponse:
    """The requests that were intercepted as an HTTP Archive, oldest first; neither headers nor bodies are kept."""
    row = await _get(request, sandbox)
    pieces = selectors.export(actor=_actor(request), sandbox=row, host=host, verdict=verdict or "", kind="request")
    return downloads.download(har.archive(_read(pieces)), f"{row.public_id}-requests.har", "application/json")


async def _lines(pieces: Iterator[list[EgressRecord]]) -> AsyncIterator[bytes]:
    async for piece in _read(pieces):
        yield "".join(f"{json.dumps(selectors.record_payload(row))}\n" for row in piece).encode()


async def _read(pieces: Iterator[list[EgressRecord]]) -> AsyncIterator[list[EgressRecord]]:
    while piece := await in_thread(next, pieces, None):
        yield piece


@router.get("/sandboxes/{sandbox}/network/summary", response={200: NetworkSummary, 404: Problem})
async def summary(request: HttpRequest, sandbox: str, window: WindowName = "hour") -> Json:
    """Connections and bytes over the last hour, day or week, and the hosts that had most of them."""
    row = await _get(request, sandbox)
    found = await in_thread(selectors.summary, actor=_actor(request), sandbox=row, window=Window(window))
    return {
        "minutes": found.minutes,
        "total": _amounts(found.total),
        "series": [{"at": timestamp(at), **_amounts(amounts)} for at, amounts in found.series],
        "hosts": [
            {"host": one.host, "port": one.port, "last": timestamp(one.last), **_amounts(one.amounts)}
            for one in found.hosts
        ],
    }


def _amounts(amounts: Amounts) -> Json:
    return {
        "connections": amounts.connections,
        "denied": amounts.denied,
        "sent": amounts.sent,
        "received": amounts.received,
    }


@router.get("/sandboxes/{sandbox}/network/proposal", response={200: ProposalOut, 404: Problem})
async def proposal(
    request: HttpRequest, sandbox: str, days: Annotated[int, Field(ge=1, le=3650)] = 1, fold: bool = False
) -> Json:
    """A list that allows what it reached within so many days; `fold` writes hosts of one domain as `*.domain`."""
    row = await _get(request, sandbox)
    patterns, left_out = await in_thread(
        selectors.allow_list_proposed, actor=_actor(request), sandbox=row, days=days, fold=fold
    )
    return {"patterns": patterns, "hosts_left_out": left_out}


@router.get("/network/defaults", response={200: NetworkDefaults, 403: Problem})
async def defaults(request: HttpRequest) -> Json:
    """What the organization's new sandboxes may reach, and what none of them ever may."""
    return await in_thread(_defaults, _actor(request))


def _defaults(actor: Actor) -> Json:
    permissions.require(actor, "organization.view", actor.organization_id)
    return _of_organization(Organization.objects.get(pk=actor.organization_id))


def _of_organization(organization: Organization) -> Json:
    return {"allow_net": organization.allow_net, "deny_net": organization.deny_net}


@router.put("/network/defaults", response={200: NetworkDefaults, 400: Problem, 403: Problem})
async def defaults_set(request: HttpRequest, body: NetworkDefaults) -> Json:
    """Set them; deny rules hold at once for sandboxes that run."""
    organization = await egress.organization_network_set(
        actor=_actor(request), allow_net=body.allow_net, deny_net=body.deny_net
    )
    return _of_organization(organization)


@router.get("/network/templates", response=list[HostListOut])
async def templates(request: HttpRequest) -> list[Json]:
    """Named lists of hosts to add from."""
    return [
        {"id": one.id, "name": one.name, "note": one.note, "patterns": list(one.patterns)} for one in await host_lists()
    ]


@router.post("/network/check", response=list[PatternProblem])
async def check(request: HttpRequest, body: PatternsIn) -> list[Json]:
    """What is wrong with each pattern that is none."""
    return [{"place": place, "message": message} for place, message in wrong_patterns(body.patterns)]
