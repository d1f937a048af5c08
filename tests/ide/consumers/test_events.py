"""Pages hear what happens in their organization, and in no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser
from django.test import AsyncClient

from ide.consumers.events import EventsConsumer
from sandboxes.database import in_thread
from sandboxes.models import Membership, User
from tests import factories
from tests.factories import Team


def line(user: Any, organization: str) -> WebsocketCommunicator:
    wire = WebsocketCommunicator(EventsConsumer.as_asgi(), f"/ws/events?organization={organization}")
    wire.scope["user"] = user
    return wire


async def test_a_change_is_heard_in_its_organization_only(home: Team, other: Team) -> None:
    wires = {}
    for team in (home, other):
        wire = line(await User.objects.aget(email=f"viewer@{team.organization.slug}.example"), team.organization.slug)
        assert (await wire.connect())[0]
        assert (await wire.receive_json_from(timeout=10))["kind"] == "ready"
        wires[team.organization.slug] = wire
    sandbox = await in_thread(factories.sandbox, home, kind="workspace", name="Tides")

    heard = await wires["home"].receive_json_from(timeout=10)
    assert (heard["kind"], heard["payload"]["id"], heard["payload"]["name"]) == ("sandbox", sandbox.public_id, "Tides")
    assert await wires["other"].receive_nothing(timeout=1)
    for wire in wires.values():
        await wire.disconnect()


async def test_a_ping_is_answered(home: Team) -> None:
    wire = line(await User.objects.aget(email=f"member@{home.organization.slug}.example"), "home")
    assert (await wire.connect())[0]
    await wire.receive_json_from(timeout=10)
    await wire.send_to(text_data="ping")
    assert await wire.receive_from(timeout=10) == "pong"
    await wire.disconnect()


async def test_strangers_hear_nothing(home: Team, other: Team) -> None:
    outsider = await User.objects.aget(email=f"owner@{other.organization.slug}.example")
    for person, code in ((AnonymousUser(), 4401), (outsider, 4403)):
        wire = line(person, "home")
        assert (await wire.connect())[0]
        assert await wire.receive_output(timeout=10) == {"type": "websocket.close", "code": code}


async def test_a_removed_member_hears_nothing_more(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """His open page is closed; the page of somebody who stays is not."""
    monkeypatch.setattr("ide.auth.RECHECK_SECONDS", 0.1)
    leaving = await User.objects.aget(email=f"member@{home.organization.slug}.example")
    staying = await User.objects.aget(email=f"viewer@{home.organization.slug}.example")
    wires = [line(user, "home") for user in (leaving, staying)]
    for wire in wires:
        assert (await wire.connect())[0]
        assert (await wire.receive_json_from(timeout=10))["kind"] == "ready"
    await Membership.objects.filter(user=leaving).adelete()

    assert await wires[0].receive_output(timeout=10) == {"type": "websocket.close", "code": 4403}
    await wires[1].send_to(text_data="ping")
    assert await wires[1].receive_from(timeout=10) == "pong"
    await wires[1].disconnect()


@pytest.mark.parametrize("ended", ["signed out", "other password"])
async def test_a_session_that_ended_hears_nothing_more(home: Team, monkeypatch: pytest.MonkeyPatch, ended: str) -> None:
    """The code lets the page connect again, because another tab may have signed in anew; another session goes on."""
    monkeypatch.setattr("ide.auth.RECHECK_SECONDS", 0.1)
    person = await User.objects.aget(email=f"member@{home.organization.slug}.example")
    clients = [AsyncClient() for _ in range(2)]
    wires = []
    for client in clients:
        await client.aforce_login(person, backend="django.contrib.auth.backends.ModelBackend")
        wire = line(person, "home")
        wire.scope["session"] = await client.asession()
        assert (await wire.connect())[0]
        assert (await wire.receive_json_from(timeout=10))["kind"] == "ready"
        wires.append(wire)
    if ended == "signed out":
        await clients[0].post("/logout")
    else:
        await clients[1].post("/password", {"new_password1": "tides come and go", "new_password2": "tides come and go"})

    assert await wires[0].receive_output(timeout=10) == {"type": "websocket.close", "code": 1012}
    if ended == "signed out":
        await wires[1].send_to(text_data="ping")
        assert await wires[1].receive_from(timeout=10) == "pong"
        await wires[1].disconnect()
    else:
        # Its key is another one now: the page's next connection comes with that.
        assert await wires[1].receive_output(timeout=10) == {"type": "websocket.close", "code": 1012}
        again = line(person, "home")
        again.scope["session"] = await clients[1].asession()
        assert (await again.connect())[0]
        assert (await again.receive_json_from(timeout=10))["kind"] == "ready"
        assert await again.receive_nothing(timeout=1)
        await again.disconnect()


async def test_a_page_whose_events_dry_up_is_told(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """When events can no longer be followed the socket is closed, so that the page connects again."""

    async def broken(organization_id: int) -> AsyncIterator[Any]:
        raise RuntimeError("the tail broke")
        yield

    monkeypatch.setattr("sandboxes.events.subscribe", broken)
    wire = line(await User.objects.aget(email=f"viewer@{home.organization.slug}.example"), "home")
    assert (await wire.connect())[0]
    assert await wire.receive_output(timeout=10) == {"type": "websocket.close", "code": 1011}
