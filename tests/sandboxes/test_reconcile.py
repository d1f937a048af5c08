"""Whatever died between two steps, rows and machines agree again, and the row says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import ids, reconcile, runtime
from sandboxes.database import in_thread
from sandboxes.errors import Forbidden, NotFound
from sandboxes.models import AuditEntry, Event, Kind, Sandbox, SandboxState, StopCause, TimelineEntry, WebProcess
from sandboxes.permissions import SYSTEM
from sandboxes.selectors.sandboxes import sandbox_list, sandbox_list_deleted
from sandboxes.services import lifecycle, suspension
from tests import factories
from tests.factories import Team
from vm.api import Identity, MachineSpec, MachineState, StopReason
from vm.errors import HypervisorError, NodeUnreachable, NotAllowed, VmError
from vm.fake import FakeNode

LONG_AGO = timedelta(minutes=5)


def spec(machine: str) -> MachineSpec:
    return MachineSpec(machine=machine, memory_mib=1280, vcpus=2, disk_gib=10, identity=Identity(hostname="x"))


async def row(team: Team, *, age: timedelta = LONG_AGO, **fields: Any) -> Sandbox:
    return await in_thread(factories.row, team, state_since=timezone.now() - age, **fields)


async def settled(sandbox: Sandbox) -> Sandbox:
    await reconcile.reconcile()
    await in_thread(sandbox.refresh_from_db)
    return sandbox


async def test_create_that_died(home: Team, node: FakeNode) -> None:
    """A row whose create died before the machine was started is stopped, and says so."""
    sandbox = await settled(await row(home, state=SandboxState.QUEUED))
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.CREATE_DIED)


async def test_create_under_way(home: Team, node: FakeNode) -> None:
    """A fresh row is left to the create that is under way."""
    sandbox = await settled(await row(home, age=timedelta(0), state=SandboxState.QUEUED))
    assert sandbox.state == SandboxState.QUEUED


async def test_boot_that_nobody_follows(home: Team, node: FakeNode) -> None:
    """A machine that came up after its web process died makes its row run."""
    sandbox = await row(home, state=SandboxState.STARTING)
    await node.machine_start(spec(sandbox.machine))
    assert (await settled(sandbox)).state == SandboxState.RUNNING


@pytest.mark.parametrize("state", [SandboxState.RUNNING, SandboxState.STARTING])
async def test_machine_that_is_gone(home: Team, node: FakeNode, state: SandboxState) -> None:
    """A machine the node does not know any more stops its row."""
    sandbox = await settled(await row(home, state=state))
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.MACHINE_LOST)


async def test_machine_that_crashed(home: Team, node: FakeNode) -> None:
    """The node's reason and detail reach the row, and the machine is forgotten."""
    sandbox = await row(home, state=SandboxState.RUNNING)
    await node.machine_start(spec(sandbox.machine))
    node.crash(sandbox.machine, StopReason.GUEST_CRASHED, "kernel panic")
    sandbox = await settled(sandbox)
    assert (sandbox.stop_cause, sandbox.stop_detail) == (StopCause.GUEST_CRASHED, "kernel panic")
    assert await node.machine_list() == []


async def test_agent_that_is_silent(home: Team, node: FakeNode) -> None:
    """A machine whose agent does not answer is shown so, and again when it does."""
    sandbox = await row(home, state=SandboxState.RUNNING)
    await node.machine_start(spec(sandbox.machine))
    node.lose(sandbox.machine)
    assert (await settled(sandbox)).unresponsive
    node.find(sandbox.machine)
    assert not (await settled(sandbox)).unresponsive


async def test_stop_that_died(home: Team, node: FakeNode) -> None:
    """A stop whose process died is finished, with the actor and cause it was begun with."""
    sandbox = await row(home, state=SandboxState.STOPPING, stop_cause=StopCause.REQUESTED, stopped_by="ada")
    await node.machine_start(spec(sandbox.machine))
    sandbox = await settled(sandbox)
    assert (sandbox.state, sandbox.stopped_by, sandbox.machine_removed) == (SandboxState.STOPPED, "ada", True)


