"""Suspending, resuming and forking on a node in memory: who may, what is kept, what races, what is told."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes.background import spawn
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Forbidden, NotFound, QuotaExceeded, Suspended, Unavailable
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, StopCause
from sandboxes.selectors.sandboxes import sandbox_list
from sandboxes.selectors.timeline import timeline_list
from sandboxes.services import changes, lifecycle, limits, streams, suspension
from tests import factories
from tests.factories import Team
from vm.api import MachineState, Origin, StopReason
from vm.errors import HostFull, HypervisorError, MachineGone, NodeUnreachable
from vm.fake import FakeNode


async def booted(team: Team, **wanted: Any) -> Sandbox:
    wanted = {"kind": Kind.WORKSPACE, "name": "work", **wanted}
    return await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team, **wanted))


async def suspended(team: Team, **wanted: Any) -> Sandbox:
    sandbox = await booted(team, **wanted)
    return await suspension.sandbox_suspend(sandbox=sandbox, actor=team.member, beside=False)


async def forked(sandbox: Sandbox, team: Team, **wanted: Any) -> Sandbox:
    """A fork that runs: nothing is still being written about it."""
    return await runs(await suspension.sandbox_fork(sandbox=sandbox, actor=team.member, **wanted))


async def runs(sandbox: Sandbox) -> Sandbox:
    async with asyncio.timeout(20):
        while sandbox.state != SandboxState.RUNNING:
            await asyncio.sleep(0.01)
            await in_thread(sandbox.refresh_from_db)
    # Read anew: whoever follows the machine refreshes this very object, field by field, in another thread
    return await in_thread(Sandbox.objects.get, pk=sandbox.pk)


async def texts(sandbox: Sandbox, team: Team) -> list[str]:
    return [entry["text"] for entry in await in_thread(timeline_list, actor=team.viewer, sandbox=sandbox)]


async def machine_state(node: FakeNode, sandbox: Sandbox) -> MachineState:
    return (await node.machine_get(sandbox.machine)).state


async def test_suspend_and_resume(home: Team, node: FakeNode) -> None:
    """It is suspended with who, why and when, takes no place meanwhile, and goes on where it was."""
    workspace = await suspended(home)
    assert (workspace.state, workspace.stop_cause, workspace.stopped_by) == (
        SandboxState.SUSPENDED,
        StopCause.REQUESTED,
        "member@home.example",
    )
    assert workspace.stopped_at is not None
    assert await machine_state(node, workspace) is MachineState.SUSPENDED
    assert (await in_thread(limits.in_use, home.organization)).sandboxes == 0
    started = workspace.started_at
    await suspension.sandbox_wake(sandbox=workspace, actor=home.admin, why="a test", beside=False)
    assert (workspace.state, workspace.stop_cause, workspace.origin) == ("running", "", "resume")
    assert workspace.stopped_at is None
    assert workspace.started_at == started
    assert (await texts(workspace, home))[-4:] == [
        "Being suspended on request by member@home.example",
        "Suspended on request by member@home.example. Its memory and disk are kept: resume it to go on",
        "Resumed by admin@home.example: a test",
        "Goes on where it was in 0.0 s",
    ]


async def test_both_are_repeatable(home: Team, node: FakeNode) -> None:
    """Suspending a suspended one and waking a running one change nothing."""
    workspace = await suspended(home)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.admin, beside=False)
    assert workspace.stopped_by == "member@home.example"
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    before = await texts(workspace, home)
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert await texts(workspace, home) == before


async def test_who_may(home: Team, other: Team, node: FakeNode) -> None:
    """A viewer is refused, and in another organization there is no such sandbox."""
    running, paused = await booted(home), await suspended(home)
    for actor, error in ((home.viewer, Forbidden), (other.owner, NotFound)):
        with pytest.raises(error):
            await suspension.sandbox_suspend(sandbox=running, actor=actor)
        with pytest.raises(error):
            await suspension.sandbox_fork(sandbox=running, actor=actor)
        with pytest.raises(error):
            await suspension.sandbox_wake(sandbox=paused, actor=actor)
        with pytest.raises(error):
            await in_thread(lifecycle.sandbox_restore, sandbox=paused, actor=actor)
    with pytest.raises(NotFound):
        await in_thread(timeline_list, actor=other.owner, sandbox=paused)


async def test_what_cannot_be_suspended(home: Team, node: FakeNode) -> None:
    """A session, one that is silent, one that is queued or has ended; each is told why."""
    session = await booted(home, kind=Kind.SANDBOX, session=True)
    with pytest.raises(Conflict, match="as long as the connection"):
        await suspension.sandbox_suspend(sandbox=session, actor=home.member)
    timed = await booted(home, kind=Kind.SANDBOX, stop_at=timezone.now() + timedelta(minutes=5))
    node.lose(timed.machine)
    await in_thread(lifecycle.sandbox_observe, sandbox=timed, info=await node.machine_get(timed.machine))
    with pytest.raises(Conflict, match="does not answer"):
        await suspension.sandbox_suspend(sandbox=timed, actor=home.member)
    await lifecycle.sandbox_stop(sandbox=timed, actor=home.member, beside=False)
    with pytest.raises(Conflict, match="stopped, not running"):
        await suspension.sandbox_suspend(sandbox=timed, actor=home.member)
    with pytest.raises(Conflict, match="stopped, not suspended"):
        await suspension.sandbox_wake(sandbox=timed, actor=home.member)
    queued = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    with pytest.raises(Conflict, match="queued, not running"):
        await suspension.sandbox_suspend(sandbox=queued, actor=home.member)


@pytest.mark.parametrize("error", [HostFull("no room for 1280 MiB"), HypervisorError("no room for 1280 MiB")])
async def test_failed_suspend(home: Team, node: FakeNode, error: Any) -> None:
    """It runs on, and the timeline says why."""
    workspace = await booted(home)
    node.fail_next("machine_suspend", error)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    assert (workspace.state, workspace.stop_cause, workspace.stopped_by) == (SandboxState.RUNNING, "", "")
    assert workspace.suspend_failed_at is not None
    assert (await texts(workspace, home))[-1] == "Could not be suspended and runs on: no room for 1280 MiB"


async def test_machine_that_ends_during_the_suspend(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not run on: it is stopped, with the reason of its own end, or lost where its host knows it no more."""
    crashed, lost = await booted(home), await booted(home)
    known = node.machine_suspend

    async def machine_suspend(machine: str) -> Any:
        if machine == lost.machine:
            await node.machine_stop(machine)
            await node.machine_forget(machine)
        else:
            node.crash(machine, StopReason.GUEST_CRASHED, "panic")
        return await known(machine)

    monkeypatch.setattr(node, "machine_suspend", machine_suspend)
    for workspace, cause, detail in (
        (crashed, StopCause.GUEST_CRASHED, "panic"),
        (lost, StopCause.MACHINE_LOST, ""),
    ):
        await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
        assert (workspace.state, workspace.stop_cause) == (SandboxState.STOPPED, cause)
        assert workspace.stop_detail == detail
        assert not any("runs on" in text for text in await texts(workspace, home))


