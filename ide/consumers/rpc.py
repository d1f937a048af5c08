"""The SDK's WebSockets: create and connect with a token; and the same calls for our own pages with a session cookie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from django.db import DatabaseError
from django.utils import timezone

from ide.auth import Scope, actor_of_scope, actor_of_session, header, revoked
from ide.errors import body_of, headers_of, status_of
from ide.rpc import methods
from ide.rpc.connection import Connection
from ide.rpc.envelope import Malformed
from ide.rpc.handshake import Dialect, decode_config, dialect_of
from ide.rpc.methods import UNNOTICED
from sandboxes import background, events
from sandboxes.database import in_thread
from sandboxes.errors import DomainError, NotFound, NotRunning, Suspended, Unavailable
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.sentences import state_reason
from sandboxes.services import creation, lifecycle, suspension
from sandboxes.services.creation import Wanted
from sandboxes.services.lifecycle import Asked
from sandboxes.services.mounts import when_free
from sandboxes.services.presence import presence
from sandboxes.states import ENDED, PAUSED

log = structlog.get_logger("atoll.sdk")

READY_SECONDS = 5.0
"""For which a handshake waits for the guest; calls wait for it after that."""
HANDSHAKE_SECONDS = 7.0
"""A handshake is answered so long after it began, ready or not, also where it waited for a volume first: the Python
client gives up after 10 s."""
GRACE_SECONDS = 5.0
"""For which a Python client's socket still answers after its sandbox ended, or its clean-up calls would raise."""


END_AGAIN_SECONDS = 1.0
"""After which a stop that the database refused is tried again; then twice as long, up to half a minute."""


class _Gone(Exception):
    """The client left before the handshake was answered."""


