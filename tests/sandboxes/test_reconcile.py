"""Whatever died between two steps, rows and machines agree again, and the row says why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import ids, reconcile
from sandboxes.database import in_thread
from sandboxes.models import Event, Kind, Sandbox, SandboxState, StopCause, WebProcess
from sandboxes.services import lifecycle
from tests import factories
from tests.factories import Team
from vm.api import Identity, MachineSpec, StopReason
from vm.errors import NodeUnreachable
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


async def test_stray_machine(home: Team, node: FakeNode) -> None:
    """A machine that no row names is stopped and forgotten."""
    await node.machine_start(spec(ids.machine_id()))
    await reconcile.reconcile()
    assert await node.machine_list() == []


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


async def test_deadline(home: Team, node: FakeNode) -> None:
    """A sandbox past its deadline is stopped, and says that its time was up."""
    sandbox = await row(home, state=SandboxState.RUNNING, stop_at=timezone.now() - timedelta(seconds=1))
    await node.machine_start(spec(sandbox.machine))
    await reconcile.expire()
    await in_thread(sandbox.refresh_from_db)
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.DEADLINE)


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


def test_prune(home: Team) -> None:
    """Old events go, and sandboxes that stopped long ago are hidden; workspaces stay."""
    old = timezone.now() - timedelta(days=2)
    gone = factories.row(home, state=SandboxState.STOPPED, stopped_at=old, machine_removed=True)
    kept = factories.row(home, state=SandboxState.STOPPED, stopped_at=old, kind=Kind.WORKSPACE)
    Event.objects.create(organization=home.organization, kind="sandbox")
    Event.objects.update(created_at=old)
    reconcile.prune()
    gone.refresh_from_db()
    kept.refresh_from_db()
    assert (gone.state, kept.state) == (SandboxState.DELETED, SandboxState.STOPPED)
    assert not Event.objects.exists()
