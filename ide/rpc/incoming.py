"""Streams from a client: kept in order, bounded, and dropped when nobody wants them any more."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ide.rpc.envelope import OperationFailed, error_object

MAX_STREAMS = 256
ROOM = 8 * 2**20
"""Bytes of one stream that may wait for its consumer; then the socket is not read until there is room."""


class Incoming:
    """One stream's bytes on their way to a consumer."""

    def __init__(self) -> None:
        self.taken = False
        self.size = 0
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._failure: dict[str, Any] | None = None
        self._dropped = False
        self._changed = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()

    async def read(self) -> bytes:
        """The next chunk; empty at the end. OperationFailed with what the client said went wrong."""
        while not self._chunks:
            if self._failure is not None:
                raise OperationFailed(self._failure)
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        chunk = self._chunks.popleft()
        self.size -= len(chunk)
        if self.size <= ROOM // 2:
            self._roomy.set()
        return chunk

    async def put(self, chunk: bytes) -> None:
        """Add a chunk, and wait until there is room again."""
        if self._dropped or self._ended or self._failure is not None or not chunk:
            return
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._changed.set()
        if self.size > ROOM:
            if not self.taken:
                # The call that names it would come on the same socket: waiting for it would be for ever.
                self.fail({"constructorName": "Error", "message": f"more than {ROOM} bytes came before the call"})
                return
            self._roomy.clear()
            await self._roomy.wait()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._changed.set()

    def fail(self, error: dict[str, Any]) -> None:
        """The client could not go on."""
        if not self._ended and self._failure is None:
            self._failure = error
            self._changed.set()

    def drop(self) -> bool:
        """Nobody wants it any more; whether its sender still sends."""
        self._dropped = True
        self._chunks.clear()
        self.size = 0
        self._roomy.set()
        return not self._ended and self._failure is None


class IncomingStreams:
    """The streams of one connection by the client's ids; 0 is one."""

    def __init__(self, cancel: Callable[[int], Awaitable[None]]) -> None:
        self._streams: dict[int, Incoming] = {}
        self._cancel = cancel

    def start(self, stream: int) -> None:
        """The client begins one. Beyond the bound it is not taken, and the call that names it fails."""
        if len(self._streams) < MAX_STREAMS and stream not in self._streams:
            self._streams[stream] = Incoming()

    async def feed(self, stream: int, data: object) -> None:
        """A chunk of base64, dropped if nobody wants it; returns when there is room."""
        incoming = self._streams.get(stream)
        if incoming is None or not isinstance(data, str):
            return
        try:
            chunk = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            incoming.fail({"constructorName": "TypeError", "message": "a chunk of the stream is not base64"})
            return
        await incoming.put(chunk)

    def end(self, stream: int) -> None:
        """The client is done."""
        if incoming := self._streams.get(stream):
            incoming.end()

    def fail(self, stream: int, error: object) -> None:
        """The client failed: an error object from JavaScript, a text from Python."""
        if incoming := self._streams.get(stream):
            text = error if isinstance(error, str) else "the stream was given up by its sender"
            incoming.fail(error_object(error if isinstance(error, dict) else {}, text[:1000]))

    def take(self, stream: int) -> Incoming | None:
        """The stream, for its one consumer; None if there is none of that id, or somebody else has it."""
        incoming = self._streams.get(stream)
        if incoming is None or incoming.taken:
            return None
        incoming.taken = True
        return incoming

    async def done(self, stream: int) -> None:
        """Its consumer takes no more: tell the sender if he does not know."""
        incoming = self._streams.pop(stream, None)
        if incoming is not None and incoming.drop():
            await self._cancel(stream)

    def close(self) -> None:
        """Let go whoever feeds or reads one."""
        for incoming in self._streams.values():
            incoming.fail({"constructorName": "Error", "message": "the connection was closed"})
            incoming.drop()
        self._streams.clear()
