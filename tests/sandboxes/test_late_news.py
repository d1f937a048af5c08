"""What the node tells late of a resume or a start that came to nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from sandboxes import reconcile
from sandboxes.database import in_thread
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause, TimelineEntry
from sandboxes.services import lifecycle, suspension
from tests import factories
from tests.factories import Team
from vm.api import MachineState
from vm.fake import FakeNode


async def workspace_of(team: Team, **fields: object) -> Sandbox:
    """One that runs."""
    return await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team, kind=Kind.WORKSPACE, **fields))


@pytest.mark.parametrize("followed", [True, False], ids=["followed", "reconciled"])
async def test_a_resume_that_the_host_gives_up_later(home: Team, node: FakeNode, followed: bool) -> None:
    """It is suspended as before, says why once, and is not resumed again by itself."""
    workspace = await workspace_of(home)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    node.boot_places = 0  # it is accepted, and waits for its turn
    await in_thread(suspension.sandbox_resume, sandbox=workspace, actor=home.member)
    info = await suspension.sandbox_resume_begin(sandbox=workspace)
    assert info is not None
    node._set(workspace.machine, MachineState.SUSPENDED, detail="the host did not answer within 60 s")
    if followed:
        await lifecycle.sandbox_follow(sandbox=workspace, info=await node.machine_get(workspace.machine))
    for _ in range(2):
        await reconcile.reconcile()
    await in_thread(workspace.refresh_from_db)
    assert (workspace.state, workspace.note) == (
        SandboxState.SUSPENDED,
        "could not be resumed: the host did not answer within 60 s",
    )
    assert (await node.machine_get(workspace.machine)).state is MachineState.SUSPENDED
    count = TimelineEntry.objects.filter(sandbox=workspace, detail__contains="60 s").count
    assert await in_thread(count) == 1
    node.boot_places = 2
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert (workspace.state, workspace.note) == (SandboxState.RUNNING, "")


async def test_a_start_whose_process_died(home: Team, node: FakeNode) -> None:
    """Its cause is that, not the stop of the run before; a fork that once ran stays and can be started."""
    original = await workspace_of(home)
    fork = await suspension.sandbox_fork(sandbox=original, actor=home.member)
    following = [task for task in asyncio.all_tasks() if task.get_name() == f"fork {fork.public_id}"]
    await asyncio.gather(*following)
    await lifecycle.sandbox_stop(sandbox=fork, actor=home.member, beside=False)
    await in_thread(lifecycle.sandbox_start, sandbox=fork, actor=home.member)
    long_ago = timezone.now() - timedelta(minutes=5)
    await in_thread(Sandbox.objects.filter(pk=fork.pk).update, state_since=long_ago)
    machine = node._machines[fork.machine]
    machine.info = replace(machine.info, since=(long_ago - timedelta(minutes=1)).timestamp())
    await reconcile.reconcile()
    await in_thread(fork.refresh_from_db)
    assert (fork.state, fork.stop_cause) == (SandboxState.STOPPED, StopCause.CREATE_DIED)
    await in_thread(lifecycle.sandbox_start, sandbox=fork, actor=home.member)
    await lifecycle.sandbox_boot(sandbox=fork)
    assert fork.state == SandboxState.RUNNING
