"""Another data directory than before is not taken for machines that are lost."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import AsyncClient
from django.utils import timezone

from ide.management.commands import doctor
from sandboxes import reconcile
from sandboxes.database import in_thread
from sandboxes.errors import Unavailable
from sandboxes.models import Event, HostData, Kind, Organization, Sandbox, SandboxState, StopCause
from sandboxes.services import creation, lifecycle, suspension
from sandboxes.services.creation import Wanted
from sandboxes.services.host_data import EXPLAINED, host_data_trouble
from sandboxes.services.spending import spending_enforce
from sandboxes.services.volumes import volumes_settle
from tests import factories
from tests.factories import Team
from vm.api import MachineInfo
from vm.errors import MachineGone
from vm.fake import FakeNode
from vm.host.preflight import Level


@pytest.fixture
async def workspace(home: Team, node: FakeNode) -> Sandbox:
    """A running workspace, of a node that was seen before."""
    sandbox = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await lifecycle.sandbox_boot(sandbox=sandbox)
    await reconcile.reconcile()
    await in_thread(sandbox.refresh_from_db)
    assert sandbox.state == SandboxState.RUNNING
    return sandbox


@pytest.fixture
def unmounted(workspace: Sandbox, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> str:
    """The node was restarted on an empty data directory; the tag of the right one."""

    async def nothing() -> list[MachineInfo]:
        return []

    monkeypatch.setattr(node, "machine_list", nothing)
    tag, node.data_tag = node.data_tag, "f" * 32
    return tag


def _make_old() -> None:
    """Rows that are newer than a moment are left alone anyway."""
    for row in Sandbox.objects.all():
        Sandbox.objects.filter(pk=row.pk).update(state_since=row.state_since - timedelta(minutes=5))


async def test_nothing_is_lost_while_another_directory_is_there(
    workspace: Sandbox, unmounted: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row stays as it is, pages and doctor are told once, and all goes on when the right one is back."""
    await in_thread(_make_old)
    for _ in range(3):
        await reconcile.reconcile()
        await volumes_settle()
    await in_thread(workspace.refresh_from_db)
    assert (workspace.state, workspace.machine_removed) == (SandboxState.RUNNING, False)
    assert await in_thread(host_data_trouble) == EXPLAINED
    told = await in_thread(lambda: list(Event.objects.filter(kind="host").values_list("payload", flat=True)))
    assert told == [{"trouble": EXPLAINED}]

    monkeypatch.undo()
    node.data_tag = unmounted
    await reconcile.reconcile()
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.RUNNING
    assert await in_thread(host_data_trouble) == ""
    last = await in_thread(lambda: Event.objects.filter(kind="host").latest("id").payload)
    assert last == {"trouble": ""}


async def test_strays_of_another_directory_are_left_alone(home: Team, workspace: Sandbox, node: FakeNode) -> None:
    """Machines of the other directory that no row names may be somebody else's: they run on."""
    await in_thread(Sandbox.objects.all().delete)
    node.data_tag = "f" * 32
    await reconcile.reconcile()
    assert (await node.machine_get(workspace.machine)).state == "ready"


async def test_nothing_is_started_beside_the_right_directory(
    home: Team, workspace: Sandbox, unmounted: str, node: FakeNode
) -> None:
    """It would begin with an empty disk; what a user does meanwhile takes no machine for lost either."""
    await reconcile.reconcile()
    with pytest.raises(Unavailable, match="data directory"):
        await in_thread(creation.sandbox_create, wanted=Wanted(), actor=home.member)
    node.crash(workspace.machine)
    await node.machine_forget(workspace.machine)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.SUSPENDING