@pytest.mark.parametrize("begun", ["running", "suspended", "stopped"])
async def test_stray_machine(home: Team, node: FakeNode, settings: Any, begun: str) -> None:
    """A machine that no row names is stopped at once, and its disk is kept until it was nobody's for a day."""
    machine = ids.machine_id()
    await node.machine_start(spec(machine))
    if begun == "suspended":
        await node.machine_suspend(machine)
    if begun == "stopped":
        await node.machine_stop(machine)
        # However long ago that was: what matters is since when nobody names it
        _backdate(node, machine, hours=1000)
    await reconcile.reconcile()
    for _ in range(2):
        [info] = await node.machine_list()
        assert info.state is MachineState.STOPPED
        _backdate(node, machine, hours=11.9)
        await reconcile.reconcile()
    _backdate(node, machine, hours=0.3)
    await reconcile.reconcile()
    assert await node.machine_list() == []


async def test_database_that_was_put_back(home: Team, node: FakeNode) -> None:
    """A workspace newer than the database that was restored is there again with the newer database."""
    workspace = await row(home, state=SandboxState.RUNNING, kind=Kind.WORKSPACE)
    await node.machine_start(spec(workspace.machine))
    node.disk(workspace.machine).mkdir(parents=True, exist_ok=True)
    (node.disk(workspace.machine) / "work").touch()
    newer = await in_thread(Sandbox.objects.filter(pk=workspace.pk).values().get)
    await in_thread(workspace.delete)
    for _ in range(3):
        await reconcile.reconcile()
    await in_thread(Sandbox.objects.create, **newer)
    workspace = await in_thread(Sandbox.objects.get)
    assert (await settled(workspace)).state == SandboxState.STOPPED
    assert workspace.stop_detail == reconcile.NOBODYS
    assert (node.disk(workspace.machine) / "work").exists()


def _backdate(node: FakeNode, machine: str, *, hours: float) -> None:
    known = node._machines[machine]
    known.info = replace(known.info, since=known.info.since - hours * 3600)


async def test_workspace_disk_is_kept(home: Team, node: FakeNode) -> None:
    """The machine of a stopped workspace is nobody's waste."""
    workspace = await row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    await node.machine_start(spec(workspace.machine))
    await node.machine_stop(workspace.machine)
    await reconcile.reconcile()
    assert len(await node.machine_list()) == 1


async def test_restart_is_not_mistaken_for_the_last_stop(home: Team, node: FakeNode) -> None:
    """A workspace that is being started again is not stopped because its last run was."""
    workspace = await row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    await node.machine_start(spec(workspace.machine))
    await node.machine_stop(workspace.machine)
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    assert (await settled(workspace)).state == SandboxState.QUEUED


async def test_node_that_is_down(home: Team, node: FakeNode) -> None:
    """While the node does not answer nothing is concluded from its silence."""
    sandbox = await row(home, state=SandboxState.RUNNING)
    node.go_down(NodeUnreachable("down"))
    assert (await settled(sandbox)).state == SandboxState.RUNNING


@pytest.mark.parametrize("error", [NodeUnreachable("down"), NotAllowed("another key"), HypervisorError("odd")])
async def test_node_that_does_not_say(home: Team, node: FakeNode, error: VmError) -> None:
    """A turn of the reconciler ends without an error whatever the node answers, and the next one goes on."""
    sandbox = await row(home, state=SandboxState.RUNNING)
    node.fail_next("machine_list", error)
    assert (await settled(sandbox)).state == SandboxState.RUNNING
    assert (await settled(sandbox)).stop_cause == StopCause.MACHINE_LOST


