"""Use over REST: what was used and what it costs, of one's own organization only."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client

from sandboxes.models import Kind, Organization, Sandbox, SandboxState, UsageHour, User
from sandboxes.services import tokens
from tests import factories
from tests.factories import Team
from tests.ide.pages.test_views import signed_in

GIB = 2**30


def hour(sandbox: Sandbox, day: int, hour: int, *, cpu: float = 0, memory: float = 0, disk: float = 0) -> None:
    UsageHour.objects.create(
        organization_id=sandbox.organization_id,
        sandbox=sandbox,
        hour=datetime(2026, 10, day, hour, tzinfo=UTC),
        cpu_seconds=cpu,
        memory_mib_seconds=memory,
        disk_byte_seconds=disk,
    )


@pytest.fixture
def used(home: Team, other: Team) -> tuple[Sandbox, Sandbox]:
    """Two sandboxes of home in October, and one of another organization."""
    first = factories.row(home, kind=Kind.WORKSPACE, name='=SUM(A1), "tides"', state=SandboxState.STOPPED)
    second = factories.row(home, state=SandboxState.DELETED)
    hour(first, 1, 0, cpu=3600, memory=1280 * 3600, disk=GIB * 3600)
    hour(first, 1, 23, cpu=1800, disk=GIB * 3600)
    hour(first, 2, 0, disk=GIB * 3600)
    hour(second, 1, 5, cpu=360, memory=1280 * 600)
    hour(factories.row(other, name="secret"), 1, 5, cpu=99_999)
    return first, second


def ask(team: Team, path: str, role: str = "viewer") -> Any:
    return signed_in(team, role).get(f"/api/v1/{path}")


def table(team: Team, query: str) -> tuple[Any, list[bytes]]:
    """The answer to a request for the CSV, and its pieces."""

    async def asked() -> tuple[Any, list[bytes]]:
        client = AsyncClient()
        user = await User.objects.aget(email=f"viewer@{team.organization.slug}.example")
        await client.aforce_login(user, backend="django.contrib.auth.backends.ModelBackend")
        answer: Any = await client.get(f"/api/v1/usage.csv?{query}")
        return answer, [piece async for piece in answer.streaming_content] if answer.streaming else [answer.content]

    found: tuple[Any, list[bytes]] = async_to_sync(asked)()
    return found


def lines_of(pieces: list[bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(b"".join(pieces).decode())))


def test_a_range_by_day(home: Team, used: tuple[Sandbox, Sandbox]) -> None:
    answer = ask(home, "usage?from=2026-10-01&to=2026-10-03").json()
    assert (answer["first_day"], answer["last_day"], answer["begins"]) == ("2026-10-01", "2026-10-03", "2026-10-01")
    assert [(p["at"][:10], p["cpu_hours"]) for p in answer["series"]] == [
        ("2026-10-01", 1.6),
        ("2026-10-02", 0),
        ("2026-10-03", 0),
    ]
    assert [p["disk_gib"] for p in answer["series"]] == [round(2 / 24, 6), round(1 / 24, 6), 0]
    totals = answer["totals"]
    assert (totals["cpu_seconds"], totals["cpu_hours"]) == (5760, 1.6)
    assert totals["cost"]["cpu"] == "0.080000"
    assert totals["cost"]["memory"] == "0.025054"
    assert answer["prices"] == {
        "cpu_hour": "0.05",
        "memory_gb_hour": "0.016",
        "volume_gib_month": "0.20",
        "currency": "USD",
    }
    by_id = {row["id"]: row for row in answer["sandboxes"]}
    assert by_id[used[0].public_id]["cpu_hours"] == 1.5
    assert by_id[used[1].public_id]["state"] == "deleted"
    assert "secret" not in str(answer)
    assert (answer["others"]["count"], answer["others"]["cost"]["total"]) == (0, "0.000000")


def test_the_installations_own_prices(home: Team, used: tuple[Sandbox, Sandbox], settings: Any) -> None:
    """Another price table is what costs are reckoned by, and what is told beside them."""
    own = {"price_cpu_hour": Decimal("2"), "price_memory_gb_hour": Decimal("0"), "price_volume_gib_month": Decimal("7")}
    settings.ATOLL = {**settings.ATOLL, **own, "currency": "EUR"}
    answer = ask(home, "usage?from=2026-10-01&to=2026-10-03").json()
    cost = answer["totals"]["cost"]
    assert (cost["cpu"], cost["memory"]) == ("3.200000", "0.000000")
    assert answer["prices"] == {"cpu_hour": "2", "memory_gb_hour": "0", "volume_gib_month": "7", "currency": "EUR"}


def test_by_hour_and_by_sandbox(home: Team, used: tuple[Sandbox, Sandbox]) -> None:
    hours = ask(home, "usage?from=2026-10-01&to=2026-10-02&by=hour").json()["series"]
    assert len(hours) == 48
    assert [(p["at"], p["cpu_hours"]) for p in hours if p["cpu_hours"]] == [
        ("2026-10-01T00:00:00.000Z", 1.0),
        ("2026-10-01T05:00:00.000Z", 0.1),
        ("2026-10-01T23:00:00.000Z", 0.5),
    ]
    assert hours[0]["disk_gib"] == 1
    answer = ask(home, "usage?from=2026-10-01&to=2026-10-02&by=sandbox").json()
    assert (answer["series"], len(answer["sandboxes"])) == ([], 2)


def test_a_report_names_the_dearest_and_sums_up_the_others(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays readable however many sandboxes there were; the CSV has them all."""
    monkeypatch.setattr("sandboxes.selectors.usage.DEAREST", 2)
    rows = [factories.row(home) for _ in range(5)]
    for seconds, row in zip((60, 3600, 120, 7200, 0), rows, strict=True):
        hour(row, 1, 0, cpu=seconds)
    hour(rows[4], 1, 1, memory=10_000_000, disk=GIB)
    answer = ask(home, "usage?from=2026-10-01&to=2026-10-31").json()
    assert [row["id"] for row in answer["sandboxes"]] == [rows[3].public_id, rows[1].public_id]
    assert answer["totals"]["cpu_seconds"] == 10_980
    others = answer["others"]
    assert (others["count"], others["cpu_seconds"], others["memory_mib_seconds"]) == (3, 180, 10_000_000)
    assert others["disk_byte_seconds"] == GIB
    _answer, pieces = table(home, "from=2026-10-01&to=2026-10-31")
    assert len(lines_of(pieces)) == 5


