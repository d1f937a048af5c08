"""Pushes what happens in an organization to a signed-in page, as long as it listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

from ide.auth import NOT_ALLOWED, revoked
from sandboxes import events
from sandboxes.database import in_thread
from sandboxes.errors import DomainError
from sandboxes.permissions import Actor, require
from sandboxes.services import accounts

SIGNED_OUT, FAILED = 4401, 1011

type Receive = Callable[[], Awaitable[dict[str, Any]]]
type Send = Callable[[dict[str, Any]], Awaitable[None]]


class EventsConsumer:
    """`/ws/events?organization=slug`: text frames `{"kind", "payload", "cursor"}`; `ping` is answered by `pong`."""

    @classmethod
    def as_asgi(cls) -> Any:
        """The application; it keeps nothing between connections."""
        return cls()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One connection, to its end."""
        await receive()
        await send({"type": "websocket.accept"})
        user = scope["user"]
        if not user.is_authenticated:
            await send({"type": "websocket.close", "code": SIGNED_OUT})
            return
        slug = parse_qs(scope["query_string"].decode("latin-1")).get("organization", [""])[0]
        try:
            actor = await in_thread(_viewer, user, slug)
        except DomainError:
            await send({"type": "websocket.close", "code": NOT_ALLOWED})
            return
        listen = asyncio.ensure_future(_listen(receive, send))
        push = asyncio.ensure_future(_push(actor.organization_id, send))
        expelled = asyncio.ensure_future(revoked(scope, actor, "sandbox.view"))
        tasks = (listen, push, expelled)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not listen.cancelled():
            return
        # A page whose events have dried up must hear of it: it connects again, and asks for everything anew
        await send({"type": "websocket.close", "code": FAILED if expelled.cancelled() else expelled.result()})
        if not push.cancelled() and (failure := push.exception()) is not None:
            raise failure


def _viewer(user: Any, slug: str) -> Actor:
    actor = accounts.actor_for_user(user=user, organization=slug)
    require(actor, "sandbox.view", actor.organization_id)
    return actor


async def _listen(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "ping":
            await send({"type": "websocket.send", "text": "pong"})


async def _push(organization_id: int, send: Send) -> None:
    async with aclosing(events.subscribe(organization_id)) as happenings:  # type: ignore[type-var]
        async for event in happenings:
            await send({"type": "websocket.send", "text": json.dumps(event)})
