"""`/api/v1/usage`: what the organization used, what it costs, and its spending cap."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Iterable
from datetime import date, timedelta
from io import StringIO
from typing import Any, Literal

from django.http import HttpRequest, StreamingHttpResponse
from ninja import Query, Router

from ide.api.schemas import Problem, SpendingCap, SpendingOut, UsageDays, UsageOut
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Sandbox, Volume
from sandboxes.permissions import Actor
from sandboxes.prices import GIB, Prices, Use, exact
from sandboxes.selectors.spending import prices
from sandboxes.selectors.usage import (
    By,
    Period,
    usage_begins,
    usage_days,
    usage_of_day,
    usage_of_volumes,
    usage_report,
)
from sandboxes.services.spending import spending_cap_set, spending_payload

router = Router(tags=["usage"])
type Json = dict[str, Any]

COLUMNS = (
    "day",
    "sandbox",
    "name",
    "kind",
    "cpu_seconds",
    "memory_mib_seconds",
    "disk_byte_seconds",
    "cpu_hours",
    "memory_gb_hours",
    "volume_gib_months",
    "cost",
    "currency",
)


def _use(use: Use, table: Prices) -> Json:
    cost = table.cost(use)
    return {
        "cpu_seconds": round(use.cpu_seconds, 3),
        "memory_mib_seconds": round(use.memory_mib_seconds, 3),
        "disk_byte_seconds": round(use.disk_byte_seconds),
        "cpu_hours": float(exact(use.cpu_hours)),
        "memory_gb_hours": float(exact(use.memory_gb_hours)),
        "volume_gib_months": float(exact(use.volume_gib_months)),
        "cost": {
            "cpu": str(exact(cost.cpu)),
            "memory": str(exact(cost.memory)),
            "volume": str(exact(cost.volume)),
            "total": str(exact(cost.total)),
        },
    }


def _period(period: Period, table: Prices) -> Json:
    average = period.use.disk_byte_seconds / period.seconds if period.seconds else 0.0
    return {
        **_use(period.use, table),
        "at": timestamp(period.begin),
        "disk_gib": round(average / float(GIB), 6),
    }


def _report(actor: Actor, first: date | None, last: date | None, by: By) -> Json:
    report = usage_report(actor=actor, first=first, last=last, by=by)
    begins = usage_begins(actor=actor)
    table = report.prices
    return {
        "first_day": report.first.isoformat(),
        "last_day": report.last.isoformat(),
        "by": str(report.by),
        "begins": begins and begins.isoformat(),
        "totals": _use(report.total, table),
        "series": [_period(period, table) for period in report.series],
        "sandboxes": [
            {
                "id": sandbox.public_id,
                "name": sandbox.name,
                "kind": sandbox.kind,
                "state": sandbox.state,
                **_use(use, table),
            }
            for sandbox, use in report.sandboxes
        ],
        "others": {"count": report.others, **_use(report.others_use, table)},
        "volumes": _use(report.volumes_use, table),
        "prices": {
            "cpu_hour": str(table.cpu_hour),
            "memory_gb_hour": str(table.memory_gb_hour),
            "volume_gib_month": str(table.volume_gib_month),
            "currency": table.currency,
        },
        "spending": spending_payload(report.spending),
    }


@router.get("/usage", response={200: UsageOut, 400: Problem, 403: Problem})
async def usage(request: HttpRequest, days: Query[UsageDays], by: Literal["day", "hour", "sandbox"] = "day") -> Json:
    """What was used from one day to another, both included (UTC); by default this month so far."""
    return await in_thread(_report, request.auth, days.first, days.last, By(by))  # type: ignore[attr-defined]


@router.get("/usage.csv", response={400: Problem, 403: Problem})
async def usage_csv(request: HttpRequest, days: Query[UsageDays]) -> StreamingHttpResponse:
    """The same as CSV: one line for each day and each sandbox or volume that used anything on it."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    first, last = await in_thread(usage_days, actor=actor, first=days.first, last=days.last)
    response = StreamingHttpResponse(_table(actor, first, last), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="usage-{first}-{last}.csv"'
    response["Cache-Control"] = "no-store"
    return response


async def _table(actor: Actor, first: date, last: date) -> AsyncIterator[bytes]:
    """The table a page at a time: an organization may have used any number of sandboxes."""
    yield _csv([COLUMNS])
    day = first
    while day <= last:
        after = 0
        while page := await in_thread(usage_of_day, actor=actor, day=day, after=after):
            yield _csv(_line(day, sandbox, use) for sandbox, use in page)
            after = page[-1][0].pk
        after = 0
        while taken := await in_thread(usage_of_volumes, actor=actor, day=day, after=after):
            yield _csv(_line(day, volume, use) for volume, use in taken)
            after = taken[-1][0].pk
        day += timedelta(days=1)


def _csv(lines: Iterable[Iterable[Any]]) -> bytes:
    text = StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _line(day: date, what: Sandbox | Volume, use: Use) -> list[Any]:
    table = prices()
    shown = _use(use, table)
    cost = shown.pop("cost")["total"]
    name = what.slug if isinstance(what, Volume) else _cell(what.name)
    return [day, what.public_id, name, what.kind, *shown.values(), cost, table.currency]


def _cell(text: str) -> str:
    # A spreadsheet would take the name for a formula and run it.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@router.put("/usage/cap", response={200: SpendingOut, 400: Problem, 403: Problem})
async def cap(request: HttpRequest, body: SpendingCap) -> Json:
    """Set what may be spent in a calendar month; for owners."""
    spending = await in_thread(spending_cap_set, actor=request.auth, cap=body.cap)  # type: ignore[attr-defined]
    return spending_payload(spending)
