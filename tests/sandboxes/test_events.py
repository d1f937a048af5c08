"""What happens in an organization reaches whoever listens there, and nobody else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from sandboxes import events
from sandboxes.database import in_thread
from tests import factories
from tests.factories import Team


async def next_of(happenings: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        event: dict[str, Any] = await anext(happenings)
        return event


async def test_subscriber_hears_its_organization_only(home: Team, other: Team) -> None:
    """After `ready` every change of the organization arrives, and none of another's."""
    async with aclosing(events.subscribe(home.organization.pk)) as happenings:  # type: ignore[type-var]
        assert (await next_of(happenings))["kind"] == "ready"
        await in_thread(factories.sandbox, other)
        mine = await in_thread(factories.sandbox, home)
        event = await next_of(happenings)
    assert (event["kind"], event["payload"]["id"], event["payload"]["state"]) == ("sandbox", mine.public_id, "queued")


async def test_old_events_are_not_repeated(home: Team) -> None:
    """What happened before is the page's first reading, not an event."""
    await in_thread(factories.sandbox, home)
    async with aclosing(events.subscribe(home.organization.pk)) as happenings:  # type: ignore[type-var]
        await next_of(happenings)
        second = await in_thread(factories.sandbox, home)
        assert (await next_of(happenings))["payload"]["id"] == second.public_id


def test_a_slow_listener_holds_little() -> None:
    """Events of one thing replace each other, and beyond the bound all are replaced by one `ready`."""
    listener = events._Listener(1)
    for cursor in range(10):
        listener.put({"cursor": cursor, "kind": "sandbox", "payload": {"id": "a"}})
    assert [event["cursor"] for event in listener.waiting.values()] == [9]
    for cursor in range(events.BACKLOG + 5):
        listener.put({"cursor": cursor, "kind": "sandbox", "payload": {"id": str(cursor)}})
    assert next(iter(listener.waiting.values()))["kind"] == "ready"
    assert len(listener.waiting) < 20
