"""What nobody uses is suspended after its time, or sooner where memory is short; what is used is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import idle, reconcile
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import Forbidden, Invalid
from sandboxes.models import Event, Kind, Sandbox, SandboxState, StopCause
from sandboxes.services import changes, lifecycle
from sandboxes.services.activity import Activity
from tests import factories
from tests.factories import Team
from vm.api import HostInfo, MachineInfo, MachineState
from vm.background import spawn
from vm.errors import HostFull
from vm.fake import FakeNode

MACHINE = MachineInfo(machine="m", state=MachineState.READY, memory_mib=1280, vcpus=2, since=0)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_work", idle.Work())


@pytest.fixture
def settings_of(settings: Any) -> Any:
    """Change the installation's settings."""

    def change(**values: Any) -> None:
        settings.ATOLL = {**settings.ATOLL, **values}

    return change


async def booted(team: Team, *, idle_for: timedelta = timedelta(0), **wanted: Any) -> Sandbox:
    """A running one that nobody has used for that long."""
    wanted = {"kind": Kind.WORKSPACE, **wanted}
    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team, **wanted))
    await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, state_since=timezone.now() - idle_for)
    return sandbox


async def looked_at(*sandboxes: Sandbox) -> list[tuple[str, str]]:
    await reconcile.reconcile()
    for sandbox in sandboxes:
        await in_thread(sandbox.refresh_from_db)
    return [(sandbox.state, sandbox.stop_cause) for sandbox in sandboxes]


RUNNING, IDLE, LOW = ("running", ""), ("suspended", StopCause.IDLE), ("suspended", StopCause.LOW_MEMORY)


async def test_idle_workspace(home: Team, node: FakeNode) -> None:
    """After 30 minutes without activity it is suspended and says so; one that was used meanwhile runs on."""
    left = await booted(home, idle_for=timedelta(minutes=31))
    used = await booted(home, idle_for=timedelta(minutes=31))
    fresh = await booted(home, idle_for=timedelta(minutes=29))
    await in_thread(lifecycle.sandboxes_used, seen={used.pk: timezone.now() - timedelta(minutes=5)})
    assert await looked_at(left, used, fresh) == [IDLE, RUNNING, RUNNING]
    assert (left.stop_detail, left.stopped_by) == ("no activity for 31 minutes", "atoll")