async def test_resume_that_has_to_wait(home: Team, node: FakeNode) -> None:
    """A host without room leaves it suspended with its cause, and says why it was not resumed."""
    workspace = await suspended(home)
    node.fail_next("machine_resume", HostFull("no memory"))
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert (workspace.state, workspace.stop_cause) == (SandboxState.SUSPENDED, StopCause.REQUESTED)
    assert workspace.note == "could not be resumed: no memory"
    assert (await texts(workspace, home))[-1] == "Could not be resumed and stays suspended: no memory"
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert (workspace.state, workspace.note) == (SandboxState.RUNNING, "")


async def test_memory_that_cannot_be_restored(home: Team, node: FakeNode) -> None:
    """The workspace is stopped with that reason and starts again from its disk."""
    workspace = await suspended(home)
    disk = node.disk(workspace.machine)
    disk.mkdir(exist_ok=True)
    (disk / "kept").touch()
    node.boot_delay = 30
    waking = spawn(suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False), name="wake")
    while await machine_state(node, workspace) is not MachineState.STARTING:
        await asyncio.sleep(0.01)
    node.fail_boot(workspace.machine, StopReason.RESUME_FAILED, "the image is truncated")
    await waking
    assert (workspace.state, workspace.stop_cause) == (SandboxState.STOPPED, StopCause.RESUME_FAILED)
    assert "start it to go on from there" in (await texts(workspace, home))[-1]
    node.boot_delay = 0
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    await lifecycle.sandbox_boot(sandbox=workspace)
    assert workspace.state == SandboxState.RUNNING
    assert (node.disk(workspace.machine) / "kept").exists()


