"""Prices are exact: what is published is what is charged, to the last place."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from sandboxes.errors import QuotaExceeded
from sandboxes.prices import Prices, Spending, SpendingLevel, Use, exact, money, month_of

PUBLISHED = Prices(Decimal("0.05"), Decimal("0.016"), Decimal("0.20"), "USD")


def test_one_of_each() -> None:
    """An hour of a CPU, of a GB of 10^9 bytes, and a GiB for 730 hours cost what the table says."""
    cost = PUBLISHED.cost(Use(3600, 0, 2**30 * 3600 * 730))
    assert (cost.cpu, cost.memory, cost.volume, cost.total) == (
        Decimal("0.05"),
        Decimal(0),
        Decimal("0.20"),
        Decimal("0.25"),
    )
    # 1280 MiB for an hour: 1.34217728 GB
    assert PUBLISHED.cost(Use(memory_mib_seconds=1280 * 3600)).total == Decimal("0.02147483648")
    assert Use(memory_mib_seconds=1280 * 3600).memory_gb_hours == Decimal("1.34217728")


def test_binary_fractions_do_not_show() -> None:
    assert PUBLISHED.cost(Use(cpu_seconds=0.1 * 3600)).cpu == Decimal("0.005")
    assert str(exact(Decimal("0.0000005"))) == "0.000000"
    assert str(money(Decimal("2.675"))) == "2.68"


def test_parts_cost_what_the_whole_costs() -> None:
    parts = [Use(0.7, 1.3, 2**31), Use(11.1, 70_000, 5), Use()]
    whole = sum(parts, Use())
    apart = sum((PUBLISHED.cost(part).total for part in parts), Decimal(0))
    assert exact(apart) == exact(PUBLISHED.cost(whole).total)


@pytest.mark.parametrize(
    ("day", "begin", "end"),
    [("2026-11-30", "2026-11-01", "2026-12-01"), ("2026-12-31", "2026-12-01", "2027-01-01")],
)
def test_months(day: str, begin: str, end: str) -> None:
    found = month_of(datetime.fromisoformat(f"{day}T23:59:59+00:00"))
    assert [f"{moment:%Y-%m-%d}" for moment in found] == [begin, end]


def test_a_month_is_one_of_utc() -> None:
    found = month_of(datetime.fromisoformat("2026-11-30T23:30:00-02:00"))
    assert found[0] == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cap", "spent", "level"),
    [
        (None, "1000", SpendingLevel.NO_CAP),
        ("10", "7.999999", SpendingLevel.BELOW),
        ("10", "8", SpendingLevel.NEAR),
        ("10", "9.999999", SpendingLevel.NEAR),
        ("10", "10", SpendingLevel.REACHED),
        ("0", "0", SpendingLevel.REACHED),
    ],
)
def test_levels(cap: str | None, spent: str, level: SpendingLevel) -> None:
    """80 % is near, 100 % is reached, and only then nothing more may be started."""
    ends = datetime(2026, 12, 1, tzinfo=UTC)
    spending = Spending(cap and Decimal(cap), Decimal(spent), "USD", date(2026, 11, 1), ends)  # type: ignore[arg-type]
    assert spending.level is level
    if level is not SpendingLevel.REACHED:
        spending.require_room()
        return
    with pytest.raises(QuotaExceeded, match=r"raise the cap.*begins on 1 December 2026 at 00:00 UTC"):
        spending.require_room()
