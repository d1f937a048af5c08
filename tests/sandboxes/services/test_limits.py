"""Limits of an organization: each is answered before anything is started, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from sandboxes.errors import Invalid, NotFound, QuotaExceeded
from sandboxes.models import AuditEntry, Kind, Organization, Sandbox, SandboxState
from sandboxes.quotas import Amount, Limits
from sandboxes.services import changes, creation, lifecycle, limits
from sandboxes.services.creation import Wanted
from tests import factories
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import in_parallel


def limit(team: Team, **fields: Any) -> None:
    Organization.objects.filter(pk=team.organization.pk).update(**fields)
    team.organization.refresh_from_db()


def refused(team: Team, **wanted: Any) -> QuotaExceeded:
    before = Sandbox.objects.count()
    with pytest.raises(QuotaExceeded) as raised:
        factories.sandbox(team, **wanted)
    assert Sandbox.objects.count() == before
    return raised.value


def test_defaults_and_own_limits(home: Team, settings: Any) -> None:
    """Null is the installation's default, 0 no limit."""
    assert limits.limits_of(home.organization) == Limits(5, None, None, 500, 300, 1800)
    limit(home, quota_concurrent=7, quota_vcpus=9, quota_disk_gib=0, max_lifetime=0)
    settings.ATOLL = {**settings.ATOLL, "quota_memory_mib": 2048}
    assert limits.limits_of(home.organization) == Limits(7, 9, 2048, None, 300, None)
    assert limits.max_lifetime(home.organization) is None


@pytest.mark.parametrize(
    ("field", "value", "wanted", "says"),
    [
        ("quota_concurrent", 1, {}, "1 sandboxes are running and the limit is 1: stop one, or ask"),
        ("quota_vcpus", 3, {}, "takes 2 vCPUs, 2 are in use, and the limit is 3: stop a sandbox, or ask"),
        ("quota_memory_mib", 2559, {}, "takes 1280 MiB of memory, 1280 are in use, and the limit is 2559: stop"),
        ("quota_disk_gib", 19, {}, "takes 10 GiB of disk, 10 are in use, and the limit is 19: delete a workspace"),
        ("quota_creates_per_minute", 1, {}, r"1 sandboxes were created within the last minute .* try again in \d+ s"),
    ],
)
def test_each_limit_says_which_it_is(home: Team, field: str, value: int, wanted: Any, says: str) -> None:
    """The last place may be taken; the next create is refused with the limit, what is used, and what to do."""
    limit(home, **{field: value})
    factories.sandbox(home, **wanted)
    error = refused(home, **wanted)
    assert re.search(says, error.message), error.message
    assert (error.fields["quota"], error.fields["limit"]) == (field.removeprefix("quota_"), value)


def test_the_create_rate_says_when_there_is_room_again(home: Team) -> None:
    """Once the oldest that is in the way is older than a minute; deleted and failed ones count, others' do not."""
    limit(home, quota_creates_per_minute=2)
    now = timezone.now()
    for age, state in ((50, SandboxState.DELETED), (20, SandboxState.STOPPED)):
        made = factories.row(home, state=state)
        Sandbox.objects.filter(pk=made.pk).update(created_at=now - timedelta(seconds=age))
    factories.sandbox(factories.team("elsewhere"))
    error = refused(home)
    assert 8 <= error.fields["retry_after"] <= 10
    Sandbox.objects.filter(organization=home.organization).update(created_at=now - timedelta(seconds=61))
    factories.sandbox(home)


def test_what_counts_towards_which_limit(home: Team) -> None:
    """Disks of workspaces count until they are removed, of stopped sandboxes not; the rest counts while it runs."""
    factories.row(home, state=SandboxState.RUNNING)
    factories.row(home, state=SandboxState.STOPPED)
    factories.row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    factories.row(home, state=SandboxState.STARTING, kind=Kind.WORKSPACE, memory_mb=2048)
    factories.row(home, state=SandboxState.DELETED, kind=Kind.WORKSPACE)
    factories.row(home, state=SandboxState.DELETED, kind=Kind.WORKSPACE, machine_removed=True)
    factories.row(home, state=SandboxState.DELETED)
    elsewhere = factories.team("elsewhere")
    factories.row(elsewhere, state=SandboxState.RUNNING)
    factories.row(elsewhere, state=SandboxState.DELETED, kind=Kind.WORKSPACE)
    assert limits.in_use(home.organization) == Amount(sandboxes=2, vcpus=4, memory_mib=3328, disk_gib=40)