async def test_row_that_nobody_thought_of(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be settled does not keep the others from it."""
    odd = await row(home, state=SandboxState.RUNNING)
    other = await row(home, state=SandboxState.RUNNING)
    known = lifecycle.sandbox_ended

    def ended(**asked: Any) -> bool:
        if asked["sandbox"].pk == odd.pk:
            raise RuntimeError("nobody thought of this")
        return known(**asked)

    monkeypatch.setattr(lifecycle, "sandbox_ended", ended)
    assert (await settled(other)).state == SandboxState.STOPPED
    await in_thread(odd.refresh_from_db)
    assert odd.state == SandboxState.RUNNING


async def test_deadline(home: Team, node: FakeNode) -> None:
    """A sandbox past its deadline is stopped, and says that its time was up."""
    sandbox = await row(home, state=SandboxState.RUNNING, stop_at=timezone.now() - timedelta(seconds=1))
    await node.machine_start(spec(sandbox.machine))
    await reconcile.expire()
    await in_thread(sandbox.refresh_from_db)
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.DEADLINE)


async def test_an_extension_in_time(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was given more time while his sandbox waited for its turn to be stopped has it."""
    sandbox = await row(home, state=SandboxState.RUNNING, stop_at=timezone.now() + timedelta(minutes=10))
    await node.machine_start(spec(sandbox.machine))
    monkeypatch.setattr(reconcile, "_overdue", lambda: [sandbox])
    await reconcile.expire()
    await in_thread(sandbox.refresh_from_db)
    assert sandbox.state == SandboxState.RUNNING


@pytest.mark.parametrize("turn", [reconcile.expire, reconcile.reconcile])
async def test_a_slow_machine_holds_up_no_other(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch, turn: Callable[[], Awaitable[None]]
) -> None:
    """More of them than are ended at a time: the last one is ended in the same turn, and the slow ones say so."""
    monkeypatch.setattr(reconcile, "MOMENT", 2.0)
    expiring = turn is reconcile.expire
    fields: dict[str, Any] = {"state": SandboxState.RUNNING if expiring else SandboxState.STOPPING}
    if expiring:
        fields["stop_at"] = timezone.now() - timedelta(seconds=1)
    rows = [await row(home, **fields) for _ in range(reconcile.AT_ONCE + 1)]
    for sandbox in rows:
        await node.machine_start(spec(sandbox.machine))
    stop = node.machine_stop

    async def slow(machine: str, *, detail: str = "") -> Any:
        if machine != rows[-1].machine:
            await asyncio.sleep(60)
        return await stop(machine, detail=detail)

    monkeypatch.setattr(node, "machine_stop", slow)
    async with asyncio.timeout(30):
        await turn()
    for sandbox in rows:
        await in_thread(sandbox.refresh_from_db)
    assert [sandbox.state for sandbox in rows[:-1]] == [SandboxState.STOPPING] * reconcile.AT_ONCE
    assert rows[-1].state == SandboxState.STOPPED


async def test_silent_web_process(home: Team, node: FakeNode) -> None:
    """Session sandboxes of a web process that is gone are ended; those of a living one and timed ones are not."""
    dead = await in_thread(WebProcess.objects.create, seen_at=timezone.now() - timedelta(minutes=1))
    alive = await in_thread(WebProcess.objects.create, seen_at=timezone.now())
    theirs = await row(home, state=SandboxState.RUNNING, session=True, held_by=dead)
    ours = await row(home, state=SandboxState.RUNNING, session=True, held_by=alive)
    timed = await row(home, state=SandboxState.RUNNING)
    await reconcile.expire()
    for sandbox in (theirs, ours, timed):
        await in_thread(sandbox.refresh_from_db)
    assert (theirs.state, theirs.stop_cause) == (SandboxState.STOPPED, StopCause.SESSION_ENDED)
    assert (ours.state, timed.state) == (SandboxState.RUNNING, SandboxState.RUNNING)


class MortalNode:
    """The node, as seen by a process that dies before or after a call of `verb`."""

    def __init__(self, node: FakeNode, verb: str, when: str) -> None:
        self._node, self._verb, self._when = node, verb, when

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._node, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._when == "after":
                await work(*args, **kwargs)
            raise asyncio.CancelledError

        return call if name == self._verb else work


async def boot(sandbox: Sandbox, team: Team) -> None:
    await lifecycle.sandbox_boot(sandbox=sandbox)


async def start(sandbox: Sandbox, team: Team) -> None:
    await in_thread(lifecycle.sandbox_start, sandbox=sandbox, actor=team.member)
    await lifecycle.sandbox_boot(sandbox=sandbox)


async def suspend(sandbox: Sandbox, team: Team) -> None:
    await suspension.sandbox_suspend(sandbox=sandbox, actor=team.member, beside=False)


async def resume(sandbox: Sandbox, team: Team) -> None:
    await suspension.sandbox_wake(sandbox=sandbox, actor=team.member, beside=False)


async def stop(sandbox: Sandbox, team: Team) -> None:
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=team.member, beside=False)


