"""A connection to a sandbox: calls, and streams that are read no faster than they are used.

It speaks the SDKs' protocol (JSON-RPC over a WebSocket). There is no flow control in that but the connection's own, so
whatever arrives is handed on before the next message is read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from .client import Client
from .errors import Failure, NotFound, Unreachable, failure_of

HEARTBEAT_SECONDS = 20
LARGEST_MESSAGE = 16 * 2**20
MOST_HELD = 4 * 2**20
CHUNK = 48 * 1024
"""Bytes of one message: a multiple of three, so that base64 pads nothing."""

type Sink = Callable[[bytes], Awaitable[None]]


class GuestError(Failure):
    """The machine could not do it; `code` is the errno's name."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or "the machine refused"))
        self.code = error.get("code")


class _Stream:
    """What a process puts out. It may begin before the answer has come that says where it is to go."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sink: Sink | None = None
        self._held: list[bytes] = []
        self._order = asyncio.Lock()

    async def put(self, data: bytes) -> None:
        """Hand it on; hold it while nobody has said where to."""
        async with self._order:
            if self._sink is not None:
                await self._sink(data)
            elif sum(map(len, self._held)) < MOST_HELD:
                self._held.append(data)
            else:
                raise Failure("the server sent output that nobody asked for")

    async def open(self, sink: Sink) -> None:
        """Hand on what was held, and from now on all that comes."""
        async with self._order:
            for data in self._held:
                await sink(data)
            self._held.clear()
            self._sink = sink


class Guest:
    """One sandbox that is connected to."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count()
        self._streams_out = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, _Stream] = {}
        self.cancelled: set[int] = set()

    async def call(self, method: str, **params: Any) -> Any:
        """The call's result. GuestError; Failure if the connection ends before."""
        number = next(self._ids)
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            given = {name: value for name, value in params.items() if value is not None}
            await self._send({"id": number, "method": method, "params": given})
            return await answer
        finally:
            self._calls.pop(number, None)

    async def expect(self, stream: int | None, sink: Sink) -> Awaitable[None]:
        """Have the stream's bytes go there; the result is done once all have, or with what the sink raised."""
        if stream is None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        found = self._streams.setdefault(stream, _Stream())
        await found.open(sink)
        return found.ended

    async def stream_begin(self) -> int:
        """A new stream to the sandbox."""
        number = next(self._streams_out)
        await self._notify("start", number)
        return number

    async def stream_send(self, stream: int, data: bytes) -> None:
        """Some of its bytes; returns once the connection has room for more."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            await self._notify("enqueue", stream, data=base64.b64encode(view[start : start + CHUNK]).decode())

    async def stream_end(self, stream: int) -> None:
        """Nothing follows."""
        await self._notify("end", stream)

    async def _notify(self, what: str, stream: int, **more: Any) -> None:
        await self._send({"method": f"$sandbox.stream.{what}", "params": {"streamId": stream, **more}})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._socket.send_str(json.dumps({"jsonrpc": "2.0", **message}))
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Unreachable(self._why()) from error

    async def read(self) -> None:
        """Take what arrives until the connection ends, and tell whoever still waits why it did."""
        try:
            async for message in self._socket:
                if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    await self._take(json.loads(message.data))
        finally:
            failure = Unreachable(self._why())
            waiting = [*self._calls.values(), *(stream.ended for stream in self._streams.values())]
            for future in waiting:
                if not future.done():
                    future.set_exception(failure)
                    # Not each of them is waited for
                    future.exception()

    async def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            await self._stream_take(message["method"].rpartition(".")[2], message.get("params") or {})
            return
        future = self._calls.get(message.get("id", -1))
        if future is None or future.done():
            return
        if error := message.get("error"):
            future.set_exception(Failure(str(error.get("message"))))
        elif error := message["result"].get("error"):
            future.set_exception(GuestError(error))
        else:
            future.set_result(message["result"].get("ok"))

    async def _stream_take(self, what: str, params: dict[str, Any]) -> None:
        number = params.get("streamId", -1)
        if what == "cancel":
            self.cancelled.add(number)
            return
        if what == "start":
            self._streams.setdefault(number, _Stream())
        stream = self._streams.get(number)
        if stream is None or stream.ended.done():
            return
        if what == "enqueue":
            try:
                await stream.put(base64.b64decode(params["data"]))
            except Exception as error:
                stream.ended.set_exception(error)
        elif what == "end":
            stream.ended.set_result(None)
        elif what == "error":
            stream.ended.set_exception(GuestError(params.get("error") or {}))

    def _why(self) -> str:
        code = self._socket.close_code
        if code == 1001:
            return "the sandbox has ended: atoll logs says why"
        if code == 1008:
            return "the token is good no more: atoll login"
        return "the connection to the server broke off"


@contextlib.asynccontextmanager
async def connected(client: Client, public_id: str) -> AsyncIterator[Guest]:
    """A sandbox to call, which is resumed if it is suspended. NotFound for one that is stopped."""
    # The scheme alone differs
    address = f"{client.login.url}/api/v3/sandbox/{public_id}/connect".replace("http", "ws", 1)
    try:
        socket = await client.session.ws_connect(
            address, heartbeat=HEARTBEAT_SECONDS, max_msg_size=LARGEST_MESSAGE, compress=0
        )
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 404:
            raise NotFound(f"{public_id} does not run: atoll show {public_id}") from error
        raise failure_of(error.status, f"the server refused the connection ({error.status})") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"{client.login.url} does not answer: {error or 'it took too long'}") from error
    guest = Guest(socket)
    # The project's rule is about tasks that nobody keeps: this one is kept, and ended, here
    reading = asyncio.ensure_future(guest.read())
    try:
        yield guest
    finally:
        await socket.close()
        await asyncio.gather(reading, return_exceptions=True)
