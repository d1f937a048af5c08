"""What an organization's sandboxes used, by hour, day or sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import F, QuerySet, Sum
from django.db.models.functions import TruncDay
from django.utils import timezone

from sandboxes import permissions
from sandboxes.errors import Invalid
from sandboxes.models import Organization, Sandbox, UsageHour
from sandboxes.permissions import Actor
from sandboxes.prices import Prices, Spending, Use, month_of
from sandboxes.selectors.spending import prices, spending_of

LONGEST = 400
"""Days one may ask for at a time."""
LONGEST_BY_HOUR = 31
DEAREST = 100
"""Sandboxes that a report names; an organization may have made any number."""
_SUMS = {name: Sum(name) for name in ("cpu_seconds", "memory_mib_seconds", "disk_byte_seconds")}


class By(StrEnum):
    """What a series is made of."""

    DAY = "day"
    HOUR = "hour"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True)
class Period:
    """One hour or day of a series. `seconds` of it are over: what a disk's average refers to."""

    begin: datetime
    seconds: float
    use: Use


@dataclass(frozen=True, slots=True)
class Report:
    """Use from the first day to the last, both included; of the dearest sandboxes each, of `others` together."""

    first: date
    last: date
    by: By
    total: Use
    series: list[Period]
    sandboxes: list[tuple[Sandbox, Use]]
    others: int
    others_use: Use
    prices: Prices
    spending: Spending


def usage_report(
    *, actor: Actor, first: date | None = None, last: date | None = None, by: By = By.DAY, now: datetime | None = None
) -> Report:
    """The organization's use in days of UTC; by default from the month's first to today. Invalid."""
    permissions.require(actor, "usage.view", actor.organization_id)
    now = now or timezone.now()
    first, last = _days(first, last, by, now)
    rows = _rows(actor, first, last)
    table = prices()
    total = _use({name: value or 0.0 for name, value in rows.aggregate(**_SUMS).items()})
    sandboxes = _dearest(rows, table)
    others = rows.values("sandbox_id").distinct().count() - len(sandboxes) if len(sandboxes) == DEAREST else 0
    return Report(
        first=first,
        last=last,
        by=by,
        total=total,
        series=[] if by is By.SANDBOX else list(_series(rows, first, last, by, now)),
        sandboxes=sandboxes,
        others=others,
        others_use=total.without(sum((use for _sandbox, use in sandboxes), Use())) if others else Use(),
        prices=table,
        spending=spending_of(organization=Organization.objects.get(pk=actor.organization_id), now=now),
    )


def usage_by_day(
    *, actor: Actor, first: date | None = None, last: date | None = None
) -> tuple[date, date, list[tuple[date, Sandbox, Use]]]:
    """First day, last day, and what each sandbox used on each of them, for a table. Invalid."""
    permissions.require(actor, "usage.view", actor.organization_id)
    first, last = _days(first, last, By.DAY, timezone.now())
    days = TruncDay("hour", tzinfo=UTC)
    found = list(_rows(actor, first, last).annotate(day=days).values("day", "sandbox_id").annotate(**_SUMS))
    sandboxes = Sandbox.objects.in_bulk({row["sandbox_id"] for row in found})
    lines = [(row["day"].date(), sandboxes[row["sandbox_id"]], _use(row)) for row in found]
    return first, last, sorted(lines, key=lambda line: (line[0], line[1].pk))


def _days(first: date | None, last: date | None, by: By, now: datetime) -> tuple[date, date]:
    today = now.astimezone(UTC).date()
    last = last or (today if first is None or first <= today else first)
    first = first or last.replace(day=1)
    if first > last:
        raise Invalid(f"the range begins on {first}, after its end on {last}", field="from")
    longest = LONGEST_BY_HOUR if by is By.HOUR else LONGEST
    if (last - first).days >= longest or last.year > 9000:
        raise Invalid(f"the range may have at most {longest} days", field="to")
    return first, last


def _rows(actor: Actor, first: date, last: date) -> QuerySet[UsageHour]:
    begin = datetime.combine(first, time(), UTC)
    end = datetime.combine(last + timedelta(days=1), time(), UTC)
    return UsageHour.objects.filter(organization_id=actor.organization_id, hour__gte=begin, hour__lt=end).order_by()


def _dearest(rows: QuerySet[UsageHour], table: Prices) -> list[tuple[Sandbox, Use]]:
    cpu, memory, disk = (float(table.cost(use).total) for use in (Use(1), Use(0, 1), Use(0, 0, 1)))
    # Before the sums, which have the names of the columns
    cost = Sum(F("cpu_seconds") * cpu + F("memory_mib_seconds") * memory + F("disk_byte_seconds") * disk)
    found = list(rows.values("sandbox_id").annotate(cost=cost, **_SUMS).order_by("-cost", "-sandbox_id")[:DEAREST])
    sandboxes = Sandbox.objects.in_bulk([row["sandbox_id"] for row in found])
    return [(sandboxes[row["sandbox_id"]], _use(row)) for row in found]


def _series(rows: QuerySet[UsageHour], first: date, last: date, by: By, now: datetime) -> Iterable[Period]:
    step = timedelta(hours=1) if by is By.HOUR else timedelta(days=1)
    found: dict[datetime, Use] = {}
    for row in rows.values("hour").annotate(**_SUMS):
        begin = row["hour"] if by is By.HOUR else row["hour"].replace(hour=0)
        found[begin] = found.get(begin, Use()) + _use(row)
    begin = datetime.combine(first, time(), UTC)
    end = datetime.combine(last + timedelta(days=1), time(), UTC)
    while begin < end:
        over = min(step, max(timedelta(0), now - begin)).total_seconds()
        yield Period(begin, over, found.get(begin, Use()))
        begin += step


def _use(row: Mapping[str, Any]) -> Use:
    return Use(row["cpu_seconds"], row["memory_mib_seconds"], row["disk_byte_seconds"])


def usage_begins(*, actor: Actor) -> date | None:
    """The first day of the earliest month something is known of; None if nothing is."""
    permissions.require(actor, "usage.view", actor.organization_id)
    rows = UsageHour.objects.filter(organization_id=actor.organization_id).order_by("hour")
    hour = rows.values_list("hour", flat=True).first()
    return month_of(hour)[0].date() if hour else None