DEATHS: list[tuple[Any, list[Any], str, str, tuple[str, str]]] = [
    # what was under way, what had been done before, where it died, and what the row and its machine are in the end
    (boot, [], "machine_start", "before", ("stopped", "none")),
    (boot, [], "machine_start", "after", ("running", "ready")),
    (boot, [], "machine_wait", "before", ("running", "ready")),
    (start, [boot, stop], "machine_start", "before", ("stopped", "stopped")),
    (start, [boot, stop], "machine_start", "after", ("running", "ready")),
    (suspend, [boot], "machine_suspend", "before", ("running", "ready")),
    (suspend, [boot], "machine_suspend", "after", ("suspended", "suspended")),
    (resume, [boot, suspend], "machine_resume", "before", ("running", "ready")),
    (resume, [boot, suspend], "machine_resume", "after", ("running", "ready")),
    (stop, [boot], "machine_stop", "before", ("stopped", "stopped")),
    (stop, [boot], "machine_stop", "after", ("stopped", "stopped")),
    (stop, [boot, suspend], "machine_stop", "before", ("stopped", "stopped")),
]


@pytest.mark.parametrize(("service", "before", "verb", "when", "end"), DEATHS)
async def test_service_whose_process_died(
    home: Team,
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    service: Any,
    before: list[Any],
    verb: str,
    when: str,
    end: tuple[str, str],
) -> None:
    """Killed at either side of its call to the node, a service leaves a row that is settled, with its cause."""
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    for done in before:
        await done(workspace, home)
    monkeypatch.setattr(runtime, "node", lambda: MortalNode(node, verb, when))
    node.boot_delay = 0.05 if verb == "machine_wait" else 0
    with pytest.raises(asyncio.CancelledError):
        await service(workspace, home)
    monkeypatch.setattr(runtime, "node", lambda: node)
    await asyncio.sleep(node.boot_delay)
    monkeypatch.setattr(reconcile, "PATIENCE", -1.0)
    monkeypatch.setattr(reconcile, "AGAIN", -1.0)
    for _ in range(3):
        await settled(workspace)
    machines = [info.state.value for info in await node.machine_list()] or ["none"]
    assert (workspace.state, machines[0]) == end
    if workspace.state != SandboxState.RUNNING:
        assert workspace.stop_cause
        assert workspace.stopped_by


@pytest.mark.parametrize(("when", "rows"), [("before", ["running"]), ("after", ["running", "running"])])
async def test_fork_whose_process_died(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch, when: str, rows: list[str]
) -> None:
    """Either there is a fork, or nothing of it: never a workspace that has no disk."""
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await boot(workspace, home)
    monkeypatch.setattr(runtime, "node", lambda: MortalNode(node, "machine_fork", when))
    with pytest.raises(asyncio.CancelledError):
        await suspension.sandbox_fork(sandbox=workspace, actor=home.member)
    monkeypatch.setattr(runtime, "node", lambda: node)
    monkeypatch.setattr(reconcile, "PATIENCE", -1.0)
    for _ in range(3):
        await reconcile.reconcile()
    assert [row.state for row in await in_thread(sandbox_list, actor=home.member)] == rows
    assert len(await node.machine_list()) == len(rows)


