"""The story of a sandbox: sentences for people, times between them, and an event for each."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import timeline
from sandboxes.database import in_thread
from sandboxes.errors import Invalid
from sandboxes.models import Event, Kind, Sandbox, SandboxState, TimelineEntry
from sandboxes.selectors.timeline import timeline_list
from sandboxes.services import lifecycle, limits
from tests import factories
from tests.factories import Team
from vm.api import Origin, StopReason
from vm.fake import FakeNode


async def story(sandbox: Sandbox, team: Team) -> list[dict[str, Any]]:
    return await in_thread(timeline_list, actor=team.viewer, sandbox=sandbox)


async def test_a_life(home: Team, node: FakeNode) -> None:
    """Created, run, stopped, started, deleted and restored: each with who, and how long it lasted."""
    workspace = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE))
    await lifecycle.sandbox_stop(sandbox=workspace, actor=home.admin, detail="for a test", beside=False)
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.owner)
    await lifecycle.sandbox_boot(sandbox=workspace)
    await lifecycle.sandbox_delete(sandbox=workspace, actor=home.owner)
    await in_thread(lifecycle.sandbox_restore, sandbox=workspace, actor=home.member)
    told = await story(workspace, home)
    texts = [entry["text"] for entry in told]
    assert texts[0] == "Created by member@home.example"
    assert "Being stopped: stopped on request by admin@home.example: for a test" in texts
    assert "Stopped on request by admin@home.example: for a test. Its disk is kept: start it to go on" in texts
    assert "Started by owner@home.example" in texts
    assert texts[-2].startswith("Deleted by owner@home.example; it can be restored until ")
    assert texts[-1] == "Restored by member@home.example: its disk is as it was"
    stopped = next(entry for entry in told if entry["state"] == "stopped")
    assert (stopped["cause"], stopped["actor"], stopped["detail"]) == (
        "requested",
        "admin@home.example",
        "for a test",
    )
    running = next(entry for entry in told if entry["state"] == "running")
    assert set(running["stages"]) == {"queue", "agent"}
    begins = [now["state"] != before["state"] for before, now in pairwise(told)]
    for entry, begin in zip(told[1:-1], begins, strict=False):
        assert (entry["duration_seconds"] is not None) == begin, entry
    assert told[-1]["duration_seconds"] is None


async def test_a_happening_does_not_end_what_goes_on(home: Team, node: FakeNode) -> None:
    """A sandbox that was extended while it ran has run from its start to its end, and that is a moment of it."""
    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE))
    await in_thread(timeline.record_happening, sandbox=sandbox, text="Something happened")
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.admin, beside=False)
    told = await story(sandbox, home)
    running = [entry for entry in told if entry["state"] == "running"]
    stopping = next(entry for entry in told if entry["state"] == "stopping")
    assert [entry["text"] for entry in running][1:] == ["Something happened"]
    lasted = datetime.fromisoformat(stopping["at"]) - datetime.fromisoformat(running[0]["at"])
    assert running[0]["duration_seconds"] == pytest.approx(lasted.total_seconds(), abs=0.002)
    assert running[1]["duration_seconds"] is None


async def test_each_entry_is_an_event(home: Team, node: FakeNode) -> None:
    """Pages that show the timeline need not ask again."""
    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    payloads = await in_thread(lambda: [e.payload for e in Event.objects.filter(kind="timeline").order_by("id")])
    told = await story(sandbox, home)
    assert [payload["text"] for payload in payloads] == [entry["text"] for entry in told]
    assert {payload["sandbox"] for payload in payloads} == {sandbox.public_id}
    assert set(payloads[0]) == {*told[0], "sandbox"}


async def test_a_fall_back_is_visible(home: Team, node: FakeNode) -> None:
    """Whoever waits longer than usual can read why."""
    sandbox = await in_thread(factories.sandbox, home)
    spec, _bundle = await in_thread(lifecycle.machine_wanted, sandbox)
    await node.machine_start(spec)
    info = await node.machine_wait(sandbox.machine, timeout=5)
    note = "the template could not be restored, so it was booted"
    info = replace(info, origin=Origin.COLD, note=note, stages={"boot": 2.0, "agent": 0.5})
    await in_thread(lifecycle.sandbox_observe, sandbox=sandbox, info=info)
    last = (await story(sandbox, home))[-1]
    assert last["text"] == "Started by a cold boot in 2.5 s. The template could not be restored, so it was booted"
    assert (last["stages"], sandbox.note) == ({"boot": 2.0, "agent": 0.5}, note)


async def test_reasons_of_the_host(home: Team, node: FakeNode) -> None:
    """An end nobody asked for is told in the host's words, with what is left."""
    workspace = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE))
    node.crash(workspace.machine, StopReason.HOST_OUT_OF_MEMORY, "qemu used 1400 MiB")
    await in_thread(lifecycle.sandbox_observe, sandbox=workspace, info=await node.machine_get(workspace.machine))
    last = (await story(workspace, home))[-1]
    assert last["text"] == (
        "The host ran out of memory and ended the machine: qemu used 1400 MiB. Its disk is kept: start it to go on"
    )
    assert (last["cause"], last["actor"]) == ("host_out_of_memory", "atoll")


def test_a_failed_move_tells_nothing(home: Team) -> None:
    """What did not happen is in no story."""
    workspace = factories.row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE)
    assert not lifecycle.sandbox_ended(sandbox=workspace, cause="deadline")  # type: ignore[arg-type]
    assert not TimelineEntry.objects.exists()


def test_lifetimes(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox has the organization's longest lifetime at most; without a limit it may have none."""
    soon, later = timedelta(minutes=29), timedelta(minutes=31)
    now = timezone.now()
    capped = factories.sandbox(home, stop_at=now + timedelta(days=1))
    silent = factories.sandbox(home)
    for sandbox in (capped, silent):
        assert now + soon < sandbox.stop_at < now + later  # type: ignore[operator]
    assert factories.sandbox(home, session=True).stop_at is None
    assert factories.sandbox(home, kind=Kind.WORKSPACE).stop_at is None
    with pytest.raises(Invalid, match="without a deadline"):
        factories.sandbox(home, unlimited=True)
    monkeypatch.setattr(limits, "max_lifetime", lambda organization: None)
    Sandbox.objects.all().delete()
    assert factories.sandbox(home, unlimited=True).stop_at is None
    assert factories.sandbox(home, stop_at=now + timedelta(days=90)).stop_at == now + timedelta(days=90)


def test_a_past_deadline_does_not_end_the_next_run(home: Team) -> None:
    """A workspace whose time was up can be started again; one that is to come still counts."""
    past, ahead = timezone.now() - timedelta(hours=1), timezone.now() + timedelta(hours=1)
    for stop_at, kept in ((past, None), (ahead, ahead)):
        workspace = factories.row(home, state=SandboxState.STOPPED, kind=Kind.WORKSPACE, stop_at=stop_at)
        assert lifecycle.sandbox_start(sandbox=workspace, actor=home.member).stop_at == kept
