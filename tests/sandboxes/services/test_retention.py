"""What is older than it is kept goes, a few rows at a time; what usage or a person still needs stays."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.test import Client
from django.utils import timezone

from sandboxes import ids, tasks
from sandboxes.models import (
    AuditEntry,
    Kind,
    Sandbox,
    SandboxState,
    TimelineEntry,
    UsageHour,
    UsageMeter,
    Volume,
    VolumeHour,
)
from sandboxes.selectors.usage import usage_report
from sandboxes.services import retention
from sandboxes.services.retention import old_rows_drop
from tests.factories import Team, row


def audited(team: Team, days: float) -> AuditEntry:
    """An audit row that is so old."""
    entry = AuditEntry.objects.create(organization=team.organization, actor="ada", action="sandbox.stop", target="x")
    AuditEntry.objects.filter(pk=entry.pk).update(created_at=timezone.now() - timedelta(days=days))
    return entry


@pytest.mark.parametrize(("days", "kept"), [(30, {1, 29}), (400, {1, 29, 31, 399}), (0, {1, 29, 31, 399, 401})])
def test_audit_rows_are_kept_as_long_as_is_set(
    home: Team, other: Team, settings: Any, days: int, kept: set[int]
) -> None:
    """Of every organization alike; 0 is for ever, 400 days the default."""
    assert settings.ATOLL["audit_days"] == 400
    settings.ATOLL = {**settings.ATOLL, "audit_days": days}
    made = {
        (team.organization.slug, age): audited(team, age) for team in (home, other) for age in (1, 29, 31, 399, 401)
    }
    old_rows_drop()
    there = set(AuditEntry.objects.values_list("pk", flat=True))
    assert {key for key, entry in made.items() if entry.pk in there} == {
        (slug, age) for slug in ("home", "other") for age in kept
    }


def test_one_turn_has_an_end(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, a few in each transaction, and what is left waits for the next turn."""
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST", 4)
    entries = [audited(home, age) for age in (401, 402, 403, 404, 405, 406)]
    old_rows_drop()
    assert [entry.pk for entry in AuditEntry.objects.order_by("pk")] == [entry.pk for entry in entries[:2]]
    old_rows_drop()
    assert not AuditEntry.objects.exists()


def test_sandboxes_go_with_the_last_hour_of_their_use(home: Team) -> None:
    """Their rows are there as long as a usage page may name them, and for as long as they can be used or restored."""
    now = timezone.now()
    old, hour = now - timedelta(days=500), now.replace(minute=0, second=0, microsecond=0)

    def made(created_at: datetime = old, **fields: Any) -> Sandbox:
        sandbox = row(home, **{"state": SandboxState.DELETED, "machine_removed": True, "state_since": old, **fields})
        Sandbox.objects.filter(pk=sandbox.pk).update(created_at=created_at)
        return sandbox

    gone = made()
    UsageMeter.objects.create(sandbox=gone, measured_at=old)
    TimelineEntry.objects.create(sandbox=gone, state=SandboxState.DELETED)
    used = made()
    UsageHour.objects.create(organization=home.organization, sandbox=used, hour=hour, cpu_seconds=3600)
    kept = [
        used,
        made(kind=Kind.WORKSPACE, state=SandboxState.STOPPED, machine_removed=False),
        made(state=SandboxState.RUNNING, machine_removed=False),
        made(kind=Kind.WORKSPACE, machine_removed=False),
        made(state_since=now - timedelta(days=300)),
        made(created_at=now, state_since=now),
    ]
    old_rows_drop()
    assert list(Sandbox.objects.order_by("pk")) == kept
    assert not TimelineEntry.objects.exists()
    report = usage_report(actor=home.owner, first=hour.date(), last=hour.date())
    assert [(sandbox, use.cpu_seconds) for sandbox, use in report.sandboxes] == [(used, 3600)]


def test_hours_are_kept_for_thirteen_months(home: Team, other: Team) -> None:
    """Those of sandboxes and of volumes, of every organization, whatever became of what they tell of."""
    months = [(2025, 9), (2025, 10), (2026, 11)]
    for team in (home, other):
        sandbox = row(team)
        volume = Volume.objects.create(
            organization=team.organization,
            public_id=ids.volume_id("local"),
            slug="kept",
            disk=secrets.token_hex(16),
            capacity=2**30,
        )
        for year, month in months:
            hour = datetime(year, month, 1, tzinfo=UTC)
            UsageHour.objects.create(organization=team.organization, sandbox=sandbox, hour=hour)
            VolumeHour.objects.create(organization=team.organization, volume=volume, hour=hour)
    old_rows_drop(now=datetime(2026, 11, 25, tzinfo=UTC))
    for team in (home, other):
        for hours in (UsageHour, VolumeHour):
            kept = hours.objects.filter(organization=team.organization).order_by("hour")
            assert [(one.hour.year, one.hour.month) for one in kept] == months[1:]


def test_sign_ins_are_kept_as_audit_rows_are_and_failed_ones_for_a_day(
    home: Team, client: Client, settings: Any
) -> None:
    """Those that fail count towards locking somebody out for a quarter of an hour."""
    assert not client.login(request=HttpRequest(), username="ada", password="guessed")
    made = AccessAttempt.objects.get()
    signed_in = AccessLog.objects.create(username="ada")
    old_rows_drop()
    assert AccessAttempt.objects.get() == made
    old_rows_drop(now=timezone.now() + timedelta(days=1, seconds=1))
    assert not AccessAttempt.objects.exists()
    assert AccessLog.objects.get() == signed_in
    settings.ATOLL = {**settings.ATOLL, "audit_days": 30}
    old_rows_drop(now=timezone.now() + timedelta(days=29))
    assert AccessLog.objects.exists()
    old_rows_drop(now=timezone.now() + timedelta(days=31))
    assert not AccessLog.objects.exists()


def test_expired_sessions_go(home: Team) -> None:
    """By the timetable's turn."""
    expired, live = SessionStore(), SessionStore()
    expired.set_expiry(-1)
    for session in (expired, live):
        session["of"] = "ada"
        session.save()
    tasks.prune()
    assert [session.session_key for session in Session.objects.all()] == [live.session_key]