def test_by_default_this_month_so_far(home: Team) -> None:
    """Nothing was used: everything is there, and is nothing."""
    answer = ask(home, "usage").json()
    assert answer["first_day"].endswith("-01")
    assert answer["first_day"] <= answer["last_day"]
    assert (answer["begins"], answer["sandboxes"], answer["totals"]["cost"]["total"]) == (None, [], "0.000000")
    assert answer["spending"]["level"] == "no_cap"


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-10-02&to=2026-10-01",
        "from=2020-01-01&to=2026-10-01",
        "from=2026-10-01&to=2026-11-01&by=hour",
        "from=october",
        "by=week",
        "from=9999-12-31&to=9999-12-31",
        "to=0001-01-01",
    ],
)
def test_ranges_that_cannot_be_meant(home: Team, query: str) -> None:
    answer = ask(home, f"usage?{query}")
    assert answer.status_code == (400 if query != "to=0001-01-01" else 200), answer.content


def test_the_table_has_a_line_for_each_sandbox_and_day(home: Team, used: tuple[Sandbox, Sandbox]) -> None:
    """A name that a spreadsheet would run is text there."""
    answer, pieces = table(home, "from=2026-10-01&to=2026-10-31")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert 'filename="usage-2026-10-01-2026-10-31.csv"' in answer["Content-Disposition"]
    lines = lines_of(pieces)
    assert [(line["day"], line["sandbox"], line["cpu_seconds"]) for line in lines] == [
        ("2026-10-01", used[0].public_id, "5400.0"),
        ("2026-10-01", used[1].public_id, "360.0"),
        ("2026-10-02", used[0].public_id, "0.0"),
    ]
    assert lines[0]["name"] == '\'=SUM(A1), "tides"'
    assert (lines[1]["cost"], lines[1]["currency"]) == ("0.008579", "USD")
    assert ask(home, "usage.csv?from=2026-10-02&to=2026-10-01").status_code == 400


