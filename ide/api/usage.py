"""`/api/v1/usage`: what the organization used, what it costs, and its spending cap."""

from __future__ import annotations

import csv
from datetime import date
from io import StringIO
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router

from ide.api.schemas import Problem, SpendingCap, SpendingOut, UsageDays, UsageOut
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.permissions import Actor
from sandboxes.prices import GIB, Prices, Use, exact
from sandboxes.selectors.spending import prices
from sandboxes.selectors.usage import By, Period, usage_begins, usage_by_day, usage_report
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
async def usage_csv(request: HttpRequest, days: Query[UsageDays]) -> HttpResponse:
    """The same as CSV: one line for each day and each sandbox that used anything on it."""
    name, text = await in_thread(_table, request.auth, days.first, days.last)  # type: ignore[attr-defined]
    response = HttpResponse(text, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["Cache-Control"] = "no-store"
    return response


def _table(actor: Actor, first: date | None, last: date | None) -> tuple[str, str]:
    first, last, lines = usage_by_day(actor=actor, first=first, last=last)
    table = prices()
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for day, sandbox, use in lines:
        shown = _use(use, table)
        cost = shown.pop("cost")["total"]
        writer.writerow(
            [day, sandbox.public_id, _cell(sandbox.name), sandbox.kind, *shown.values(), cost, table.currency]
        )
    return f"usage-{first}-{last}.csv", text.getvalue()


def _cell(text: str) -> str:
    # A spreadsheet would take the name for a formula and run it.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@router.put("/usage/cap", response={200: SpendingOut, 400: Problem, 403: Problem})
async def cap(request: HttpRequest, body: SpendingCap) -> Json:
    """Set what may be spent in a calendar month; for owners."""
    spending = await in_thread(spending_cap_set, actor=request.auth, cap=body.cap)  # type: ignore[attr-defined]
    return spending_payload(spending)
