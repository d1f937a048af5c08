"""Spending caps: told of before they are reached, held when they are, and no workspace loses its disk."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from sandboxes.database import in_thread
from sandboxes.errors import Forbidden, Invalid, QuotaExceeded
from sandboxes.models import AuditEntry, Event, Kind, Organization, Sandbox, SandboxState, StopCause, UsageHour
from sandboxes.prices import SpendingLevel, month_of
from sandboxes.selectors.spending import spending_of
from sandboxes.services import lifecycle, suspension
from sandboxes.services.spending import spending_cap_set, spending_enforce
from tests import factories
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted
from vm.errors import HostFull
from vm.fake import FakeNode


def spend(team: Team, dollars: str, *, months_ago: int = 0) -> None:
    """CPU hours at 0.05 each, in this month or an earlier one."""
    begin = month_of(timezone.now())[0]
    for _ in range(months_ago):
        begin = month_of(begin - timedelta(days=1))[0]
    UsageHour.objects.create(
        organization=team.organization,
        sandbox=factories.row(team, state=SandboxState.STOPPED, machine_removed=True),
        hour=begin,
        cpu_seconds=float(Decimal(dollars) / Decimal("0.05") * 3600),
    )


def cap(team: Team, amount: str | None) -> None:
    spending_cap_set(actor=team.owner, cap=None if amount is None else Decimal(amount))


def notices(team: Team) -> list[str]:
    return [
        event.payload["level"]
        for event in Event.objects.filter(organization=team.organization, kind="spending").order_by("id")
    ]


@pytest.mark.parametrize("role", ["admin", "member", "viewer"])
def test_owners_set_the_cap_and_nobody_else(home: Team, role: str) -> None:
    with pytest.raises(Forbidden):
        spending_cap_set(actor=getattr(home, role), cap=Decimal(10))
    cap(home, "10")
    cap(home, None)
    details = [entry.detail for entry in AuditEntry.objects.filter(action="organization.spending_cap").order_by("id")]
    assert details == [{"cap": "10", "before": None}, {"cap": None, "before": "10.00"}]


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "Infinity", "1.001", "10000000000"])
def test_what_is_no_amount_is_no_cap(home: Team, amount: str) -> None:
    with pytest.raises(Invalid):
        cap(home, amount)


async def test_people_are_told_once_of_each_level(home: Team) -> None:
    """At 80 % and at the cap, however many turns see it; a raised cap tells again when it is near."""
    await in_thread(cap, home, "10")
    for dollars in ("7.99", "0.01", "2"):
        await in_thread(spend, home, dollars)
        await spending_enforce()
        await spending_enforce()
    assert await in_thread(notices, home) == ["below", "near", "reached"]
    actions = await in_thread(
        lambda: [e.action for e in AuditEntry.objects.filter(action__startswith="spending.").order_by("id")]
    )
    assert actions == ["spending.near", "spending.reached"]


def test_nothing_is_created_or_started_at_the_cap(home: Team, other: Team) -> None:
    """The message says why, what to do, and when the month ends; others are not concerned."""
    workspace = factories.row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    spend(home, "5")
    cap(home, "5")
    with pytest.raises(QuotaExceeded, match=r"costs 5\.00 USD .* cap is 5\.00 USD: an owner can raise .* 00:00 UTC"):
        factories.sandbox(home)
    with pytest.raises(QuotaExceeded, match="spending cap"):
        lifecycle.sandbox_start(sandbox=workspace, actor=home.member)
    factories.sandbox(other)
    cap(home, "5.01")
    factories.sandbox(home)
    lifecycle.sandbox_start(sandbox=workspace, actor=home.member)


def test_a_new_month_begins_at_nothing(home: Team) -> None:
    spend(home, "100", months_ago=1)
    cap(home, "5")
    factories.sandbox(home)
    home.organization.refresh_from_db()
    ends = spending_of(organization=home.organization).month_ends
    spend(home, "5")
    assert spending_of(organization=home.organization).level is SpendingLevel.REACHED
    assert spending_of(organization=home.organization, now=ends).level is SpendingLevel.BELOW


async def test_what_runs_is_halted_and_a_workspace_comes_back_with_its_disk(
    home: Team, other: Team, node: FakeNode
) -> None:
    """Every end says why; another organization's machines go on."""
    workspace = await booted(home, kind=Kind.WORKSPACE)
    timed = await booted(home, stop_at=timezone.now() + timedelta(minutes=5))
    theirs = await booted(other, kind=Kind.WORKSPACE)
    node.disk(workspace.machine).mkdir(exist_ok=True)
    (node.disk(workspace.machine) / "kept").touch()
    await in_thread(cap, home, "1")
    await spending_enforce()
    assert await states(workspace, timed, theirs) == ["running"] * 3

    await in_thread(spend, home, "1")
    await spending_enforce()
    await spending_enforce()
    assert await states(workspace, timed, theirs) == ["suspended", "suspended", "running"]
    assert {workspace.stop_cause, timed.stop_cause} == {StopCause.SPENDING_CAP}
    assert "raise it" in workspace.stop_detail

    await in_thread(cap, home, "2")
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert workspace.state == SandboxState.RUNNING
    assert (node.disk(workspace.machine) / "kept").exists()


async def test_the_cap_holds_where_nothing_can_be_suspended(home: Team, node: FakeNode) -> None:
    """One attempt to save its memory, then it is stopped: it is not tried, and charged, for ever."""
    workspace = await booted(home, kind=Kind.WORKSPACE)
    node.disk(workspace.machine).mkdir(exist_ok=True)
    (node.disk(workspace.machine) / "kept").touch()
    await in_thread(spend, home, "1")
    await in_thread(cap, home, "1")
    node.fail_next("machine_suspend", HostFull("no room for its memory"))
    await spending_enforce()
    assert await states(workspace) == ["running"]
    await spending_enforce()
    assert await states(workspace) == ["stopped"]
    assert (workspace.stop_cause, workspace.machine_removed) == (StopCause.SPENDING_CAP, False)
    assert (node.disk(workspace.machine) / "kept").exists()
    told = await in_thread(lambda: list(workspace.timeline.order_by("id").values_list("text", flat=True)))
    assert sum("no room for its memory" in text for text in told) == 1


async def states(*sandboxes: Sandbox) -> list[Any]:
    for sandbox in sandboxes:
        await in_thread(sandbox.refresh_from_db)
    return [sandbox.state for sandbox in sandboxes]


def test_without_a_cap_nothing_is_held(home: Team) -> None:
    spend(home, "1000000")
    assert Organization.objects.get(pk=home.organization.pk).spending_cap is None
    factories.sandbox(home)