# The row's state after one look at each state of its machine, the change being old; None: the node has no machine.
SETTLED: dict[str, dict[str | None, str]] = {
    "queued": {
        "queued": "queued",
        "starting": "starting",
        "ready": "running",
        "lost": "running",
        "suspending": "queued",
        "suspended": "queued",
        "stopped": "stopped",
        None: "stopped",
    },
    "starting": {
        "queued": "starting",
        "starting": "starting",
        "ready": "running",
        "lost": "running",
        "suspending": "starting",
        "suspended": "starting",
        "stopped": "stopped",
        None: "stopped",
    },
    "running": {
        "queued": "running",
        "starting": "running",
        "ready": "running",
        "lost": "running",
        "suspending": "running",
        "suspended": "suspended",
        "stopped": "stopped",
        None: "stopped",
    },
    "suspending": {
        "queued": "suspending",
        "starting": "suspending",
        "ready": "running",
        "lost": "running",
        "suspending": "suspending",
        "suspended": "suspended",
        "stopped": "stopped",
        None: "stopped",
    },
    "suspended": {
        "queued": "resuming",
        "starting": "resuming",
        "ready": "running",
        "lost": "running",
        "suspending": "suspended",
        "suspended": "suspended",
        "stopped": "stopped",
        None: "stopped",
    },
    "resuming": {
        "queued": "resuming",
        "starting": "resuming",
        "ready": "running",
        "lost": "running",
        "suspending": "resuming",
        "suspended": "suspended",
        "stopped": "stopped",
        None: "stopped",
    },
    "stopping": dict.fromkeys([*(state.value for state in MachineState), None], "stopped"),
    "stopped": dict.fromkeys([*(state.value for state in MachineState), None], "stopped"),
    "deleted": dict.fromkeys([*(state.value for state in MachineState), None], "deleted"),
}


def test_every_pair_is_thought_of() -> None:
    """The reconciler's table knows each state of a row with each of a machine."""
    assert {SandboxState(row) for row in SETTLED} == set(SandboxState)
    for row in SandboxState:
        assert set(SETTLED[row]) == {*(state.value for state in MachineState), None}
        for machine in (*MachineState, None):
            assert reconcile.settlement(row, machine) in reconcile.Settle


@pytest.mark.parametrize("state", SETTLED)
async def test_pairs_are_settled(home: Team, node: FakeNode, state: str) -> None:
    """Each pair ends where the table says; what rests has a cause and no machine that runs, a deleted disk is kept."""
    node.boot_delay, node.boot_places = 3600, 0
    made = {}
    for machine in SETTLED[state]:
        workspace = await row(
            home, state=state, kind=Kind.WORKSPACE, deleted_at=timezone.now(), stop_cause=StopCause.IDLE
        )
        made[machine] = workspace
        if machine is not None:
            await node.machine_start(spec(workspace.machine))
            node._set(workspace.machine, MachineState(machine), stop_reason=StopReason.RESUME_FAILED)
    await reconcile.reconcile()
    left = {info.machine: info.state for info in await node.machine_list()}
    for machine, workspace in made.items():
        await in_thread(workspace.refresh_from_db)
        assert workspace.state == SETTLED[state][machine], machine
        if workspace.state in (SandboxState.STOPPED, SandboxState.DELETED):
            assert left.get(workspace.machine) in (None, MachineState.STOPPED), machine
            assert not workspace.machine_removed
        if workspace.state in (SandboxState.STOPPED, SandboxState.SUSPENDED):
            assert workspace.stop_cause


async def test_suspend_that_was_given_up_too_early(home: Team, node: FakeNode) -> None:
    """A row that was put back to running although its machine was saved is suspended with the cause of that suspend."""
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await boot(workspace, home)
    node.fail_next("machine_suspend", NodeUnreachable("busy"))
    await suspension.sandbox_suspend(
        sandbox=workspace, actor=SYSTEM, cause=StopCause.IDLE, detail="no activity for 30 minutes", beside=False
    )
    await in_thread(suspension.sandbox_run_on, sandbox=workspace, why="nobody answered")
    await node.machine_suspend(workspace.machine)
    await settled(workspace)
    assert (workspace.state, workspace.stop_cause, workspace.stop_detail, workspace.stopped_by) == (
        SandboxState.SUSPENDED,
        StopCause.IDLE,
        "no activity for 30 minutes",
        "atoll",
    )


