"""What use costs, in exact decimal arithmetic, and how it compares with a spending cap; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum

from sandboxes.errors import QuotaExceeded

HOUR = Decimal(3600)
MONTH_HOURS = Decimal(730)
"""Hours of the month by which volumes are priced: a 365-day year's twelfth, whatever the calendar says."""
GB = Decimal(10**9)
MIB = Decimal(2**20)
GIB = Decimal(2**30)
NEAR = Decimal("0.8")
SMALLEST = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Use:
    """What was used: seconds of one CPU, MiB of configured memory times seconds, bytes of disk times seconds."""

    cpu_seconds: float = 0.0
    memory_mib_seconds: float = 0.0
    disk_byte_seconds: float = 0.0

    def __add__(self, other: Use) -> Use:
        return Use(
            self.cpu_seconds + other.cpu_seconds,
            self.memory_mib_seconds + other.memory_mib_seconds,
            self.disk_byte_seconds + other.disk_byte_seconds,
        )

    def without(self, other: Use) -> Use:
        """The rest; never less than nothing, which sums of floats may come to."""
        return Use(
            max(0.0, self.cpu_seconds - other.cpu_seconds),
            max(0.0, self.memory_mib_seconds - other.memory_mib_seconds),
            max(0.0, self.disk_byte_seconds - other.disk_byte_seconds),
        )

    @property
    def cpu_hours(self) -> Decimal:
        """Hours of one CPU."""
        return _decimal(self.cpu_seconds) / HOUR

    @property
    def memory_gb_hours(self) -> Decimal:
        """Gigabytes of 10^9 bytes, times hours."""
        return _decimal(self.memory_mib_seconds) * MIB / GB / HOUR

    @property
    def volume_gib_months(self) -> Decimal:
        """Gibibytes of 2^30 bytes, times months of 730 hours."""
        return _decimal(self.disk_byte_seconds) / GIB / HOUR / MONTH_HOURS


@dataclass(frozen=True, slots=True)
class Cost:
    """What use costs, not rounded."""

    cpu: Decimal
    memory: Decimal
    volume: Decimal

    @property
    def total(self) -> Decimal:
        """All of it."""
        return self.cpu + self.memory + self.volume


@dataclass(frozen=True, slots=True)
class Prices:
    """The price table of an installation."""

    cpu_hour: Decimal
    memory_gb_hour: Decimal
    volume_gib_month: Decimal
    currency: str

    def cost(self, use: Use) -> Cost:
        """What that use costs."""
        return Cost(
            cpu=use.cpu_hours * self.cpu_hour,
            memory=use.memory_gb_hours * self.memory_gb_hour,
            volume=use.volume_gib_months * self.volume_gib_month,
        )


class SpendingLevel(StrEnum):
    """How spending stands to its cap."""

    NO_CAP = "no_cap"
    BELOW = "below"
    NEAR = "near"  # 80 % or more
    REACHED = "reached"


@dataclass(frozen=True, slots=True)
class Spending:
    """What an organization has spent since its month began, and may spend until it ends (both UTC)."""

    cap: Decimal | None
    spent: Decimal
    currency: str
    month: date
    month_ends: datetime

    @property
    def level(self) -> SpendingLevel:
        """How far it has come."""
        if self.cap is None:
            return SpendingLevel.NO_CAP
        if self.spent >= self.cap:
            return SpendingLevel.REACHED
        return SpendingLevel.NEAR if self.spent >= NEAR * self.cap else SpendingLevel.BELOW

    def require_room(self) -> None:
        """Return while something may be started. QuotaExceeded once the cap is reached."""
        if self.level is SpendingLevel.REACHED and self.cap is not None:
            raise QuotaExceeded(
                f"this month's use costs {money(self.spent)} {self.currency} and the organization's spending cap is "
                f"{money(self.cap)} {self.currency}: an owner can raise the cap in the organization's settings; "
                f"the next month begins on {self.month_ends:%-d %B %Y} at 00:00 UTC",
                quota="spending_cap",
                used=str(money(self.spent)),
                limit=str(money(self.cap)),
            )


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """When the calendar month (UTC) of that moment begins, and when the next one does."""
    begin = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    year, month = (begin.year + 1, 1) if begin.month == 12 else (begin.year, begin.month + 1)
    return begin, begin.replace(year=year, month=month)


def month_begins_before(moment: datetime, months: int) -> datetime:
    """When the calendar month (UTC) began that is so many before that of the moment."""
    begin, _end = month_of(moment)
    count = begin.year * 12 + begin.month - 1 - months
    return begin.replace(year=count // 12, month=count % 12 + 1)


def money(amount: Decimal) -> Decimal:
    """As people pay it: two places."""
    return amount.quantize(Decimal("0.01"), ROUND_HALF_EVEN)


def exact(amount: Decimal) -> Decimal:
    """As programs get it: six places."""
    return amount.quantize(SMALLEST, ROUND_HALF_EVEN)


def _decimal(value: float) -> Decimal:
    # By its shortest text: what was counted as 0.1 is priced as 0.1 and not as its binary neighbour.
    return Decimal(repr(float(value)))