async def test_machine_that_ended_meanwhile(home: Team, node: FakeNode) -> None:
    """Waking one whose machine is stopped or gone stops the row with the reason."""
    stopped, gone = await suspended(home), await suspended(home)
    await node.machine_stop(stopped.machine)
    await node.machine_stop(gone.machine)
    await node.machine_forget(gone.machine)
    for sandbox, cause in ((stopped, StopCause.REQUESTED), (gone, StopCause.MACHINE_LOST)):
        await suspension.sandbox_wake(sandbox=sandbox, actor=home.member, beside=False)
        assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, cause)


async def test_resuming_asks_the_quota_again(home: Team, node: FakeNode) -> None:
    """The place was given up; without one it stays suspended."""
    workspace = await suspended(home)
    await in_thread(lambda: Organization.objects.filter(pk=home.organization.pk).update(quota_concurrent=1))
    second = await booted(home)
    with pytest.raises(QuotaExceeded):
        await suspension.sandbox_wake(sandbox=workspace, actor=home.member)
    assert workspace.state == SandboxState.SUSPENDED
    await suspension.sandbox_suspend(sandbox=second, actor=home.member, beside=False)
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert workspace.state == SandboxState.RUNNING


async def test_two_resumes_at_once(home: Team, node: FakeNode) -> None:
    """One of them resumes it, both find it running."""
    workspace = await suspended(home)
    twice = [await in_thread(Sandbox.objects.get, pk=workspace.pk) for _ in range(2)]
    await asyncio.gather(*(suspension.sandbox_wake(sandbox=row, actor=home.member, beside=False) for row in twice))
    assert sum(text.startswith("Resumed by") for text in await texts(workspace, home)) == 1
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.RUNNING


async def test_resume_during_the_suspend(home: Team, node: FakeNode) -> None:
    """Whoever wants it back while its memory is being saved gets it after that."""
    workspace = await booted(home)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member)
    again = await in_thread(Sandbox.objects.get, pk=workspace.pk)
    await suspension.sandbox_wake(sandbox=again, actor=home.member, beside=False)
    assert again.state == SandboxState.RUNNING