async def test_old_news_change_nothing(home: Team, node: FakeNode) -> None:
    """A look that is older than a resume does not suspend the row again, nor does one before a suspend wake it."""
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await boot(workspace, home)
    running = await node.machine_get(workspace.machine)
    await suspend(workspace, home)
    paused = await node.machine_get(workspace.machine)
    await reconcile._settle(workspace, running, time.time())
    assert workspace.state == SandboxState.SUSPENDED
    await resume(workspace, home)
    await reconcile._settle(workspace, paused, time.time())
    assert workspace.state == SandboxState.RUNNING


async def test_deadline_of_a_suspended_one(home: Team, node: FakeNode) -> None:
    """A deadline goes on while suspended, and ends it."""
    sandbox = await in_thread(factories.sandbox, home, stop_at=timezone.now() + timedelta(minutes=1))
    await boot(sandbox, home)
    await suspend(sandbox, home)
    await in_thread(lambda: Sandbox.objects.update(stop_at=timezone.now()))
    await reconcile.expire()
    await in_thread(sandbox.refresh_from_db)
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.DEADLINE)
    assert await node.machine_list() == []


async def test_deleted_workspace_is_kept_for_a_day(home: Team, node: FakeNode) -> None:
    """It can be restored and started on its disk within a day; then its disk goes, and it is not found."""
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await boot(workspace, home)
    disk = node.disk(workspace.machine)
    disk.mkdir(exist_ok=True)
    (disk / "kept").touch()
    await lifecycle.sandbox_delete(sandbox=workspace, actor=home.member)
    await reconcile.reconcile()
    assert [row.pk for row in await in_thread(sandbox_list_deleted, actor=home.viewer)] == [workspace.pk]
    with pytest.raises(Forbidden):
        await in_thread(lifecycle.sandbox_restore, sandbox=workspace, actor=home.viewer)
    await in_thread(lifecycle.sandbox_restore, sandbox=workspace, actor=home.member)
    assert workspace.state == SandboxState.STOPPED
    await start(workspace, home)
    assert (node.disk(workspace.machine) / "kept").exists()

    await lifecycle.sandbox_delete(sandbox=workspace, actor=home.member)
    await in_thread(lambda: Sandbox.objects.update(deleted_at=timezone.now() - timedelta(hours=24, seconds=30)))
    await settled(workspace)
    with pytest.raises(NotFound):
        await in_thread(lifecycle.sandbox_restore, sandbox=workspace, actor=home.member)
    assert await in_thread(sandbox_list_deleted, actor=home.viewer) == []
    # A restore that began in the last moment still finds the disk
    assert len(await node.machine_list()) == 1
    await in_thread(lambda: Sandbox.objects.update(deleted_at=timezone.now() - timedelta(hours=25)))
    await settled(workspace)
    assert (workspace.machine_removed, await node.machine_list()) == (True, [])


def test_prune(home: Team) -> None:
    """Old events go, and sandboxes that stopped long ago are hidden, which is told; workspaces stay."""
    old = timezone.now() - timedelta(days=2)
    gone = factories.row(home, state=SandboxState.STOPPED, stopped_at=old, machine_removed=True)
    kept = factories.row(home, state=SandboxState.STOPPED, stopped_at=old, kind=Kind.WORKSPACE)
    event = Event.objects.create(organization=home.organization, kind="sandbox")
    forgotten = factories.row(home, state=SandboxState.DELETED, machine_removed=True)
    for told in (gone, kept, forgotten):
        TimelineEntry.objects.create(sandbox=told, at=timezone.now() - timedelta(days=8), state=told.state)
    Event.objects.update(created_at=old)
    reconcile.prune()
    gone.refresh_from_db()
    kept.refresh_from_db()
    assert (gone.state, kept.state) == (SandboxState.DELETED, SandboxState.STOPPED)
    assert not Event.objects.filter(pk=event.pk).exists()
    assert {entry.sandbox_id for entry in TimelineEntry.objects.all()} == {gone.pk, kept.pk}
    assert TimelineEntry.objects.get(sandbox=gone, state=SandboxState.DELETED).text == "Deleted by atoll"
    assert [entry.action for entry in AuditEntry.objects.filter(target=gone.public_id)] == ["sandbox.delete"]
    assert Event.objects.filter(kind="sandbox", payload__id=gone.public_id).exists()