async def test_used_while_others_are_suspended(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes back while his workspace waits for its turn to be suspended is not thrown out."""
    monkeypatch.setattr(idle, "AT_ONCE", 1)
    longest, other = [await booted(home, idle_for=timedelta(minutes=minutes)) for minutes in (41, 31)]
    assert await looked_at(longest, other) == [IDLE, RUNNING]
    await in_thread(lifecycle.sandboxes_used, seen={other.pk: timezone.now()})
    assert await looked_at(other) == [RUNNING]


async def test_slow_saves_hold_up_nothing(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk two are saved at a time over all turns, no turn waits for them, and each is settled once saved."""
    monkeypatch.setattr(idle, "MOMENT", 0.5)
    rows = [await booted(home, idle_for=timedelta(minutes=31 + number)) for number in range(5)]
    known, saved, saving = node.machine_suspend, asyncio.Event(), list[asyncio.Task[MachineInfo]]()

    async def save(machine: str) -> MachineInfo:
        await saved.wait()
        return await known(machine)

    async def machine_suspend(machine: str) -> MachineInfo:
        # As a node does: whoever asked may go away
        saving.append(spawn(save(machine), name="save"))
        return await asyncio.shield(saving[-1])

    monkeypatch.setattr(node, "machine_suspend", machine_suspend)
    for _ in range(3):
        async with asyncio.timeout(5):
            states = [state for state, _cause in await looked_at(*rows)]
        assert sorted(states) == ["running"] * 3 + ["suspending"] * 2
    assert len(saving) == 2
    saved.set()
    await asyncio.gather(*saving)
    for _ in range(3):
        last = await looked_at(*rows)
    assert last == [IDLE] * 5


async def test_own_time(home: Team, other: Team, node: FakeNode, settings_of: Any) -> None:
    """A workspace may have a time of its own, or none; the installation's may be none."""
    short = await booted(home, idle_for=timedelta(minutes=6))
    never = await booted(home, idle_for=timedelta(days=3))
    await in_thread(changes.sandbox_change, sandbox=short, actor=home.member, idle_minutes=5)
    await in_thread(changes.sandbox_change, sandbox=never, actor=home.member, idle_minutes=0)
    assert await looked_at(short, never) == [IDLE, RUNNING]
    await in_thread(changes.sandbox_change, sandbox=never, actor=home.member, idle_minutes=None)
    settings_of(idle_minutes=0)
    assert await looked_at(never) == [RUNNING]
    settings_of(idle_minutes=30)
    assert await looked_at(never) == [IDLE]
    with pytest.raises(Forbidden):
        await in_thread(changes.sandbox_change, sandbox=never, actor=home.viewer, idle_minutes=1)
    with pytest.raises(Invalid, match="never"):
        await in_thread(changes.sandbox_change, sandbox=never, actor=home.member, idle_minutes=-1)


async def test_what_is_never_idle(home: Team, node: FakeNode) -> None:
    """A sandbox with a deadline and a session have an end of their own."""
    timed = await booted(home, idle_for=timedelta(days=1), kind=Kind.SANDBOX)
    session = await booted(home, idle_for=timedelta(days=1), kind=Kind.SANDBOX, session=True)
    await in_thread(Sandbox.objects.update, stop_at=None)
    assert await looked_at(timed, session) == [RUNNING, RUNNING]


async def test_failed_suspend_is_not_tried_at_once_again(home: Team, node: FakeNode) -> None:
    """A full disk makes one entry, not one every three seconds."""
    left = await booted(home, idle_for=timedelta(hours=1))
    node.fail_next("machine_suspend", HostFull("no room"))
    assert await looked_at(left) == [RUNNING]
    await in_thread(Sandbox.objects.update, state_since=timezone.now() - timedelta(hours=1))
    assert await looked_at(left) == [RUNNING]
    await in_thread(Sandbox.objects.update, suspend_failed_at=timezone.now() - timedelta(minutes=6))
    assert await looked_at(left) == [IDLE]


def test_work_of_a_machine() -> None:
    """More than a tenth of a core between two looks half a minute apart is work; a burst of housekeeping is none."""
    work = idle.Work()

    def look(now: float, cpu_seconds: float) -> set[str]:
        return work.look({"m": replace(MACHINE, cpu_seconds=cpu_seconds)}, now=now)

    assert look(0, 100) == set()
    assert look(3, 102) == set()
    assert look(30, 102.9) == set()
    assert look(61, 106.2) == {"m"}
    assert look(64, 106.5) == set()
    assert work.look({}, now=70) == set()
    assert look(100, 500) == set()


async def test_working_machine_is_used(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that runs for hours without a key press keeps its workspace awake."""
    busy = await booted(home, idle_for=timedelta(hours=1))
    monkeypatch.setattr(idle.Work, "look", lambda self, machines, now: {busy.machine})
    assert await looked_at(busy) == [RUNNING]
    assert busy.active_at is not None


def memory(node: FakeNode, monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    known = node.host_info

    async def host_info() -> HostInfo:
        return replace(await known(), memory_available=mib * 2**20)

    monkeypatch.setattr(node, "host_info", host_info)


async def test_low_memory(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at each look: workspaces first, those longest idle first, then sandboxes with a deadline; never a session."""
    sandbox = await booted(home, idle_for=timedelta(minutes=20), kind=Kind.SANDBOX)
    session = await booted(home, idle_for=timedelta(minutes=20), kind=Kind.SANDBOX, session=True)
    older = await booted(home, idle_for=timedelta(minutes=12))
    newer = await booted(home, idle_for=timedelta(minutes=2))
    rows = (sandbox, session, older, newer)
    memory(node, monkeypatch, 800)
    assert await looked_at(*rows) == [RUNNING, RUNNING, RUNNING, RUNNING]
    memory(node, monkeypatch, 700)
    assert await looked_at(*rows) == [RUNNING, RUNNING, LOW, RUNNING]
    assert older.stop_detail == "700 MiB were left; it had been idle longest, for 12 minutes"
    assert await looked_at(*rows) == [RUNNING, RUNNING, LOW, LOW]
    assert await looked_at(*rows) == [LOW, RUNNING, LOW, LOW]
    assert await looked_at(*rows) == [LOW, RUNNING, LOW, LOW]


async def test_low_memory_waits_for_what_is_being_freed(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch, settings_of: Any
) -> None:
    """While something is stopped or suspended already nothing more is; with the setting at 0 nothing ever."""
    first, second = await booted(home), await booted(home)
    memory(node, monkeypatch, 100)
    await in_thread(Sandbox.objects.filter(pk=first.pk).update, state=SandboxState.SUSPENDING)
    assert (await looked_at(second)) == [RUNNING]
    await in_thread(Sandbox.objects.filter(pk=first.pk).update, state=SandboxState.RUNNING)
    settings_of(low_memory_mib=0)
    assert await looked_at(first, second) == [RUNNING, RUNNING]
    assert config()["low_memory_mib"] == 0


@pytest.mark.parametrize("state", [SandboxState.SUSPENDING, SandboxState.STOPPING])
async def test_stuck_rows_hold_up_nothing(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch, state: SandboxState
) -> None:
    """What has been on its way for a minute frees nothing any more: others are suspended all the same."""
    stuck = [await booted(home) for _ in range(idle.AT_ONCE)]
    others = [await booted(home), await booted(home, idle_for=timedelta(minutes=31))]
    infos = {info.machine: info for info in await node.machine_list()}

    async def turn(since: timedelta) -> list[str]:
        rows = Sandbox.objects.filter(pk__in=[row.pk for row in stuck])
        await in_thread(rows.update, state=state, state_since=timezone.now() - since)
        await idle.suspend_unused(machines=infos)
        for row in others:
            await in_thread(row.refresh_from_db)
        return [row.state for row in others]

    memory(node, monkeypatch, 100)
    if state == SandboxState.SUSPENDING:
        assert await turn(timedelta(seconds=50)) == ["running", "running"]
    assert await turn(timedelta(seconds=70)) == ["running", "suspended"]
    assert await turn(timedelta(seconds=50)) == ["running", "suspended"]
    assert await turn(timedelta(seconds=70)) == ["suspended", "suspended"]


async def test_activity_is_collected(home: Team) -> None:
    """Notes cost nothing where they are made; they reach the row a moment later, never going back in time."""
    sandbox = await in_thread(factories.sandbox, home)
    events = await in_thread(Event.objects.count)
    activity = Activity()
    for _ in range(1000):
        activity.note(sandbox)
    await in_thread(sandbox.refresh_from_db)
    assert sandbox.active_at is None
    await activity.flush()
    await in_thread(sandbox.refresh_from_db)
    first = sandbox.active_at
    assert first is not None
    await in_thread(lifecycle.sandboxes_used, seen={sandbox.pk: timezone.now() - timedelta(hours=1)})
    await in_thread(sandbox.refresh_from_db)
    assert sandbox.active_at == first
    assert await in_thread(Event.objects.count) == events


async def test_activity_is_written_by_itself(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for it, and what could not be written is kept."""
    monkeypatch.setattr("sandboxes.services.activity.EVERY", 0.01)
    sandbox = await in_thread(factories.sandbox, home)
    activity = Activity()
    failures = iter([True])

    def used(**seen: Any) -> None:
        if next(failures, False):
            raise OSError("the database is away")
        lifecycle.sandboxes_used(**seen)

    monkeypatch.setattr("sandboxes.services.activity.sandboxes_used", used)
    activity.note(sandbox)
    async with asyncio.timeout(5):
        while sandbox.active_at is None:
            await asyncio.sleep(0.01)
            await in_thread(sandbox.refresh_from_db)