def test_deleting_and_restoring_does_not_go_past_the_disk_s_limit(home: Team) -> None:
    """A deleted disk makes no room for another, so that it can always come back."""
    limit(home, quota_disk_gib=20)
    deleted = factories.row(home, state=SandboxState.DELETED, kind=Kind.WORKSPACE, deleted_at=timezone.now())
    factories.sandbox(home, kind=Kind.WORKSPACE)
    with pytest.raises(QuotaExceeded, match="wait until its disk is removed, a day later"):
        factories.sandbox(home, kind=Kind.WORKSPACE)
    assert lifecycle.sandbox_restore(sandbox=deleted, actor=home.member).state == SandboxState.STOPPED
    assert limits.in_use(home.organization).disk_gib == 20


def test_a_start_asks_for_memory_and_not_for_the_disk_it_has(home: Team) -> None:
    """A limit lowered below what is kept refuses no start of it; the create rate does not either."""
    workspace = factories.row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    limit(home, quota_disk_gib=1, quota_creates_per_minute=1, quota_memory_mib=1279)
    with pytest.raises(QuotaExceeded, match="MiB of memory"):
        lifecycle.sandbox_start(sandbox=workspace, actor=home.member)
    limit(home, quota_memory_mib=1280)
    assert lifecycle.sandbox_start(sandbox=workspace, actor=home.member).state == SandboxState.QUEUED


@pytest.mark.parametrize(
    ("field", "value"),
    [("quota_vcpus", 6), ("quota_memory_mib", 3900), ("quota_disk_gib", 39), ("quota_creates_per_minute", 3)],
)
def test_a_limit_holds_in_a_race(home: Team, field: str, value: int) -> None:
    """Eight creates at once take exactly the three places there are."""
    limit(home, quota_concurrent=100, **{field: value})
    results = in_parallel(lambda: factories.sandbox(home), 8)
    assert sorted(type(result).__name__ for result in results) == ["QuotaExceeded"] * 5 + ["Sandbox"] * 3


def test_two_creates_at_the_limit(home: Team) -> None:
    limit(home, quota_concurrent=1)
    results = in_parallel(lambda: factories.sandbox(home), 2)
    assert sorted(type(result).__name__ for result in results) == ["QuotaExceeded", "Sandbox"]


def test_deadlines_keep_to_the_lifetime(home: Team) -> None:
    """A deadline further away is brought nearer, at the create and at an extension; 0 lets it be as far as wanted."""
    limit(home, max_lifetime=600)
    far = timezone.now() + timedelta(days=90)
    sandbox = factories.sandbox(home, stop_at=far)
    assert sandbox.stop_at is not None
    assert timedelta(seconds=590) < sandbox.stop_at - timezone.now() <= timedelta(seconds=600)
    limit(home, max_lifetime=0)
    assert changes.sandbox_extend(sandbox=sandbox, actor=home.member, stop_at=far) == far
    assert factories.sandbox(home, stop_at=far).stop_at == far


@pytest.fixture
def command() -> Callable[..., str]:
    def run(*arguments: str) -> str:
        out = StringIO()
        call_command("limits", *arguments, stdout=out)
        return out.getvalue()

    return run


def test_the_command_sets_shows_and_takes_back(home: Team, other: Team, command: Any) -> None:
    """The change is audited as the installation's own; others keep their limits."""
    factories.sandbox(home)
    shown = command("home", "--concurrent", "9", "--memory-mib", "0", "--max-lifetime", "60")
    assert "Sandboxes running at a time: 9, 1 in use\n" in shown
    assert "Memory of running sandboxes: no limit, 1280 MiB in use\n" in shown
    assert "Furthest deadline of a sandbox: 60 s\n" in shown
    assert "vCPUs of running sandboxes: no limit, 2 in use  (default)" in shown
    entry = AuditEntry.objects.get(action="organization.limits")
    assert (entry.actor, entry.detail["quota_concurrent"]) == ("atoll", 9)
    assert "at a time: 5, 0 in use  (default)" in command("other")
    assert "at a time: 5, 1 in use  (default)" in command("home", "--default", "concurrent")
    assert command().count("at a time") == 2


def test_the_command_refuses_what_cannot_be_meant(home: Team, command: Any) -> None:
    for arguments, why in (
        (("--concurrent", "9"), "whose limits"),
        (("nobody",), "no organization"),
        (("nobody", "--vcpus", "2"), "no organization"),
        (("home", "--vcpus", "-1"), "from 0 to"),
        (("home", "--vcpus", str(2**31)), "from 0 to"),
    ):
        with pytest.raises(CommandError, match=why):
            command(*arguments)


def test_setting_names_what_is_wrong(home: Team) -> None:
    with pytest.raises(Invalid):
        limits.limits_set(slug="home", changes={"quota_vcpus": -5})
    with pytest.raises(NotFound):
        limits.limits_set(slug="nowhere", changes={"quota_vcpus": 5})


def test_a_refused_create_writes_nothing(home: Team) -> None:
    limit(home, quota_concurrent=0)
    with pytest.raises(QuotaExceeded):
        creation.sandbox_create(wanted=Wanted(), actor=home.member)
    assert not AuditEntry.objects.filter(action="sandbox.create").exists()
