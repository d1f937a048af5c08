"""A sandbox's life on a node in memory: every end has a reason, an actor and a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from sandboxes.background import spawn
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from sandboxes.models import AuditEntry, Event, Kind, Organization, Sandbox, SandboxState, StopCause, TimelineEntry
from sandboxes.permissions import SYSTEM
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import changes, creation, lifecycle, streams, suspension
from sandboxes.services.creation import Wanted
from sandboxes.states import Move
from tests import factories
from tests.factories import Team
from vm.api import MachineInfo, MachineSpec, MachineState, StopReason
from vm.errors import HostFull, NodeUnreachable
from vm.fake import FakeNode


async def booted(team: Team, **wanted: Any) -> Sandbox:
    return await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team, **wanted))


async def test_boot(home: Team, node: FakeNode) -> None:
    """A created sandbox is queued, boots, and runs; each step is an event, the creation is audited."""
    sandbox = await booted(home, name="demo")
    assert sandbox.state == SandboxState.RUNNING
    assert sandbox.started_at is not None
    kinds = await in_thread(lambda: [e.payload["state"] for e in Event.objects.order_by("id")])
    assert kinds[0] == "queued"
    assert kinds[-1] == "running"
    entry = await in_thread(lambda: AuditEntry.objects.get(action="sandbox.create"))
    assert (entry.actor, entry.target) == ("member@home.example", sandbox.public_id)


async def test_stop(home: Team, node: FakeNode) -> None:
    """A stop is written down with who asked and when; a sandbox's machine is forgotten with its disk and variables."""
    sandbox = await booted(home, env={"TOKEN": "of somebody"})
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.admin, beside=False)
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.REQUESTED)
    assert (sandbox.stopped_by, sandbox.machine_removed, sandbox.env) == ("admin@home.example", True, {})
    assert sandbox.stopped_at is not None
    assert await node.machine_list() == []