async def test_stop_during_the_suspend(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop wins: its cause and actor stay, and a suspend that ends later changes nothing."""
    workspace = await booted(home)
    saving, saved = asyncio.Event(), asyncio.Event()
    suspend = node.machine_suspend

    async def slow(machine: str) -> Any:
        saving.set()
        await saved.wait()
        return await suspend(machine)

    monkeypatch.setattr(node, "machine_suspend", slow)
    suspending = spawn(suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False), name="suspend")
    await saving.wait()
    again = await in_thread(Sandbox.objects.get, pk=workspace.pk)
    assert again.state == SandboxState.SUSPENDING
    await lifecycle.sandbox_stop(sandbox=again, actor=home.admin, beside=False)
    saved.set()
    await suspending
    assert (workspace.state, workspace.stopped_by) == (SandboxState.STOPPED, "admin@home.example")
    assert await machine_state(node, workspace) is MachineState.STOPPED


async def test_stop_of_a_suspended_one(home: Team, node: FakeNode) -> None:
    """Its memory goes, the disk of a workspace stays."""
    workspace = await suspended(home)
    await lifecycle.sandbox_stop(sandbox=workspace, actor=home.member, beside=False)
    assert await machine_state(node, workspace) is MachineState.STOPPED
    timed = await suspended(home, kind=Kind.SANDBOX, stop_at=timezone.now() + timedelta(minutes=5))
    await lifecycle.sandbox_stop(sandbox=timed, actor=home.member, beside=False)
    assert [info.machine for info in await node.machine_list()] == [workspace.machine]


async def test_calls_are_told(home: Team, node: FakeNode) -> None:
    """A call to a suspended one fails at once, with who suspended it and what to do, and does not wake it."""
    workspace = await suspended(home)
    with pytest.raises(Suspended, match=r"suspended on request by member@home\.example: resume it"):
        await streams.guest_call(sandbox=workspace, method="ping", actor=home.member)
    with pytest.raises(Suspended):
        await streams.guest_ready(sandbox=workspace)
    with pytest.raises(Suspended):
        await streams.guest_resources(sandbox=workspace, actor=home.viewer)
    assert workspace.state == SandboxState.SUSPENDED


async def test_a_guest_goes_on(home: Team, node: FakeNode) -> None:
    """Calls work again after a resume, also those that began to wait while it was under way."""
    workspace = await suspended(home)
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member)
    await streams.guest_ready(sandbox=workspace)
    await runs(workspace)
    resources = await streams.guest_resources(sandbox=workspace, actor=home.viewer)
    assert resources["memory_total"] > 0
    assert len(resources["load"]) == 3


async def test_deadline_goes_on(home: Team, node: FakeNode) -> None:
    """A deadline can be made later while suspended."""
    timed = await suspended(home, kind=Kind.SANDBOX, stop_at=timezone.now() + timedelta(minutes=5))
    later = timezone.now() + timedelta(minutes=9)
    assert await in_thread(changes.sandbox_extend, sandbox=timed, actor=home.member, stop_at=later) == later


async def test_fork(home: Team, node: FakeNode) -> None:
    """A fork has the original's disk, environment, labels and sizes, a name of its own, and both run."""
    workspace = await booted(home, labels={"a": "b"}, env={"K": "v"}, memory_mb=2048)
    disk = node.disk(workspace.machine)
    disk.mkdir(exist_ok=True)
    (disk / "kept").touch()
    fork = await runs(await suspension.sandbox_fork(sandbox=workspace, actor=home.admin))
    await streams.guest_ready(sandbox=fork)
    assert (fork.kind, fork.name, fork.labels, fork.env, fork.memory_mb) == (
        Kind.WORKSPACE,
        "work (fork)",
        {"a": "b"},
        {"K": "v"},
        2048,
    )
    assert (fork.forked_from, fork.origin, fork.creator_name) == (
        workspace.public_id,
        Origin.FORK,
        "admin@home.example",
    )
    assert (node.disk(fork.machine) / "kept").exists()
    assert await machine_state(node, workspace) is MachineState.READY
    assert (await texts(fork, home))[0] == f"Forked from {workspace.public_id} by admin@home.example"


async def test_deadline_of_a_fork(home: Team, node: FakeNode) -> None:
    """The original's, half an hour for a session's, or what was asked for; the fork of a session is none."""
    at = timezone.now() + timedelta(minutes=5)
    timed = await booted(home, kind=Kind.SANDBOX, stop_at=at)
    session = await booted(home, kind=Kind.SANDBOX, session=True)
    assert (await forked(timed, home)).stop_at == at
    of_session = await forked(session, home)
    soon = timezone.now() + timedelta(minutes=29)
    assert of_session.stop_at is not None
    assert (of_session.session, soon < of_session.stop_at < soon + timedelta(minutes=1)) == (False, True)
    asked = await forked(timed, home, lifetime=timedelta(seconds=60))
    assert asked.stop_at is not None
    assert asked.stop_at < timezone.now() + timedelta(seconds=61)


async def test_fork_is_refused(home: Team, node: FakeNode) -> None:
    """Of one that does not run, and beyond the quota; nothing is written."""
    paused = await suspended(home)
    with pytest.raises(Conflict, match="suspended"):
        await suspension.sandbox_fork(sandbox=paused, actor=home.member)
    running = await booted(home)
    await in_thread(lambda: Organization.objects.filter(pk=home.organization.pk).update(quota_concurrent=1))
    with pytest.raises(QuotaExceeded):
        await suspension.sandbox_fork(sandbox=running, actor=home.member)
    assert await in_thread(Sandbox.objects.count) == 2


@pytest.mark.parametrize("error", [HostFull("no disk"), MachineGone("it ended")])
async def test_fork_that_fails(home: Team, node: FakeNode, error: Any) -> None:
    """The caller hears why, the original runs on, and no workspace is left that never had a disk."""
    workspace = await booted(home)
    node.fail_next("machine_fork", error)
    with pytest.raises(Unavailable, match=error.detail):
        await suspension.sandbox_fork(sandbox=workspace, actor=home.member)
    assert [row.pk for row in await in_thread(sandbox_list, actor=home.member)] == [workspace.pk]
    assert (await in_thread(limits.in_use, home.organization)).sandboxes == 1


async def test_silent_node(home: Team, node: FakeNode) -> None:
    """Nothing is concluded from a node that does not answer: the reconciler settles it later."""
    workspace = await booted(home)
    node.fail_next("machine_suspend", NodeUnreachable("gone"))
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    assert workspace.state == SandboxState.SUSPENDING
