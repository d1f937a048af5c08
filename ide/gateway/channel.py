"""SSH channels as byte streams: both directions wait for whoever is slower, in place of asyncssh's callbacks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import asyncssh

from ide.gateway.tasks import first_of
from sandboxes.services.streams import GuestCall

HELD = 262_144
"""Bytes that came and were not read, above which the client has to wait; its window may come on top."""
WINDOW = 1_048_576
PACKET = 32_768
PIECE = 131_072


class ChannelClosed(Exception):
    """The client closed the channel, or its connection ended."""


class Pipe:
    """What asyncssh's sessions of every kind have in common; mixed into one of them.

    One reader, any number of writers.
    """

    def __init__(self) -> None:
        self._chan: Any = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._closed = False
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._made = asyncio.Event()

    # -- asyncssh's side

    def connection_made(self, chan: Any) -> None:
        """The channel is there."""
        self._chan = chan
        self._made.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed in both directions."""
        self._closed = True
        self._made.set()
        self._came.set()
        self._room.set()

    def data_received(self, data: Any, datatype: int | None) -> None:
        """Bytes came."""
        self._pieces.append(data)
        self._held += len(data)
        if self._held > HELD:
            self._chan.pause_reading()
        self._came.set()

    def eof_received(self) -> bool:
        """The client sends nothing more; we may."""
        self._ended = True
        self._came.set()
        return True

    def pause_writing(self) -> None:
        """The client does not take what it was sent."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._room.set()

    # -- our side

    async def opened(self) -> None:
        """Return once there is a channel; ChannelClosed if there will be none."""
        await self._made.wait()
        if self._closed:
            raise ChannelClosed

    async def read(self, limit: int = PIECE) -> bytes:
        """Up to `limit` bytes; empty at the client's end. ChannelClosed."""
        while not self._pieces:
            if self._closed:
                raise ChannelClosed
            if self._ended:
                return b""
            self._came.clear()
            await self._came.wait()
        taken, size = [], 0
        while self._pieces and size + len(self._pieces[0]) <= limit:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        if not taken:
            piece = self._pieces.popleft()
            self._pieces.appendleft(piece[limit:])
            taken, size = [piece[:limit]], limit
        before, self._held = self._held, self._held - size
        if before > HELD >= self._held and not self._closed:
            self._chan.resume_reading()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    async def write(self, data: bytes, datatype: int | None = None) -> None:
        """Send, waiting while the client does not take it. ChannelClosed."""
        if self._closed or self._chan.is_closing():
            raise ChannelClosed
        self._chan.write(data, datatype)
        await self._room.wait()

    def end(self) -> None:
        """Send nothing more; reading goes on. Repeatable."""
        if not self._closed:
            self._chan.write_eof()

    def close(self) -> None:
        """Close the channel once everything was sent. Repeatable."""
        if not self._closed:
            self._chan.close()

    def abort(self) -> None:
        """Close it now: what was sent may be lost, and does not look complete. Repeatable."""
        if not self._closed:
            self._chan.abort()


class TcpPipe(Pipe, asyncssh.SSHTCPSession[bytes]):
    """A forwarded TCP connection."""


class UnixPipe(Pipe, asyncssh.SSHUNIXSession[bytes]):
    """A forwarded unix socket, or a connection to the client's agent."""


async def relay(pipe: Pipe, call: GuestCall, used: Callable[[], None]) -> None:
    """Carry bytes both ways until either side has ended it. Unavailable, ChannelClosed where one broke off.

    `used` is called with each piece.
    """

    async def inwards() -> None:
        while data := await pipe.read():
            used()
            await call.write(data)
        await call.end_input()
        await asyncio.Event().wait()  # the other direction says when all is over

    async def outwards() -> None:
        while data := await call.read(PIECE):
            used()
            await pipe.write(data)
        pipe.end()

    # A server that has ended its side of a connection has, as a rule, closed it: nothing tells the two apart
    await first_of(inwards(), outwards())
