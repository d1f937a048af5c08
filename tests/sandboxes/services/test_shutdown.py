"""Going down suspends what can go on later and stops the rest, within bounded time, and says how many of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from ide.management.commands.stop_all import said
from sandboxes import reconcile
from sandboxes.database import in_thread
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause
from sandboxes.services import lifecycle, shutdown, suspension
from tests import factories
from tests.factories import Team
from vm.api import MachineState
from vm.errors import HostFull, NodeUnreachable
from vm.fake import FakeNode


async def booted(team: Team, **wanted: Any) -> Sandbox:
    wanted = {"kind": Kind.WORKSPACE, **wanted}
    return await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team, **wanted))


async def test_all_to_rest(home: Team, node: FakeNode) -> None:
    """Workspaces and timed sandboxes are suspended, sessions are stopped, and what rested already is left alone."""
    workspace = await booted(home)
    timed = await booted(home, kind=Kind.SANDBOX, stop_at=timezone.now() + timedelta(minutes=5))
    session = await booted(home, kind=Kind.SANDBOX, session=True)
    rested = await booted(home)
    await suspension.sandbox_suspend(sandbox=rested, actor=home.member, beside=False)
    assert await shutdown.all_to_rest() == Counter(suspended=2, stopped=1)
    for sandbox, state in ((workspace, "suspended"), (timed, "suspended"), (session, "stopped")):
        await in_thread(sandbox.refresh_from_db)
        assert (sandbox.state, sandbox.stop_cause, sandbox.stop_detail) == (state, StopCause.HOST_SHUTDOWN, "")
    await in_thread(rested.refresh_from_db)
    assert rested.stop_cause == StopCause.REQUESTED


async def test_one_whose_agent_is_silent_keeps_its_memory(home: Team, node: FakeNode) -> None:
    """Nobody in it has to answer for that: stopped, it would lose what it has not written either."""
    workspace = await booted(home)
    node.lose(workspace.machine)
    await reconcile.reconcile()
    await in_thread(workspace.refresh_from_db)
    assert workspace.unresponsive
    assert await shutdown.all_to_rest() == Counter(suspended=1)
    assert (await node.machine_get(workspace.machine)).state is MachineState.SUSPENDED


async def test_memory_that_cannot_be_saved(home: Team, node: FakeNode) -> None:
    """The workspace is stopped instead, keeps its disk, and says why its memory is lost."""
    workspace = await booted(home)
    node.fail_next("machine_suspend", HostFull("no room"))
    assert await shutdown.all_to_rest() == Counter(stopped=1)
    await in_thread(workspace.refresh_from_db)
    assert (workspace.stop_cause, workspace.stop_detail) == (
        StopCause.HOST_SHUTDOWN,
        "its memory could not be saved",
    )
    assert (await node.machine_get(workspace.machine)).state is MachineState.STOPPED


async def test_memory_that_takes_too_long(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(shutdown, "SUSPEND_SECONDS", 0.1)

    async def slow(machine: str) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(node, "machine_suspend", slow)
    workspace = await booted(home)
    assert await shutdown.all_to_rest() == Counter(stopped=1)
    await in_thread(workspace.refresh_from_db)
    assert workspace.stop_detail == "saving its memory took too long"


async def test_one_that_is_coming_up(home: Team, node: FakeNode) -> None:
    """A workspace that starts is stopped; one that is resumed is waited for, for its memory is all there is of it."""
    workspace = await booted(home)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    node.boot_delay = 0.3
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member)
    starting = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    lifecycle.sandbox_boot_beside(sandbox=starting)
    assert await shutdown.all_to_rest() == Counter(suspended=1, stopped=1)
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.SUSPENDED


async def test_one_that_comes_up_slowly(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that takes longer than can be waited for is left to the next start, which has its memory as it was."""
    monkeypatch.setattr(shutdown, "COMING_SECONDS", 0.2)
    workspace = await booted(home)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    node.boot_delay = 60
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member)
    assert await shutdown.all_to_rest() == Counter(suspended=1)
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.RESUMING
    assert (await node.machine_get(workspace.machine)).state is not MachineState.STOPPED


async def test_silent_node(home: Team, node: FakeNode) -> None:
    """What cannot be reached is left as it is, to be settled by the next start."""
    await booted(home)
    node.go_down(NodeUnreachable("down"))
    assert await shutdown.all_to_rest() == Counter(running=1)


def test_command(home: Team, node: FakeNode) -> None:
    """The command prints the line of the supervisor."""
    asyncio.run(booted(home))
    out = StringIO()
    call_command("stop_all", stdout=out)
    assert out.getvalue() == "1 sandbox suspended\n"


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ({}, "0 sandboxes stopped"),
        ({"stopped": 1}, "1 sandbox stopped"),
        ({"suspended": 2, "stopped": 1}, "2 sandboxes suspended, 1 stopped"),
        ({"suspended": 1, "running": 1}, "1 sandbox suspended, 1 left running"),
    ],
)
def test_line(ends: dict[str, int], line: str) -> None:
    """Only what there was is named."""
    assert said(Counter(ends)) == line