def test_the_table_comes_a_page_at_a_time(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is, no more than a page of it is held; none is left out, and none is there twice."""
    monkeypatch.setattr("sandboxes.selectors.usage.PAGE", 2)
    rows = [factories.row(home) for _ in range(5)]
    for row in rows:
        hour(row, 1, 0, cpu=60)
        hour(row, 1, 1, cpu=60)
        hour(row, 3, 0, cpu=60)
    answer, pieces = table(home, "from=2026-10-01&to=2026-10-31")
    assert answer.streaming
    assert [piece.count(b"\r\n") for piece in pieces] == [1, 2, 2, 1, 2, 2, 1]
    expected = [
        (day, row.public_id, used) for day, used in (("2026-10-01", "120.0"), ("2026-10-03", "60.0")) for row in rows
    ]
    assert [(line["day"], line["sandbox"], line["cpu_seconds"]) for line in lines_of(pieces)] == expected


def test_another_organization_s_use_does_not_exist(home: Team, other: Team, used: tuple[Sandbox, Sandbox]) -> None:
    for path in ("usage", "usage.csv"):
        assert ask(home, f"{path}?organization=other").status_code == 404
        assert Client().get(f"/api/v1/{path}").status_code == 401
    days = "from=2026-10-01&to=2026-10-31"
    for text in (ask(other, f"usage?{days}").content, b"".join(table(other, days)[1])):
        assert b"secret" in text
        assert used[0].public_id.encode() not in text


def test_a_token_that_reads_reads_this_too(home: Team) -> None:
    for scope, cap in (("read", 403), ("sandboxes", 403), ("organization", 200)):
        _token, secret = tokens.token_create(actor=home.owner, name="x", scopes=[scope])
        header = {"Authorization": f"Bearer {secret}"}
        assert Client().get("/api/v1/usage", headers=header).status_code == 200
        put = Client().put("/api/v1/usage/cap", {"cap": "5"}, "application/json", headers=header)
        assert put.status_code == cap


def test_an_owner_sets_the_cap(home: Team) -> None:
    """Everybody sees it with who he is; nobody else sets it."""
    url, kind = "/api/v1/usage/cap", "application/json"
    assert signed_in(home, "admin").put(url, {"cap": "5"}, kind).status_code == 403
    answer = signed_in(home, "owner").put(url, {"cap": "12.5"}, kind)
    assert (answer.status_code, answer.json()["cap"], answer.json()["level"]) == (200, "12.50", "below")
    assert ask(home, "me").json()["spending"]["cap"] == "12.50"
    for wrong in ("-1", "0.001", "many"):
        assert signed_in(home, "owner").put(url, {"cap": wrong}, kind).status_code == 400
    assert signed_in(home, "owner").put(url, {"cap": None}, kind).json()["level"] == "no_cap"


def test_a_refused_create_says_when_to_try_again(home: Team) -> None:
    """429 with the header that programs look at."""
    Organization.objects.filter(pk=home.organization.pk).update(quota_creates_per_minute=1)
    factories.row(home, state=SandboxState.STOPPED)
    answer = signed_in(home).post("/api/v1/sandboxes", {}, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (429, "LIMIT_EXCEEDED")
    assert 55 <= int(answer["Retry-After"]) <= 60
    assert "try again in" in answer.json()["message"]
