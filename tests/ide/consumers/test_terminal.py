"""A page's terminal reaches a real agent's shell; strangers and stopped machines get an answer, not a wait."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser
from django.utils import timezone

from ide.consumers.terminal import TerminalConsumer
from sandboxes.database import in_thread
from sandboxes.models import Membership, Sandbox, User
from sandboxes.services import lifecycle, suspension
from sandboxes.services.activity import activity
from tests import factories
from tests.factories import Team

PATIENCE = 30


class Line:
    """One connection of one person to one sandbox's terminals."""

    def __init__(self, sandbox: str, user: Any) -> None:
        self.wire = WebsocketCommunicator(TerminalConsumer.as_asgi(), f"/ws/sandboxes/{sandbox}/terminal")
        self.wire.scope["user"] = user
        self.wire.scope["url_route"] = {"kwargs": {"sandbox": sandbox}}
        self.shown = b""

    async def __aenter__(self) -> Line:
        assert (await self.wire.connect())[0]
        return self

    async def __aexit__(self, kind: object, *_error: object) -> None:
        # A wait that failed has cancelled the application already.
        if kind is None and not self.wire.future.done():
            await self.wire.disconnect(timeout=PATIENCE)

    async def say(self, **message: Any) -> None:
        await self.wire.send_to(text_data=json.dumps(message))

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of that kind; output on the way is kept."""
        while True:
            frame = await self.wire.receive_output(timeout=PATIENCE)
            if frame["type"] == "websocket.close":
                pytest.fail(f"closed with {frame.get('code')} instead of {kind}")
            if frame.get("bytes"):
                self.shown += frame["bytes"]
            elif (message := json.loads(frame["text"]))["type"] == kind:
                found: dict[str, Any] = message
                return found

    async def see(self, text: bytes) -> None:
        """Until the output has that text."""
        while text not in self.shown:
            frame = await self.wire.receive_output(timeout=PATIENCE)
            assert frame["type"] == "websocket.send", frame
            self.shown += frame.get("bytes") or b""

    async def closed(self) -> int:
        """The code it is closed with."""
        while (frame := await self.wire.receive_output(timeout=PATIENCE))["type"] != "websocket.close":
            pass
        return int(frame["code"])


@pytest.fixture
async def running(node: Any, home: Team) -> Sandbox:
    sandbox = await in_thread(factories.sandbox, home, kind="workspace")
    return await lifecycle.sandbox_boot(sandbox=sandbox)


@pytest.fixture
async def member(home: Team) -> User:
    return await User.objects.aget(email=f"member@{home.organization.slug}.example")


async def test_a_shell_is_opened_left_and_found_again_where_it_was(running: Sandbox, member: User) -> None:
    """The second connection goes on at the offset of the first, with nothing twice and nothing lost."""
    async with Line(running.public_id, member) as first:
        await first.say(type="open", cols=80, rows=24)
        attached = await first.hear("attached")
        await first.wire.send_to(bytes_data=b"KEPT=it-is-me; echo fir''st\n")
        assert (await first.hear("input"))["bytes"] > 0
        await first.see(b"first\r\n")
        offset = attached["offset"] + len(first.shown)

    async with Line(running.public_id, member) as second:
        await second.say(type="list")
        [entry] = (await second.hear("terminals"))["terminals"]
        assert (entry["id"], entry["running"]) == (attached["id"], True)
        await second.say(type="attach", id=attached["id"], offset=offset, cols=80, rows=24)
        assert (await second.hear("attached"))["offset"] == offset
        await second.wire.send_to(bytes_data=b"echo $KEPT; exit 7\n")
        await second.see(b"it-is-me\r\n")
        assert b"first\r\n" not in second.shown
        assert (await second.hear("exit"))["status"] == 7
        assert await second.closed() == 1000


async def test_a_terminal_that_is_not_there_is_said_so(running: Sandbox, member: User) -> None:
    """A page that comes back after the agent was started anew reads that its terminal has ended, and stays away."""
    async with Line(running.public_id, member) as line:
        await line.say(type="attach", id="nothing", cols=80, rows=24)
        error = await line.hear("error")
        assert (error["code"], error["message"]) == ("no_terminal", "This terminal has ended.")
        assert error["retry"] is False
        assert await line.closed() == 4404


async def test_a_directory_that_is_not_there_is_no_terminal_that_ended(running: Sandbox, member: User) -> None:
    async with Line(running.public_id, member) as line:
        await line.say(type="open", cols=80, rows=24, cwd="/no/such/place")
        error = await line.hear("error")
        assert error["code"] == "guest_failed"
        assert "No such file" in error["message"]


async def test_a_page_that_does_not_acknowledge_holds_a_bounded_amount(running: Sandbox, member: User) -> None:
    """An endless output stops at a mebibyte until the page says it has drawn it."""
    async with Line(running.public_id, member) as line:
        await line.say(type="open", cols=80, rows=24)
        await line.hear("attached")
        await line.wire.send_to(bytes_data=b"yes\n")

        async def drain() -> None:
            while True:
                frame = await line.wire.receive_output(timeout=2)
                line.shown += frame.get("bytes") or b""

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(drain(), PATIENCE)
        assert len(line.shown) == 1_048_576


async def test_strangers_and_lookers_get_no_terminal(running: Sandbox, home: Team, other: Team) -> None:
    """Signed out, in another organization, and a viewer: each is closed with the code that says so."""
    outsider = await User.objects.aget(email=f"owner@{other.organization.slug}.example")
    viewer = await User.objects.aget(email=f"viewer@{home.organization.slug}.example")
    for person, code in ((AnonymousUser(), 4401), (outsider, 4404), (viewer, 4403)):
        line = Line(running.public_id, person)
        assert (await line.wire.connect())[0]
        assert await line.closed() == code


async def test_a_stopped_machine_answers_with_the_reason(running: Sandbox, home: Team, member: User) -> None:
    await lifecycle.sandbox_stop(sandbox=running, actor=home.member)
    async with Line(running.public_id, member) as line:
        await line.say(type="open", cols=80, rows=24)
        error = await line.hear("error")
        assert error["code"] == "not_running"
        assert "stopped on request" in error["message"]
        assert error["retry"] is False


async def test_a_removed_member_loses_his_terminal(
    running: Sandbox, home: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open shell does not outlive the membership that opened it."""
    monkeypatch.setattr("ide.auth.RECHECK_SECONDS", 0.1)
    member = await User.objects.aget(email=f"member@{home.organization.slug}.example")
    async with Line(running.public_id, member) as page:
        await page.say(type="open", cols=80, rows=24)
        await page.hear("attached")
        await Membership.objects.filter(user=member).adelete()
        assert await page.closed() == 4403