class Socket(ABC):
    """One WebSocket of the SDK's protocol, from its handshake to its close."""

    methods = methods.SDK
    unnoticed: frozenset[str] = frozenset()

    def __init__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._began = time.monotonic()
        self.trace = uuid.uuid4().hex
        self.sandbox: Sandbox | None = None

    @classmethod
    def as_asgi(cls) -> Any:
        """The ASGI application."""

        async def application(scope: Scope, receive: Any, send: Any) -> None:
            await cls(scope, receive, send).run()

        return application

    async def run(self) -> None:
        """Answer the handshake, then serve until either side ends."""
        await self._receive()
        try:
            connection = await self.open()
        except _Gone:
            return
        except DomainError as error:
            await self._refuse(error)
            return
        except Exception:
            # A close before the accept would be a bare 403; this is our fault and says so.
            await self._refuse(DomainError("the server failed"))
            raise
        try:
            await self._serve(connection)
        finally:
            # Not to be cut short: what a connection held must be let go.
            await asyncio.shield(background.spawn(self.closed(connection), name="socket closed"))

    @abstractmethod
    async def open(self) -> Connection:
        """Check who it is and what he wants. DomainError refuses."""

    async def closed(self, connection: Connection) -> None:
        """The client is gone."""
        await connection.release()

    def expelled_code(self, code: int) -> int:
        """What the SDKs are told when their token is good no more."""
        return 1008

    # -- pieces --------------------------------------------------------------------------------------------------------

    def dialect(self, config: Dialect | None = None) -> Dialect:
        """Which SDK this is."""
        return dialect_of(user_agent=header(self.scope, b"user-agent") or None, config=config)

    def connection(
        self,
        sandbox: Sandbox,
        actor: Actor,
        dialect: Dialect,
        wake: Callable[[], Awaitable[object]] | None = None,
        asked: Asked | None = None,
    ) -> Connection:
        """The state of this socket's calls."""
        self.sandbox = sandbox
        return Connection(
            sandbox=sandbox,
            actor=actor,
            dialect=dialect,
            methods=self.methods,
            send=self._text,
            unnoticed=self.unnoticed,
            wake=wake,
            asked=asked,
        )

    async def wait(self, connection: Connection) -> None:
        """Until the guest is ready, or for as long as a client waits for an answer. _Gone; Unavailable if it ended."""
        leaving = background.spawn(self._receive(), name="handshake")
        ready = connection.ready
        left = min(READY_SECONDS, max(0.0, self._began + HANDSHAKE_SECONDS - time.monotonic()))
        try:
            await asyncio.wait({leaving, ready}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if leaving.done() and not leaving.cancelled():
            raise _Gone
        if ready.done():
            try:
                ready.result()
            except NotRunning as error:
                raise Unavailable(error.message) from error

    async def _text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def _refuse(self, error: DomainError) -> None:
        await self._send(
            {
                "type": "websocket.http.response.start",
                "status": status_of(error),
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"x-deno-trace-id", self.trace.encode()),
                    *((name.lower().encode(), value.encode()) for name, value in headers_of(error).items()),
                ],
            }
        )
        await self._send({"type": "websocket.http.response.body", "body": json.dumps(body_of(error)).encode()})

    async def _serve(self, connection: Connection) -> None:
        headers = [
            (b"x-deno-sandbox-id", connection.sandbox.public_id.encode()),
            (b"x-deno-trace-id", self.trace.encode()),
        ]
        await self._send({"type": "websocket.accept", "headers": headers})
        reading = background.spawn(self._read(connection), name="socket reader")
        watching = background.spawn(self._watch(connection), name="socket watcher")
        expelled = background.spawn(revoked(self.scope, connection.actor, "sandbox.use"), name="socket access")
        try:
            await asyncio.wait({reading, watching, expelled}, return_when=asyncio.FIRST_COMPLETED)
            if expelled.done() and not reading.done():
                await self._expel(connection, reading, self.expelled_code(expelled.result()))
            elif watching.done() and not reading.done():
                await self._say_goodbye(connection, reading, watching.result())
            elif reading.done():
                reading.result()
        finally:
            reading.cancel()
            watching.cancel()
            expelled.cancel()

    async def _read(self, connection: Connection) -> None:
        while (message := await self._receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            if text is None:
                data = message.get("bytes") or b""
                text = data.decode("utf-8", "replace")
            try:
                await connection.receive(text)
            except Malformed as malformed:
                await self._send({"type": "websocket.close", "code": malformed.close, "reason": str(malformed)})
                return

    async def _watch(self, connection: Connection) -> str:
        """Why the sandbox ended, once it has."""
        sandbox = connection.sandbox
        async with contextlib.aclosing(events.subscribe(sandbox.organization_id)) as happenings:  # type: ignore[type-var]
            async for event in happenings:
                payload = event["payload"]
                if event["kind"] == "ready":
                    waking = connection.since is None
                    await in_thread(sandbox.refresh_from_db)
                    if sandbox.state in ENDED or (sandbox.state == SandboxState.SUSPENDED and not waking):
                        return state_reason(sandbox) or "the sandbox was stopped"
                elif event["kind"] == "timeline":
                    # Of states only the last is told, and it may be resumed already: what was open is gone all the same
                    suspended = payload["sandbox"] == sandbox.public_id and payload["state"] == SandboxState.SUSPENDED
                    if suspended and connection.since and payload["at"] > (events.timestamp(connection.since) or ""):
                        return str(payload["text"])
                elif event["kind"] == "sandbox" and payload["id"] == sandbox.public_id and payload["state"] in ENDED:
                    return str(payload["state_reason"] or "the sandbox was stopped")
        return "the server is being stopped"

    async def _expel(self, connection: Connection, reading: asyncio.Task[None], code: int) -> None:
        """No call gets in any more; what is open is answered, since a Python client would wait for ever."""
        connection.closing = True
        if connection.dialect is Dialect.PY:
            await connection.finish("credentials revoked")
        await self._send({"type": "websocket.close", "code": code, "reason": "credentials revoked"})
        await asyncio.wait({reading}, timeout=GRACE_SECONDS)

    async def _say_goodbye(self, connection: Connection, reading: asyncio.Task[None], reason: str) -> None:
        if connection.dialect is Dialect.PY:
            await connection.finish(reason)
            await asyncio.wait({reading}, timeout=GRACE_SECONDS)
        connection.closing = True
        if not reading.done():
            await self._send({"type": "websocket.close", "code": 1001, "reason": reason})
            await asyncio.wait({reading}, timeout=GRACE_SECONDS)


class CreateSocket(Socket):
    """`/api/v3/sandboxes/create`: makes a sandbox, and is the connection a session sandbox lives as long as."""

    async def open(self) -> Connection:
        """Check token and config, make the row once its volumes are free, boot; the guest gets what time is left."""
        actor = await actor_of_scope(self.scope)
        config = decode_config(header(self.scope, b"x-deno-sandbox-config"), now=timezone.now())
        wanted = Wanted(
            kind=Kind.SANDBOX,
            memory_mb=config.memory_mb,
            labels=config.labels,
            env=config.env,
            allow_net=config.allow_net,
            secrets=config.secrets,
            stop_at=config.stop_at,
            unlimited=config.unlimited,
            session=config.session,
            held_by=await presence.process() if config.session else None,
            volumes=config.volumes,
            root=config.root,
        )
        # A client may have stopped the sandbox that has them a moment ago
        sandbox = await when_free(lambda: in_thread(creation.sandbox_create, wanted=wanted, actor=actor))
        asked = lifecycle.sandbox_boot_beside(sandbox=sandbox)
        connection = self.connection(sandbox, actor, self.dialect(config.dialect), asked=asked)
        try:
            await self.wait(connection)
        except BaseException as error:
            # Nobody knows its id: it would run for nobody.
            cause = StopCause.SESSION_ENDED if isinstance(error, _Gone) else StopCause.REQUESTED
            await asyncio.shield(
                background.spawn(_end(sandbox, actor, cause, "nobody took it over"), name="end of a create")
            )
            await connection.release()
            raise
        return connection

    async def closed(self, connection: Connection) -> None:
        """A session sandbox ends with this connection."""
        sandbox = connection.sandbox
        try:
            await connection.release()
        finally:
            if sandbox.session:
                await _end(sandbox, connection.actor, StopCause.SESSION_ENDED)


async def _end(sandbox: Sandbox, actor: Actor, cause: StopCause, detail: str = "") -> None:
    """Stop what ends with its connection, however long the database is away.

    Nobody else would: this process lives, so the reconciler takes it for held.
    """
    pause = END_AGAIN_SECONDS
    while True:
        try:
            await lifecycle.sandbox_stop(sandbox=sandbox, actor=actor, cause=cause, detail=detail)
        except DatabaseError as error:
            log.warning("could not be stopped yet", sandbox=sandbox.public_id, error=str(error))
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, 30)


