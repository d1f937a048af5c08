"""Metering on a real database: no second is counted twice, and the last ones are counted too."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import reconcile
from sandboxes.database import in_thread
from sandboxes.models import Kind, Sandbox, SandboxState, UsageHour, UsageMeter
from sandboxes.prices import Use
from sandboxes.services import lifecycle, usage
from tests import factories
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted, in_parallel
from vm.api import MachineInfo, MachineState
from vm.errors import NodeUnreachable
from vm.fake import FakeNode

S = MachineState
TEN = datetime(2026, 11, 25, 10, tzinfo=UTC)


def at(seconds: float) -> float:
    return TEN.timestamp() + seconds


def row(team: Team, **fields: Any) -> Sandbox:
    """One that was made and came up at ten."""
    made = factories.row(team, **{"state": SandboxState.RUNNING, "started_at": TEN, **fields})
    Sandbox.objects.filter(pk=made.pk).update(created_at=TEN)
    made.refresh_from_db()
    return made


def info(sandbox: Sandbox, state: MachineState, *, since: float = 0, cpu: float = 0, disk: int = 0) -> MachineInfo:
    return MachineInfo(
        machine=sandbox.machine,
        state=state,
        memory_mib=sandbox.memory_mb,
        vcpus=sandbox.vcpus,
        since=at(since),
        cpu_seconds=cpu,
        disk_bytes=disk,
    )


def used(sandbox: Sandbox) -> dict[int, Use]:
    """By the hour of the day."""
    return {
        hour.hour.hour: Use(hour.cpu_seconds, hour.memory_mib_seconds, hour.disk_byte_seconds)
        for hour in UsageHour.objects.filter(sandbox=sandbox)
    }


def measure(sandbox: Sandbox, said: MachineInfo, seconds: float) -> None:
    usage.usage_measure(sandbox=sandbox, info=said, at=at(seconds))


def test_readings_add_up(home: Team) -> None:
    """Over an hour's border, with the organization on each row."""
    workspace = row(home, kind=Kind.WORKSPACE)
    measure(workspace, info(workspace, S.READY, cpu=10, disk=100), 3000)
    measure(workspace, info(workspace, S.READY, cpu=22, disk=100), 4200)
    assert used(workspace) == {10: Use(16, 3600 * 1280, 600 * 100), 11: Use(6, 600 * 1280, 600 * 100)}
    assert set(UsageHour.objects.values_list("organization", flat=True)) == {home.organization.pk}


def test_workers_at_once_count_once(home: Team) -> None:
    """The same answer of the node in eight hands, and again in each of them."""
    sandbox = row(home)
    said = info(sandbox, S.READY, cpu=10)

    def work() -> None:
        for _ in range(3):
            measure(Sandbox.objects.get(pk=sandbox.pk), said, 100)

    assert in_parallel(work, 8) == [None] * 8
    assert used(sandbox) == {10: Use(10, 100 * 1280)}


def test_workers_with_different_answers_count_once(home: Team) -> None:
    """Each asked at another time: what is counted is what the last of them knew."""
    sandbox = row(home)
    answers = [(seconds, info(sandbox, S.READY, cpu=seconds / 2)) for seconds in range(10, 90, 10)]

    def work() -> None:
        seconds, said = answers.pop()
        measure(Sandbox.objects.get(pk=sandbox.pk), said, seconds)

    assert in_parallel(work, 8) == [None] * 8
    measure(sandbox, info(sandbox, S.READY, cpu=50), 100)
    assert used(sandbox) == {10: Use(50, 100 * 1280)}