async def test_a_suspend_is_told_and_the_terminal_goes_on(running: Sandbox, home: Team, member: User) -> None:
    """The page hears `suspended` and need not try again; it comes back to the same shell once that was resumed."""
    async with Line(running.public_id, member) as page:
        await page.say(type="open", cols=80, rows=24)
        terminal = (await page.hear("attached"))["id"]
        await page.wire.send_to(bytes_data=b"KEPT=it-is-me; echo fir''st\n")
        await page.see(b"first\r\n")
        await suspension.sandbox_suspend(sandbox=running, actor=home.member, beside=False)
        error = await page.hear("error")
        assert (error["code"], error["retry"]) == ("suspended", False)
        assert "suspended on request by member@home.example" in error["message"]
        assert await page.closed() == 4404

    async with Line(running.public_id, member) as page:
        await page.say(type="attach", id=terminal, cols=80, rows=24)
        assert (await page.hear("error"))["code"] == "suspended"
    await in_thread(running.refresh_from_db)
    assert running.state == "suspended"

    await suspension.sandbox_wake(sandbox=running, actor=home.member)
    async with Line(running.public_id, member) as page:
        await page.say(type="attach", id=terminal, cols=80, rows=24)
        await page.hear("attached")
        await page.wire.send_to(bytes_data=b"echo $KEPT\n")
        await page.see(b"it-is-me\r\n")


async def test_terminals_are_activity(running: Sandbox, member: User) -> None:
    """What is typed and what is shown keeps a workspace awake; a terminal that is merely open does not."""
    async with Line(running.public_id, member) as page:
        await page.say(type="open", cols=80, rows=24)
        await page.hear("attached")
        await page.wire.send_to(bytes_data=b"echo fir''st\n")
        await page.see(b"first\r\n")
        await activity.flush()
        await in_thread(running.refresh_from_db)
        used = running.active_at
        assert used is not None
        await page.say(type="ping")
        await page.hear("pong")
        await page.say(type="resize", cols=90, rows=20)
        await activity.flush()
    await in_thread(running.refresh_from_db)
    assert (running.active_at - used).total_seconds() < 1  # type: ignore[operator]


async def test_attaching_again_is_no_activity(running: Sandbox, member: User) -> None:
    """What a reconnect shows again, and that a terminal has ended, keeps nothing awake."""
    async with Line(running.public_id, member) as page:
        await page.say(type="open", cols=80, rows=24)
        terminal = (await page.hear("attached"))["id"]
        await page.wire.send_to(bytes_data=b"echo fir''st; exec sleep 2\n")
        await page.see(b"first\r\n")
    await activity.flush()
    before = timezone.now() - timedelta(hours=1)
    await Sandbox.objects.filter(pk=running.pk).aupdate(active_at=before)
    async with Line(running.public_id, member) as page:
        await page.say(type="attach", id=terminal, cols=80, rows=24)
        await page.hear("exit")
        assert b"first\r\n" in page.shown
    await activity.flush()
    await in_thread(running.refresh_from_db)
    assert running.active_at == before