class ConnectSocket(Socket):
    """`/api/v3/sandbox/{id}/connect`: a further connection to a sandbox, which does not depend on it."""

    async def open(self) -> Connection:
        """Check token and sandbox, and resume a suspended one. One that is stopped is not found, as the SDKs expect."""
        actor = await actor_of_scope(self.scope)
        sandbox = await self.running(actor)
        if sandbox.state not in PAUSED:
            return self.connection(sandbox, actor, self.dialect())
        # Beside the handshake: its memory may still be being saved, for longer than a client waits.
        wake = partial(suspension.sandbox_wake, sandbox=sandbox, actor=actor, why="an SDK connected")
        connection = self.connection(sandbox, actor, self.dialect(), wake)
        try:
            await self.wait(connection)
        except BaseException:
            await connection.release()
            raise
        return connection

    async def running(self, actor: Actor) -> Sandbox:
        """The sandbox of this path, if it is not stopped."""
        public_id = self.scope["url_route"]["kwargs"]["sandbox"]
        sandbox = await in_thread(sandbox_get, actor=actor, public_id=public_id, action="sandbox.use")
        if sandbox.state in ENDED:
            reason = state_reason(sandbox)
            raise NotFound(f"the sandbox is {sandbox.state}" + (f": {reason}" if reason else ""))
        return sandbox


class BrowserSocket(ConnectSocket):
    """`/ws/sandboxes/{id}/rpc`: the same for a signed-in person's page."""

    methods = methods.BROWSER
    unnoticed = UNNOTICED

    async def open(self) -> Connection:
        """Check the session and the sandbox. Suspended for one that is: a page's reconnecting resumes nothing."""
        actor = await actor_of_session(self.scope, self.scope["url_route"]["kwargs"]["sandbox"])
        sandbox = await self.running(actor)
        if sandbox.state in PAUSED:
            raise Suspended(f"the sandbox is {state_reason(sandbox) or sandbox.state}: resume it to go on")
        return self.connection(sandbox, actor, Dialect.JS)

    def expelled_code(self, code: int) -> int:
        """Pages know our own codes."""
        return code


class NoSocket(Socket):
    """Every other path."""

    async def open(self) -> Connection:
        """Refuse."""
        raise NotFound("there is no WebSocket at this path")
