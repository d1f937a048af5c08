"""One SDK connection: takes its messages, runs its calls beside each other, and bounds what they may hold."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from ide import errors
from ide.rpc import envelope
from ide.rpc.envelope import Failure, InvalidParams, Malformed, Notification, OperationFailed, Request
from ide.rpc.handshake import Dialect
from ide.rpc.incoming import IncomingStreams
from sandboxes import background
from sandboxes.errors import DomainError, NotRunning, Unavailable
from sandboxes.models import Sandbox
from sandboxes.permissions import Actor
from sandboxes.services import streams
from sandboxes.services.activity import activity
from sandboxes.services.lifecycle import Asked
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid, GuestUnknown

log = structlog.get_logger("atoll.rpc")

MAX_CALLS = 2048
"""Calls of one connection that are not answered yet; more are refused."""
MAX_RUNNING = 128
"""Calls of one connection that are carried out at a time, waits for processes and locks not counted."""
HELD = 64 * 2**20
"""Characters of calls that are not answered yet, beyond which a connection is not read; one alone may have more."""
ROOM_SECONDS = 15.0
"""For which it is not read. A call that has no room then is refused: the others may wait for what comes after it."""
PY_MESSAGE = 2**20
"""The Python client closes its connection on a longer message."""

# Unique across all connections and, for practice, across servers and restarts: JavaScript keeps one table per process.
_next_stream = secrets.randbelow(2**52)


def new_stream_id() -> int:
    """An id for a stream to a client."""
    global _next_stream
    _next_stream = (_next_stream + 1) % 2**53
    return _next_stream


type Method = Callable[[Connection, dict[str, Any]], Awaitable[Any]]


class Raw(str):
    """A result that is encoded already, for values too large to be encoded twice; `sent` is called once it is sent."""

    sent: Callable[[], None] | None = None


class Connection:
    """The state of one socket. `send` waits while the client does not read, which is what bounds our memory.

    `wake` brings a suspended sandbox back first; its errors are those of `ready`. `asked` is that of a boot under way.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        actor: Actor,
        dialect: Dialect,
        methods: Mapping[str, Method],
        send: Callable[[str], Awaitable[None]],
        unnoticed: frozenset[str] = frozenset(),
        wake: Callable[[], Awaitable[object]] | None = None,
        asked: Asked | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.actor = actor
        self.dialect = dialect
        self.methods = methods
        self.send = send
        self.unnoticed = unnoticed
        self.id = uuid.uuid4().hex
        self.incoming = IncomingStreams(self._cancel_sender)
        self.outgoing: dict[int, asyncio.Task[None]] = {}
        self.given_up: set[int] = set()
        self.aborts: dict[int, asyncio.Task[None]] = {}
        # Gates on process output: set when the client has asked `processWait` for that pid.
        self.gates: dict[int, asyncio.Event] = {}
        self.outputs: dict[int, list[asyncio.Task[None]]] = {}
        self.killed: set[int] = set()
        self.quiet_since: dict[asyncio.Task[Any], float] = {}
        self.running = asyncio.Semaphore(MAX_RUNNING)
        self.closing = False
        self._reason = ""
        self._calls: dict[asyncio.Task[None], Request] = {}
        self._held = 0
        self._answered = asyncio.Event()
        self._beside: set[asyncio.Task[Any]] = set()
        # A suspend before it is none of this connection's; None: the sandbox is still being brought back.
        self.since: datetime | None = None if wake else sandbox.state_since
        self.ready: asyncio.Task[None] = background.spawn(
            self._await_guest(wake, asked), name=f"ready {sandbox.public_id}"
        )
        # Somebody may never call: an error nobody waits for is no news then.
        self.ready.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._session: asyncio.Task[GuestCall] | None = None

    async def _await_guest(self, wake: Callable[[], Awaitable[object]] | None, asked: Asked | None) -> None:
        if wake is not None:
            try:
                await wake()
            finally:
                self.since = self.sandbox.state_since
        await streams.guest_ready(sandbox=self.sandbox, asked=asked)

    # -- what comes in -------------------------------------------------------------------------------------------------

    async def receive(self, text: str) -> None:
        """Take one message; returns once there is room for the next. Malformed for one that nobody could answer."""
        if text == "ping":
            await self.send("pong")
            return
        try:
            message = envelope.parse(text)
        except Malformed as malformed:
            if malformed.reply is None:
                raise
            await self.send(malformed.reply)
            return
        if isinstance(message, Request):
            await self._call(message, len(text))
        else:
            await self._notified(message)

    async def _call(self, request: Request, size: int) -> None:
        room = await self._room(size)
        if self.closing:
            await self._answer_closing(request)
        elif len(self._calls) >= MAX_CALLS:
            await self.send(envelope.failure(request.id, errors.SERVER, f"more than {MAX_CALLS} calls at a time"))
        elif not room:
            said = f"more than {HELD >> 20} MiB of calls at a time"
            await self.send(envelope.failure(request.id, errors.SERVER, said))
        elif (method := self.methods.get(request.method)) is None:
            await self.send(envelope.failure(request.id, errors.METHOD_NOT_FOUND, "Method not found"))
        else:
            if request.method not in self.unnoticed:
                activity.note(self.sandbox)
            task = background.spawn(self._carry_out(request, method), name=f"rpc {request.method}")
            self._calls[task] = request
            self._held += size
            task.add_done_callback(partial(self._forget_call, size))
            abort = request.params.get("abortId")
            if isinstance(abort, int) and request.method != "abort":
                self.aborts[abort] = task
                task.add_done_callback(lambda done: self.no_abort(abort, done))

    async def _room(self, size: int) -> bool:
        """Wait until the calls under way leave room for one more of that size; False if they do not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_SECONDS):
                while self._held and self._held + size > HELD and not self.closing:
                    self._answered.clear()
                    await self._answered.wait()
        return not self._held or self._held + size <= HELD

    def _forget_call(self, size: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(task, None)
        self._held -= size
        self._answered.set()

    def no_abort(self, abort: int, task: asyncio.Task[None]) -> None:
        """That task is none any more that a client may give up by that id."""
        if self.aborts.get(abort) is task:
            del self.aborts[abort]

    async def _answer_closing(self, request: Request) -> None:
        if request.method == "processKill":
            # The Python client's clean-up kills what it still tracks, and takes this answer for done.
            await self.send(envelope.error(request.id, envelope.GONE))
        else:
            said = "WebSocket connection closed" + (f": {self._reason}" if self._reason else "")
            await self.send(envelope.failure(request.id, errors.CLOSED, said))

    async def _carry_out(self, request: Request, method: Method) -> None:
        sent: Callable[[], None] | None = None
        try:
            value = await self._value(request, method)
            if isinstance(value, Raw):
                sent = value.sent
                text = '{"jsonrpc":"2.0","id":' + envelope.encode(request.id) + ',"result":{"ok":' + value + "}}"
            else:
                text = envelope.ok(request.id, value)
            del value  # it may be large, and sending may take long
            if self.dialect is Dialect.PY and len(text) > PY_MESSAGE // 4 and len(text.encode()) > PY_MESSAGE:
                text = envelope.error(request.id, too_large(len(text)))
        except asyncio.CancelledError:
            if self.closing:
                return
            text = envelope.error(request.id, envelope.ABORTED)
        except Exception as error:
            text = self._explain(request, error)
        try:
            await self.send(text)
        finally:
            if sent is not None:
                sent()

    async def _value(self, request: Request, method: Method) -> Any:
        """What the method says; NotRunning with the reason where it broke off because its machine ended."""
        try:
            return await method(self, request.params)
        except Unavailable as error:
            if (gone := await streams.guest_gone(sandbox=self.sandbox)) is not None:
                raise gone from error
            raise

    def _explain(self, request: Request, error: Exception) -> str:
        """The answer that says what went wrong."""
        match error:
            case OperationFailed():
                return envelope.error(request.id, error.error)
            case GuestFailed():
                return envelope.error(request.id, envelope.error_object(error.error))
            case InvalidParams():
                return envelope.invalid_params(request.id, error.issues)
            case GuestInvalid():
                return envelope.invalid_params(request.id, error.issues)
            case GuestUnknown():
                return envelope.failure(request.id, errors.METHOD_NOT_FOUND, "Method not found")
            case Failure():
                return envelope.failure(request.id, error.code, error.message)
            case NotRunning() if request.method == "processKill":
                return envelope.error(request.id, envelope.GONE)
            case NotRunning():
                return envelope.failure(request.id, errors.SERVER, error.message)
            case DomainError():
                return envelope.failure(request.id, errors.AGENT, f"Isolate internal error: {error.message}")
            case _:
                log.error("a call failed", method=request.method, sandbox=self.sandbox.public_id, exc_info=error)
                return envelope.failure(request.id, errors.INTERNAL, "Internal error")

    async def _notified(self, message: Notification) -> None:
        stream = message.params.get("streamId")
        if not isinstance(stream, int) or isinstance(stream, bool):
            return
        match message.method:
            case "$sandbox.stream.start":
                self.incoming.start(stream)
            case "$sandbox.stream.enqueue":
                await self.incoming.feed(stream, message.params.get("data"))
            case "$sandbox.stream.end":
                self.incoming.end(stream)
            case "$sandbox.stream.error":
                self.incoming.fail(stream, message.params.get("error"))
            case "$sandbox.stream.cancel":
                if (task := self.outgoing.get(stream)) is not None:
                    self.given_up.add(stream)
                    task.cancel()

    async def _cancel_sender(self, stream: int) -> None:
        if self.dialect is Dialect.JS and not self.closing:
            await self.send(envelope.stream_cancel(stream))

    # -- what methods use ----------------------------------------------------------------------------------------------

    async def guest(
        self, method: str, params: Mapping[str, Any], *, session: bool = False, more: bool = False
    ) -> GuestCall:
        """A call to the guest's agent, once the guest is there. Use it as a context manager; `more`: input follows."""
        await asyncio.shield(self.ready)
        if session:
            await self._begin_session()
        return await streams.guest_call(
            sandbox=self.sandbox,
            method=method,
            params=params,
            actor=self.actor,
            session=self.id if session else None,
            more=more,
        )

    async def ask(self, method: str, params: Mapping[str, Any], *, session: bool = False) -> Any:
        """The value of a call without input and output."""
        async with self.running, await self.guest(method, params, session=session) as call:
            return await call.reply()

    async def _begin_session(self) -> None:
        """Have the guest keep handles for this connection, until it ends."""
        if self._session is None:
            self._session = background.spawn(self._open_session(), name="rpc session")
        await asyncio.shield(self._session)

    async def _open_session(self) -> GuestCall:
        call = await streams.guest_call(
            sandbox=self.sandbox, method="session", params={}, session=self.id, actor=self.actor, more=True
        )
        await call.reply()
        return call

    def beside[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` until it ends or the connection does. Its failure is for whoever awaits it, not for a log."""
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._beside.discard(task)
        if not task.cancelled():
            task.exception()

    def stream_out(self, stream: int, source: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `source`, which sends the stream's data; the stream is ended whatever becomes of it."""
        task = self.beside(self._stream(stream, source))
        self.outgoing[stream] = task
        task.add_done_callback(lambda _done: self.outgoing.pop(stream, None))
        return task

    async def _stream(self, stream: int, source: Callable[[], Awaitable[None]]) -> None:
        try:
            await source()
        except asyncio.CancelledError:
            # Who cancelled a stream himself must not hear of it again; everybody else still needs its end.
            if stream in self.given_up or (self.closing and self.dialect is Dialect.JS):
                self.given_up.discard(stream)
                return
        except Exception as error:
            value = (
                error.error if isinstance(error, GuestFailed) else {"constructorName": "Error", "message": str(error)}
            )
            await self.send(envelope.stream_error(stream, envelope.error_object(value)))
        await self.send(envelope.stream_end(stream))

    # -- the end -------------------------------------------------------------------------------------------------------

    async def finish(self, reason: str) -> None:
        """Answer what is open with the reason and end every stream: a Python client would wait for ever otherwise."""
        self.closing = True
        self._reason = reason
        calls = dict(self._calls)
        for task in [*calls, *self.outgoing.values()]:
            task.cancel()
        for request in calls.values():
            await self._answer_closing(request)

    async def release(self) -> None:
        """Let go everything the connection held, in the guest too. Repeatable; never raises."""
        self.closing = True
        self.incoming.close()
        tasks = [*self._calls, *self._beside, self.ready]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        if self._session is not None:
            if self._session.done() and not self._session.cancelled() and self._session.exception() is None:
                await self._session.result().abort()
            else:
                self._session.cancel()


def too_large(size: int) -> dict[str, Any]:
    """The error for a result that the Python client could not take."""
    return {
        "constructorName": "Error",
        "message": f"The result has {size} bytes, more than one message to this client can hold: use open() and read()",
        "code": "EFBIG",
    }
