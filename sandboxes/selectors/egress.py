"""Reads of what a sandbox may reach and what it connected to, within the actor's organization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.utils import timezone

from sandboxes import permissions
from sandboxes.egress import Reached, proposal
from sandboxes.errors import Invalid
from sandboxes.events import denial_payload, timestamp
from sandboxes.models import EgressDenial, EgressRecord, Sandbox
from sandboxes.permissions import Actor
from sandboxes.services.egress_journal import QUIET
from vm.egress.journal import Kind, Verdict

PAGE = 500
"""Connections that may be asked for at a time."""
TOP = 12
PIECE = 1000
"""Connections of an export that are in memory at a time."""
REACHED = 500
"""Hosts that a list is proposed for: somebody is to read it."""
VERDICTS = tuple(verdict.value for verdict in Verdict if verdict is not Verdict.ASKED)


class Window(StrEnum):
    """How far back one looks."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"


_STEPS = {Window.HOUR: (1, 60), Window.DAY: (30, 48), Window.WEEK: (120, 84)}
"""Minutes of one period, and how many there are."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """Connections, how many of them were denied or cut, and bytes."""

    connections: int = 0
    denied: int = 0
    sent: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """What one host and port had of it; `last` is when the last connection began."""

    host: str
    port: int
    amounts: Amounts
    last: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """A window in periods of `minutes`, oldest first, with the hosts that had most bytes or denials."""

    minutes: int
    total: Amounts
    series: list[tuple[datetime, Amounts]]
    hosts: list[Host]


def record_payload(row: EgressRecord) -> dict[str, Any]:
    """A connection as REST and exports show it."""
    return {
        "number": row.number,
        "at": timestamp(row.at),
        "kind": row.kind,
        "host": row.host,
        "port": row.port,
        "verdict": row.verdict,
        "rule": row.rule,
        "detail": row.detail,
        "sent": row.sent,
        "received": row.received,
        "seconds": row.seconds,
        "method": row.method,
        "path": row.path,
        "status": row.status,
    }


def denials_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The denials that people were told of lately, and what waits for them now, newest first.

    `sandbox` with its organization.
    """
    now = timezone.now()
    told = EgressDenial.objects.filter(sandbox=sandbox, at__gt=now - QUIET)
    rows = told.filter(Q(waits_until=None) | Q(waits_until__gt=now)).order_by("-at")
    payloads = [denial_payload(sandbox, row) for row in rows[:50]]
    return [one for one in payloads if one["waits_until"] is None or one["remedy"] == "allow"]


def connections(
    *,
    actor: Actor,
    sandbox: Sandbox,
    after: int = 0,
    before: int | None = None,
    host: str = "",
    verdict: str = "",
    limit: int = 100,
) -> list[EgressRecord]:
    """Connections with a number between these, newest first; `host`: a part of its name. Invalid."""
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    if not 1 <= limit <= PAGE:
        raise Invalid(f"between 1 and {PAGE} connections may be asked for at a time", field="limit")
    return list(_rows(sandbox, after=after, before=before, host=host, verdict=verdict).order_by("-number")[:limit])


def _rows(
    sandbox: Sandbox,
    *,
    after: int = 0,
    before: int | None = None,
    host: str = "",
    verdict: str = "",
    kind: str = "",
) -> QuerySet[EgressRecord]:
    if verdict and verdict not in VERDICTS:
        raise Invalid(f"a verdict is one of {', '.join(VERDICTS)}", field="verdict")
    rows = EgressRecord.objects.filter(sandbox=sandbox, number__gt=after)
    if before is not None:
        rows = rows.filter(number__lt=before)
    if verdict:
        rows = rows.filter(verdict=verdict)
    if kind:
        rows = rows.filter(kind=kind)
    return rows.filter(host__icontains=host) if host else rows


def export(
    *, actor: Actor, sandbox: Sandbox, host: str = "", verdict: str = "", kind: str = ""
) -> Iterator[list[EgressRecord]]:
    """All that is kept (of that kind), oldest first, in pieces; a piece is read when it is asked for. Invalid."""
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    after = 0
    while piece := list(_rows(sandbox, after=after, host=host, verdict=verdict, kind=kind).order_by("number")[:PIECE]):
        yield piece
        after = piece[-1].number


def summary(*, actor: Actor, sandbox: Sandbox, window: Window, now: datetime | None = None) -> Summary:
    """What a sandbox connected to lately."""
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    minutes, count = _STEPS[window]
    last = int((now or timezone.now()).timestamp()) // 60 // minutes
    rows = _window(sandbox, (last - count + 1) * minutes)
    periods = rows.annotate(period=_divided(minutes)).values("period").annotate(**_SUMS)
    found = {row["period"]: _amounts(row) for row in periods}
    series = [
        (datetime.fromtimestamp(period * minutes * 60, UTC), found.get(period, Amounts()))
        for period in range(last - count + 1, last + 1)
    ]
    hosts = rows.values("host", "port").annotate(**_SUMS, last=Max("at"), bytes=F("sent_sum") + F("received_sum"))
    return Summary(
        minutes=minutes,
        total=_amounts(rows.aggregate(**_SUMS)),
        series=series,
        hosts=[Host(row["host"], row["port"], _amounts(row), row["last"]) for row in hosts.order_by(*_BUSIEST)[:TOP]],
    )


_BUSIEST = ("-bytes", "-connections", "host", "port")
_SUMS: dict[str, Any] = {
    "connections": Count("pk"),
    "denied": Count("pk", filter=Q(verdict__in=(Verdict.DENIED, Verdict.CUT))),
    "sent_sum": Sum("sent", default=0),
    "received_sum": Sum("received", default=0),
}


def _divided(minutes: int) -> Any:
    # Whole numbers on both sides: both databases leave the rest out
    return F("minute") / minutes if minutes > 1 else F("minute")


def _window(sandbox: Sandbox, since: int) -> QuerySet[EgressRecord]:
    # Requests and alerts are told of connections that are counted themselves
    return EgressRecord.objects.filter(sandbox=sandbox, minute__gte=since, kind=Kind.CONNECTION).order_by()


def _amounts(row: Mapping[str, Any]) -> Amounts:
    return Amounts(row["connections"], row["denied"], row["sent_sum"], row["received_sum"])


def allow_list_proposed(*, actor: Actor, sandbox: Sandbox, days: int, fold: bool) -> tuple[list[str], int]:
    """Patterns that allow what was reached within so many days, and how many hosts were left out as too many.

    What was denied or could not be found is not among them.
    """
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    since = int((timezone.now() - timedelta(days=days)).timestamp()) // 60
    allowed = _window(sandbox, since).filter(verdict__in=(Verdict.ALLOWED, Verdict.CUT))
    found = allowed.values("host", "port").annotate(connections=Count("pk"), bytes=Sum(F("sent") + F("received")))
    rows = list(found.order_by("-connections", "host", "port"))
    reached = [Reached(**row) for row in rows[:REACHED]]
    return proposal(reached, fold=fold), max(0, len(rows) - REACHED)