@pytest.mark.parametrize("kind", list(Kind))
async def test_stops_wait_for_the_right_directory(
    home: Team, workspace: Sandbox, unmounted: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """A stop of what the other directory does not know is no end, and nothing of it is taken for removed."""

    async def unknown(machine: str, **_: object) -> MachineInfo:
        raise MachineGone(machine)

    await in_thread(Sandbox.objects.update, kind=kind)
    ended = await in_thread(factories.sandbox, home, kind=Kind.SANDBOX)
    await in_thread(Sandbox.objects.filter(pk=ended.pk).update, state=SandboxState.STOPPED)
    await reconcile.reconcile()
    monkeypatch.setattr(node, "machine_stop", unknown)
    monkeypatch.setattr(node, "machine_forget", unknown)
    await in_thread(workspace.refresh_from_db)
    await lifecycle.sandbox_stop(sandbox=workspace, actor=home.member, beside=False)
    await lifecycle.sandbox_clean(sandbox=ended)
    for row in (workspace, ended):
        await in_thread(row.refresh_from_db)
    assert (workspace.state, workspace.machine_removed) == (SandboxState.STOPPING, False)
    assert (ended.state, ended.machine_removed) == (SandboxState.STOPPED, False)

    monkeypatch.undo()
    node.data_tag = unmounted
    # A stop that is as young as this one is left to whoever began it
    await in_thread(Sandbox.objects.filter(pk=workspace.pk).update, state_since=timezone.now() - timedelta(minutes=1))
    await reconcile.reconcile()
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.STOPPED
    assert workspace.machine_removed == (kind == Kind.SANDBOX)


async def test_deadlines_and_caps_wait_for_the_right_directory(
    home: Team, workspace: Sandbox, unmounted: str, node: FakeNode
) -> None:
    """What cannot be ended now is left as it is until it can."""
    await reconcile.reconcile()
    await in_thread(Sandbox.objects.update, stop_at=timezone.now() - timedelta(minutes=1))
    await in_thread(Organization.objects.update, spending_cap=0)
    await reconcile.expire()
    await spending_enforce()
    await in_thread(workspace.refresh_from_db)
    assert workspace.state == SandboxState.RUNNING


async def test_a_queued_one_is_not_started_on_another_directory(
    home: Team, workspace: Sandbox, unmounted: str, node: FakeNode
) -> None:
    """One that was queued just before would begin with an empty disk: it ends, and says why."""
    queued = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE)
    await reconcile.reconcile()
    await lifecycle.sandbox_boot(sandbox=queued)
    assert (queued.state, queued.stop_cause, queued.stop_detail) == ("stopped", StopCause.NO_CAPACITY, EXPLAINED)
    with pytest.raises(MachineGone):
        await node.machine_get(queued.machine)


async def test_an_administrator_adopts_the_new_directory(workspace: Sandbox, unmounted: str) -> None:
    """Then what it does not have is lost, and says so."""
    with pytest.raises(CommandError, match="is the one that"):
        await in_thread(call_command, "adopt-data", stdout=StringIO())
    await in_thread(_make_old)
    await reconcile.reconcile()
    await in_thread(call_command, "adopt-data", stdout=StringIO())
    await reconcile.reconcile()
    await in_thread(workspace.refresh_from_db)
    assert (workspace.state, workspace.stop_cause) == (SandboxState.STOPPED, StopCause.MACHINE_LOST)
    known = await in_thread(HostData.objects.get)
    assert (known.tag, known.other) == ("f" * 32, "")


async def test_health_and_doctor_say_so(
    workspace: Sandbox, unmounted: str, async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web process goes on serving, and says what is wrong; the doctor, who opens no database, repeats it."""
    await reconcile.reconcile()
    answer = await async_client.get("/healthz")
    assert (answer.status_code, answer.content.decode()) == (200, f"ok\nhost: {EXPLAINED}\n")
    monkeypatch.setattr(doctor, "health", lambda _env: answer.content.decode())
    (finding,) = doctor._data()
    assert (finding.level, finding.seen) == (Level.WARN, EXPLAINED)
    monkeypatch.setattr(doctor, "health", lambda _env: "ok\n")
    assert [finding.level for finding in doctor._data()] == [Level.OK]