async def test_whoever_is_let_in_finds_a_row_that_runs(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the node has a machine at once, as from its pool."""
    start = node.machine_start

    async def at_once(spec: MachineSpec, **told: Any) -> MachineInfo:
        await start(spec, **told)
        return await node.machine_wait(spec.machine, timeout=30)

    monkeypatch.setattr(node, "machine_start", at_once)
    sandbox = await in_thread(factories.sandbox, home)
    asked = lifecycle.sandbox_boot_beside(sandbox=sandbox)
    await streams.guest_ready(sandbox=sandbox, asked=asked)
    row = await in_thread(Sandbox.objects.get, pk=sandbox.pk)
    assert row.state == SandboxState.RUNNING
    entries = TimelineEntry.objects.filter(sandbox=row, state=SandboxState.RUNNING)
    assert await in_thread(entries.count) == 1


async def test_its_variables(home: Team, node: FakeNode) -> None:
    """It knows its organization, as a Deno Sandbox does; what somebody sets by that name wins."""
    name = "DENO_DEPLOY_ORGANIZATION_ID"
    for given, found in (({}, home.organization.slug), ({name: "mine"}, "mine")):
        sandbox = await booted(home, env=given)
        async with await streams.guest_call(
            sandbox=sandbox, method="envGet", params={"key": name}, actor=SYSTEM
        ) as call:
            assert await call.reply() == found


async def test_what_it_may_reach_is_told_to_its_machine(home: Team, node: FakeNode) -> None:
    """Patterns go with the machine, absent and empty are kept apart, a fork has the same; a bad one makes no row."""
    listed = await booted(home, allow_net=["a.example:443"])
    assert list(node.policy(listed.machine).allow_net or ()) == ["a.example:443"]
    fork = await suspension.sandbox_fork(sandbox=listed, actor=home.member)
    assert fork.allow_net == ["a.example:443"]
    assert node.policy((await booted(home)).machine).allow_net is None
    assert node.policy((await booted(home, allow_net=[])).machine).allow_net == []
    with pytest.raises(Invalid, match="a URL") as refused:
        await booted(home, allow_net=["https://a.example"])
    assert refused.value.fields["field"] == "allow_net"


async def test_workspace_comes_back_on_its_disk(home: Team, node: FakeNode) -> None:
    """A stopped workspace keeps its disk and starts again on the same machine."""
    workspace = await booted(home, kind=Kind.WORKSPACE, env={"A": "b"})
    disk = node.disk(workspace.machine)
    disk.mkdir(exist_ok=True)
    (disk / "kept").touch()
    await lifecycle.sandbox_stop(sandbox=workspace, actor=home.member, beside=False)
    assert workspace.state == SandboxState.STOPPED
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    assert (workspace.stop_cause, workspace.stopped_at, workspace.env) == ("", None, {"A": "b"})
    await lifecycle.sandbox_boot(sandbox=workspace)
    assert workspace.state == SandboxState.RUNNING
    assert (node.disk(workspace.machine) / "kept").exists()


async def test_sandbox_does_not_come_back(home: Team, node: FakeNode) -> None:
    """Only a workspace can be started again."""
    sandbox = await booted(home)
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    with pytest.raises(Conflict):
        await in_thread(lifecycle.sandbox_start, sandbox=sandbox, actor=home.member)


async def test_delete(home: Team, node: FakeNode) -> None:
    """Deleting a running workspace stops it, removes its disk, and hides it."""
    workspace = await booted(home, kind=Kind.WORKSPACE)
    await lifecycle.sandbox_delete(sandbox=workspace, actor=home.member)
    assert workspace.state == SandboxState.DELETED
    with pytest.raises(NotFound):
        await in_thread(sandbox_get, actor=home.owner, public_id=workspace.public_id)


@pytest.mark.parametrize(
    ("error", "cause"), [(HostFull("no room"), StopCause.NO_CAPACITY), (NodeUnreachable("down"), StopCause.NO_CAPACITY)]
)
async def test_refused_start(home: Team, node: FakeNode, error: Any, cause: StopCause) -> None:
    """A host that cannot take it leaves a stopped row that says why."""
    node.fail_next("machine_start", error)
    sandbox = await booted(home)
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, cause)
    assert error.detail in sandbox.stop_detail


async def test_failed_boot(home: Team, node: FakeNode) -> None:
    """A machine that dies while it boots is told with the node's reason."""
    node.boot_delay = 30
    sandbox = await in_thread(factories.sandbox, home)
    booting = spawn(lifecycle.sandbox_boot(sandbox=sandbox), name="boot")
    while not any(info.state is MachineState.STARTING for info in await node.machine_list()):
        await asyncio.sleep(0.01)
    node.fail_boot(sandbox.machine, StopReason.DISK_FULL, "no space left")
    await booting
    assert (sandbox.state, sandbox.stop_cause, sandbox.stop_detail) == ("stopped", "disk_full", "no space left")


async def test_extension(home: Team, node: FakeNode) -> None:
    """A deadline is never shortened, never more than 30 minutes away, and never in the past."""
    now = timezone.now()
    sandbox = await booted(home, stop_at=now + timedelta(minutes=10))

    async def extend(by: timedelta) -> Any:
        return await in_thread(changes.sandbox_extend, sandbox=sandbox, actor=home.member, stop_at=timezone.now() + by)

    assert await extend(timedelta(minutes=1)) == now + timedelta(minutes=10)
    assert await extend(timedelta(minutes=20)) > now + timedelta(minutes=19)
    assert await extend(timedelta(days=1)) < timezone.now() + timedelta(minutes=30, seconds=1)
    with pytest.raises(Invalid):
        await extend(timedelta(seconds=-1))


async def test_a_keep_alive_is_one_entry_of_the_timeline(home: Team, node: FakeNode) -> None:
    """However often it extends; one that changes nothing is none, and neither is what another person did taken away."""
    sandbox = await booted(home, stop_at=timezone.now() + timedelta(minutes=1))

    def texts() -> list[tuple[str, str]]:
        found = sandbox.timeline.filter(text__startswith="Its deadline").order_by("id")
        return list(found.values_list("actor", "text"))

    async def extend(actor: Any, minutes: int) -> Any:
        at = timezone.now() + timedelta(minutes=minutes)
        return await in_thread(changes.sandbox_extend, sandbox=sandbox, actor=actor, stop_at=at)

    latest = [await extend(home.member, minutes) for minutes in (2, 3, 4, 3)]
    ((actor, text),) = await in_thread(texts)
    assert text == f"Its deadline is now {latest[2]:%Y-%m-%d %H:%M:%S} UTC"
    assert latest[3] == latest[2]
    await extend(home.admin, 5)
    assert [who for who, _text in await in_thread(texts)] == [actor, home.admin.label]


async def test_session_extension_promises_only(home: Team, node: FakeNode) -> None:
    """A session sandbox has no deadline, and gets none by an extension."""
    sandbox = await booted(home, session=True)
    at = timezone.now() + timedelta(seconds=10)
    assert await in_thread(changes.sandbox_extend, sandbox=sandbox, actor=home.member, stop_at=at) == at
    await in_thread(sandbox.refresh_from_db)
    assert sandbox.stop_at is None


def test_change(home: Team, other: Team) -> None:
    """Pages hear of it, the audit says who did it; viewers and other organizations' people do not do it."""
    sandbox = factories.sandbox(home, kind=Kind.WORKSPACE, name="Tides", labels={"team": "sea"})
    changes.sandbox_change(sandbox=sandbox, actor=home.member, name=" Waves ", labels=None)
    event = Event.objects.order_by("-id")[0]
    assert (event.kind, event.payload["name"], event.payload["labels"]) == ("sandbox", "Waves", {"team": "sea"})
    entry = AuditEntry.objects.get(action="sandbox.change")
    assert (entry.actor, entry.target, entry.detail) == ("member@home.example", sandbox.public_id, {"name": "Waves"})
    refused: list[tuple[Any, str, type[Exception]]] = [
        (home.viewer, "Mine", Forbidden),
        (other.owner, "Mine", NotFound),
        (home.owner, "x" * 101, Invalid),
        (home.owner, "a\x1b[2J", Invalid),
    ]
    for actor, name, error in refused:
        with pytest.raises(error):
            changes.sandbox_change(sandbox=sandbox, actor=actor, name=name, labels=None)
    sandbox.refresh_from_db()
    assert sandbox.name == "Waves"


def test_viewer_creates_nothing(home: Team) -> None:
    """A viewer is refused before anything is written."""
    with pytest.raises(Forbidden):
        creation.sandbox_create(wanted=Wanted(), actor=home.viewer)
    assert not Sandbox.objects.exists()


def test_quota(home: Team) -> None:
    """The organization's own limit counts, and other organizations' sandboxes do not."""
    Organization.objects.filter(pk=home.organization.pk).update(quota_concurrent=2)
    elsewhere = factories.team("elsewhere")
    factories.sandbox(elsewhere)
    factories.sandbox(home)
    factories.sandbox(home)
    with pytest.raises(QuotaExceeded):
        factories.sandbox(home)


def in_parallel(work: Callable[[], Any], count: int) -> list[Any]:
    """What `work` returned or raised in each of `count` threads that begin together."""
    results: list[Any] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        try:
            results.append(work())
        except Exception as error:
            results.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_quota_holds_in_a_race(home: Team) -> None:
    """Eight creates at once take exactly the three places there are."""
    Organization.objects.filter(pk=home.organization.pk).update(quota_concurrent=3)
    results = in_parallel(lambda: factories.sandbox(home), 8)
    assert sorted(type(result).__name__ for result in results) == ["QuotaExceeded"] * 5 + ["Sandbox"] * 3


def test_one_stop_wins_a_race(home: Team) -> None:
    """Of many stops at once one is written down, and its actor stays."""
    row = factories.row(home, state=SandboxState.RUNNING)
    moved = in_parallel(
        lambda: lifecycle.sandbox_move(
            sandbox=Sandbox.objects.get(pk=row.pk), move=Move.STOP, actor=home.admin, stop_cause="requested"
        ),
        6,
    )
    assert sorted(moved) == [False] * 5 + [True]
    assert AuditEntry.objects.filter(action="sandbox.stop").count() == 1


def test_a_cause_written_meanwhile_stays(home: Team) -> None:
    """Whoever read the row before a stop was written down and then sees the machine end does not overwrite why."""
    sandbox = factories.sandbox(home)
    stale = Sandbox.objects.get(pk=sandbox.pk)
    Sandbox.objects.filter(pk=sandbox.pk).update(
        state=SandboxState.STOPPING, stop_cause=StopCause.SESSION_ENDED, stopped_by="ada"
    )
    assert lifecycle.sandbox_ended(sandbox=stale, cause=StopCause.REQUESTED)
    assert (stale.stop_cause, stale.stopped_by) == (StopCause.SESSION_ENDED, "ada")