def test_who_dies_while_counting_has_counted_nothing(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter and the hours move together or not at all."""
    sandbox = row(home)
    with monkeypatch.context() as broken:
        broken.setattr(usage, "_add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(sandbox, info(sandbox, S.READY, cpu=10), 50)
    measure(sandbox, info(sandbox, S.READY, cpu=10), 100)
    assert used(sandbox) == {10: Use(10, 100 * 1280)}


def test_a_worker_that_was_down_finds_the_hours_again(home: Team) -> None:
    """It stopped at half past eleven, and it is past one now."""
    sandbox = row(home)
    measure(sandbox, info(sandbox, S.READY, cpu=0), 600)
    measure(sandbox, info(sandbox, S.STOPPED, since=5400, cpu=80), 11_000)
    found = used(sandbox)
    assert {hour: use.memory_mib_seconds for hour, use in found.items()} == {10: 3600 * 1280, 11: 1800 * 1280}
    assert sum(use.cpu_seconds for use in found.values()) == pytest.approx(80)


def test_suspended_uses_no_memory_and_keeps_its_disk(home: Team) -> None:
    workspace = row(home, kind=Kind.WORKSPACE)
    measure(workspace, info(workspace, S.READY, cpu=1, disk=10), 100)
    measure(workspace, info(workspace, S.SUSPENDING, since=100, cpu=1, disk=10), 110)
    measure(workspace, info(workspace, S.SUSPENDED, since=110, cpu=2, disk=50), 200)
    Sandbox.objects.filter(pk=workspace.pk).update(state=SandboxState.STARTING)
    workspace.refresh_from_db()
    measure(workspace, info(workspace, S.STARTING, since=1000, cpu=2, disk=50), 1001)
    measure(workspace, info(workspace, S.READY, since=1001, cpu=3, disk=50), 1010)
    disk = 10 * 100 + 50 * (1010 - 200)
    assert used(workspace) == {10: Use(3, (110 + 10) * 1280, disk)}


def test_only_workspaces_disks_are_metered(home: Team) -> None:
    sandbox = row(home)
    measure(sandbox, info(sandbox, S.READY, disk=10**9), 100)
    measure(sandbox, info(sandbox, S.READY, disk=10**9), 200)
    assert used(sandbox)[10].disk_byte_seconds == 0


def test_a_disk_at_rest_is_counted_in_few_rows_and_completely(home: Team) -> None:
    """Also of a deleted workspace, as long as the node keeps it."""
    workspace = row(home, kind=Kind.WORKSPACE, state=SandboxState.DELETED)
    measure(workspace, info(workspace, S.STOPPED, since=-100, disk=7), 0.5)
    for seconds in range(10, 4000, 10):
        measure(workspace, info(workspace, S.STOPPED, since=-100, disk=7), seconds)
    assert UsageMeter.objects.get(sandbox=workspace).turn < 20
    measure(workspace, info(workspace, S.STOPPED, since=-100, disk=7), 4000)
    assert sum(use.disk_byte_seconds for use in used(workspace).values()) == pytest.approx(7 * 3999.5, rel=0.1)


def test_a_counter_that_went_back_is_no_new_use(home: Team) -> None:
    sandbox = row(home)
    measure(sandbox, info(sandbox, S.READY, cpu=500), 100)
    measure(sandbox, info(sandbox, S.STOPPED, since=100, cpu=500), 200)
    measure(sandbox, info(sandbox, S.READY, since=290, cpu=3), 300)
    measure(sandbox, info(sandbox, S.READY, since=290, cpu=4), 310)
    assert used(sandbox)[10].cpu_seconds == 501


def used_of(node: FakeNode, sandbox: Sandbox, **changes: Any) -> None:
    """Let the machine have used something."""
    machine = node._machines[sandbox.machine]
    machine.info = replace(machine.info, **changes)


def totals(sandbox: Sandbox) -> Use:
    return sum(used(sandbox).values(), Use())


async def test_the_last_seconds_of_a_stop_are_counted(home: Team, node: FakeNode) -> None:
    """No worker has looked: the stop itself counts, and a sandbox's machine is gone after it."""
    began = time.time()
    sandbox = await booted(home)
    used_of(node, sandbox, cpu_seconds=7.5)
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    found = await in_thread(totals, sandbox)
    assert found.cpu_seconds == 7.5
    assert 0 < found.memory_mib_seconds <= (time.time() - began) * 1280
    await lifecycle.sandbox_stop_finish(sandbox=sandbox)
    await usage.usage_collect()
    assert await in_thread(totals, sandbox) == found


async def test_the_last_seconds_of_a_crash_are_counted(home: Team, node: FakeNode) -> None:
    """Until it crashed, not until that was noticed."""
    sandbox = await booted(home)
    node.crash(sandbox.machine)
    before = await in_thread(UsageMeter.objects.get, sandbox=sandbox)
    since = before.measured_at.timestamp() + 0.5
    used_of(node, sandbox, cpu_seconds=2.0, since=since)
    await in_thread(
        UsageMeter.objects.filter(pk=sandbox.pk).update, measured_at=before.measured_at - timedelta(seconds=60)
    )
    await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, started_at=before.measured_at - timedelta(seconds=99))
    while time.time() < since + 0.1:
        time.sleep(0.05)
    counted = await in_thread(totals, sandbox)
    await reconcile.reconcile()
    found = await in_thread(totals, sandbox)
    assert found.cpu_seconds == 2
    assert found.memory_mib_seconds - counted.memory_mib_seconds == pytest.approx(60.5 * 1280, rel=1e-3)


async def test_a_turn_of_the_worker_counts_every_machine(home: Team, other: Team, node: FakeNode) -> None:
    """And goes by while the node does not answer."""
    mine, theirs = await booted(home, kind=Kind.WORKSPACE), await booted(other)
    used_of(node, mine, cpu_seconds=1.0, disk_bytes=5)
    used_of(node, theirs, cpu_seconds=2.0)
    await in_thread(UsageMeter.objects.update, measured_at=timezone.now() - timedelta(seconds=9))
    await usage.usage_collect()
    node.go_down(NodeUnreachable("down"))
    await usage.usage_collect()
    assert [(await in_thread(totals, sandbox)).cpu_seconds for sandbox in (mine, theirs)] == [1, 2]
    assert (await in_thread(UsageMeter.objects.get, sandbox=mine)).disk_bytes == 5


def test_many_machines_cost_no_more_queries_than_one(
    home: Team, django_assert_max_num_queries: Callable[..., AbstractContextManager[object]]
) -> None:
    """First readings, later ones, those over an hour's border, and those that say nothing new."""
    sandboxes = [row(home, kind=Kind.WORKSPACE) for _ in range(30)]
    for seconds, most in ((3000, 11), (4200, 11), (4201, 1)):
        said = {one.machine: info(one, S.READY, cpu=seconds, disk=100) for one in sandboxes}
        with django_assert_max_num_queries(most):
            usage._measure_all(said, at(seconds))
    for sandbox in sandboxes:
        assert used(sandbox) == {10: Use(3600, 3600 * 1280, 600 * 100), 11: Use(600, 600 * 1280, 600 * 100)}
