"""What an organization's sandboxes used, by hour, day or sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import F, Min, QuerySet, Sum
from django.utils import timezone

from sandboxes import permissions
from sandboxes.errors import Invalid
from sandboxes.models import Organization, Sandbox, UsageHour, Volume, VolumeHour
from sandboxes.permissions import Actor
from sandboxes.prices import Prices, Spending, Use, month_of
from sandboxes.selectors.spending import prices, spending_of

LONGEST = 400
"""Days one may ask for at a time."""
LONGEST_BY_HOUR = 31
PAGE = 500
"""Lines of a table that are read at a time."""
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
    """Use from the first day to the last, both included; of the dearest sandboxes each, of `others` together.

    `volumes_use` is that of volumes and snapshots, which belong to no sandbox; `total` and `series` have it in.
    """

    first: date
    last: date
    by: By
    total: Use
    series: list[Period]
    sandboxes: list[tuple[Sandbox, Use]]
    others: int
    others_use: Use
    volumes_use: Use
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
    volumes = _volume_rows(actor, first, last)
    volumes_use = Use(disk_byte_seconds=volumes.aggregate(sum=Sum("byte_seconds", default=0.0))["sum"])
    sandboxes = _dearest(rows, table)
    others = rows.values("sandbox_id").distinct().count() - len(sandboxes) if len(sandboxes) == DEAREST else 0
    return Report(
        first=first,
        last=last,
        by=by,
        total=total + volumes_use,
        series=[] if by is By.SANDBOX else list(_series(rows, volumes, first, last, by, now)),
        sandboxes=sandboxes,
        others=others,
        others_use=total.without(sum((use for _sandbox, use in sandboxes), Use())) if others else Use(),
        volumes_use=volumes_use,
        prices=table,
        spending=spending_of(organization=Organization.objects.get(pk=actor.organization_id), now=now),
    )


def usage_days(*, actor: Actor, first: date | None = None, last: date | None = None) -> tuple[date, date]:
    """The first and the last day of a table, by default from the month's first to today. Invalid."""
    permissions.require(actor, "usage.view", actor.organization_id)
    return _days(first, last, By.DAY, timezone.now())


def usage_of_day(*, actor: Actor, day: date, after: int = 0) -> list[tuple[Sandbox, Use]]:
    """What each sandbox used on that day of UTC, by their keys: the first PAGE of those whose key is above `after`."""
    permissions.require(actor, "usage.view", actor.organization_id)
    rows = _rows(actor, day, day).filter(sandbox_id__gt=after)
    found = list(rows.values("sandbox_id").annotate(**_SUMS).order_by("sandbox_id")[:PAGE])
    sandboxes = Sandbox.objects.in_bulk([row["sandbox_id"] for row in found])
    return [(sandboxes[row["sandbox_id"]], _use(row)) for row in found]


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


def usage_of_volumes(*, actor: Actor, day: date, after: int = 0) -> list[tuple[Volume, Use]]:
    """What each volume and snapshot used on that day, as `usage_of_day`."""
    permissions.require(actor, "usage.view", actor.organization_id)
    rows = _volume_rows(actor, day, day).filter(volume_id__gt=after)
    found = list(rows.values("volume_id").annotate(sum=Sum("byte_seconds")).order_by("volume_id")[:PAGE])
    volumes = Volume.objects.in_bulk([row["volume_id"] for row in found])
    return [(volumes[row["volume_id"]], Use(disk_byte_seconds=row["sum"])) for row in found]


def _volume_rows(actor: Actor, first: date, last: date) -> QuerySet[VolumeHour]:
    begin, end = _span(first, last)
    return VolumeHour.objects.filter(organization_id=actor.organization_id, hour__gte=begin, hour__lt=end).order_by()


def _span(first: date, last: date) -> tuple[datetime, datetime]:
    return datetime.combine(first, time(), UTC), datetime.combine(last + timedelta(days=1), time(), UTC)


def _rows(actor: Actor, first: date, last: date) -> QuerySet[UsageHour]:
    begin, end = _span(first, last)
    return UsageHour.objects.filter(organization_id=actor.organization_id, hour__gte=begin, hour__lt=end).order_by()


def _dearest(rows: QuerySet[UsageHour], table: Prices) -> list[tuple[Sandbox, Use]]:
    cpu, memory, disk = (float(table.cost(use).total) for use in (Use(1), Use(0, 1), Use(0, 0, 1)))
    # Before the sums, which have the names of the columns
    cost = Sum(F("cpu_seconds") * cpu + F("memory_mib_seconds") * memory + F("disk_byte_seconds") * disk)
    found = list(rows.values("sandbox_id").annotate(cost=cost, **_SUMS).order_by("-cost", "-sandbox_id")[:DEAREST])
    sandboxes = Sandbox.objects.in_bulk([row["sandbox_id"] for row in found])
    return [(sandboxes[row["sandbox_id"]], _use(row)) for row in found]


def _series(
    rows: QuerySet[UsageHour], volumes: QuerySet[VolumeHour], first: date, last: date, by: By, now: datetime
) -> Iterable[Period]:
    step = timedelta(hours=1) if by is By.HOUR else timedelta(days=1)
    found: dict[datetime, Use] = {}
    hours = [(row["hour"], _use(row)) for row in rows.values("hour").annotate(**_SUMS)]
    for row in volumes.values("hour").annotate(sum=Sum("byte_seconds")):
        hours.append((row["hour"], Use(disk_byte_seconds=row["sum"])))
    for hour, use in hours:
        begin = hour if by is By.HOUR else hour.replace(hour=0)
        found[begin] = found.get(begin, Use()) + use
    begin, end = _span(first, last)
    while begin < end:
        over = min(step, max(timedelta(0), now - begin)).total_seconds()
        yield Period(begin, over, found.get(begin, Use()))
        begin += step


def _use(row: Mapping[str, Any]) -> Use:
    return Use(row["cpu_seconds"], row["memory_mib_seconds"], row["disk_byte_seconds"])


def usage_begins(*, actor: Actor) -> date | None:
    """The first day of the earliest month something is known of; None if nothing is."""
    permissions.require(actor, "usage.view", actor.organization_id)
    firsts = [
        kind.objects.filter(organization_id=actor.organization_id).aggregate(hour=Min("hour"))["hour"]
        for kind in (UsageHour, VolumeHour)
    ]
    known = [hour for hour in firsts if hour is not None]
    return month_of(min(known))[0].date() if known else None
