"""The host's side of one machine's guest channel: keeps a link to its agent and opens streams on it.

The guest is hostile: whatever it sends is bounded here in memory, in work per second and in breaches of the framing,
and costs its own machine only. Nothing here knows what travels on a stream (docs/guest-protocol.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

from vm.background import spawn
from vm.errors import HostFull, MachineGone, StreamReset
from vm.guest.frames import (
    HEADER,
    MAX_PAYLOAD,
    NONCE_BYTES,
    WINDOW,
    Data,
    EchoScanner,
    Ended,
    Event,
    Granted,
    Inbox,
    Multiplexer,
    ProtocolError,
    Reset,
    preamble,
)

MAX_OPEN = 512  # streams per machine, each holding at most a window: the most a stalled reader can make us keep
RESERVED = 16  # of them, for what the node itself asks: it must not take a machine for lost because it is much used
_READ = 131_072  # bytes taken from the socket in one turn of the event loop, so that no guest holds it for long
_HIGH, _LOW = 524_288, 131_072  # unsent bytes between which writers wait
_UNSENT_LIMIT = 4 * 2**20  # a guest that sends but never reads is cut off here
_STRAY_BEFORE_ECHO = 8 * 2**20  # what a resynchronising guest may still send of its old link
_STRAY_BURST, _STRAY_RATE = 4 * 2**20, 2**18  # bytes nobody asked for: at once, and per second
_FRAME_BURST, _FRAME_RATE = 40_000, 20_000.0
_ECHO_PATIENCE = 10.0
_BACKOFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY = 60.0  # seconds of a good link after which earlier failures no longer count

Connect = Callable[[], Awaitable[socket.socket]]


class GuestStream:
    """One stream to the agent; a ByteStream of vm.api. One reader and one writer at a time."""

    def __init__(self, link: _Link, number: int) -> None:
        self._link = link
        self._number = number
        self._inbox = Inbox()
        self._ended = False
        self._sent_end = False
        self._broken: str | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self, limit: int = 65_536) -> bytes:
        """Up to `limit` bytes; empty at the peer's end. StreamReset if it broke off."""
        while True:
            if data := self._inbox.take(limit):
                self._link.consumed(self._number, len(data))
                return data
            if self._ended:
                return b""
            if self._broken is not None:
                raise StreamReset(self._broken)
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def write(self, data: bytes) -> None:
        """Send, waiting while the peer or the link has no room. StreamReset if it broke off."""
        view = memoryview(data)
        while view:
            if self._broken is not None:
                raise StreamReset(self._broken)
            if self._sent_end:
                raise ValueError("written after its end")
            room = self._link.room(self._number)
            if room == 0:
                self._writer = asyncio.get_running_loop().create_future()
                try:
                    await self._writer
                finally:
                    self._writer = None
                continue
            piece = view[: min(room, MAX_PAYLOAD)]
            self._link.data(self._number, piece)
            view = view[len(piece) :]

    async def end(self) -> None:
        """Send nothing more; reading goes on. Repeatable."""
        if not self._sent_end and self._broken is None:
            self._sent_end = True
            self._link.end(self._number)

    async def abort(self) -> None:
        """Give the stream up in both directions. Repeatable; never raises."""
        self._link.reset(self._number, "given up")
        self.lose("given up")

    # -- what the link tells it

    def arrived(self, data: bytes) -> None:
        """Bytes came."""
        self._inbox.put(data)
        _wake(self._reader)

    def ended(self) -> None:
        """The agent will send nothing more."""
        self._ended = True
        _wake(self._reader)

    def writable(self) -> None:
        """There may be room again."""
        _wake(self._writer)

    def lose(self, reason: str) -> None:
        """The stream is gone; what it received before can still be read."""
        if self._broken is None:
            self._broken = reason
        _wake(self._reader)
        _wake(self._writer)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class _Bucket:
    """Counts something against a rate; `take` says by how many seconds it is overdrawn."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = burst
        self._at = time.monotonic()

    def take(self, count: float) -> float:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - count
        self._at = now
        return max(0.0, -self._left / self._rate)

    def forgive(self, count: float) -> None:
        self._left += count


class _Link(asyncio.BufferedProtocol):
    """One connection to the port, from its preamble to its end; `failed` is why it ended."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.synchronised: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.failed = ""
        self.breach = False  # the guest broke the rules, as opposed to being gone
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._scanner: EchoScanner | None = EchoScanner(self._nonce)
        self._dropped = 0
        self._mux = Multiplexer(host=True)
        self._streams: dict[int, GuestStream] = {}
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_READ)
        self._congested = False
        self._stray = _Bucket(_STRAY_BURST, _STRAY_RATE)
        self._frames = _Bucket(_FRAME_BURST, _FRAME_RATE)
        self._unclaimed = 0

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (for the type checker)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH, low=_LOW)
        transport.write(preamble(self._nonce))

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        data: bytes | None = bytes(memoryview(self._buffer)[:count])
        if self._scanner is not None:
            self._dropped += count
            data = self._scanner.feed(data or b"")
            if data is None:
                if self._dropped > _STRAY_BEFORE_ECHO:
                    self.fail("its agent sends, but does not answer", breach=True)
                return
            self._scanner = None
            self.synchronised.set_result(None)
            if not data:
                return
        try:
            events = self._mux.receive(data or b"")
        except ProtocolError as error:
            self.fail(f"its agent broke the framing: {error}", breach=True)
            return
        self._unclaimed += len(data or b"") - sum(self._happened(event) for event in events)
        # At most one frame is under way; the rest is for no stream, such as data after our RESET
        stray = self._unclaimed - len(events) * (HEADER.size + 4) - MAX_PAYLOAD - HEADER.size
        self._unclaimed -= len(events) * (HEADER.size + 4) + max(0, stray)
        if stray > 0 and self._stray.take(stray) > 0:
            self.fail("its agent sends what nobody asked for", breach=True)
            return
        if (pause := self._frames.take(len(events))) > 0 and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(min(pause, 1.0), self._resume_reading)

    def _resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        for stream in list(self._streams.values()):
            stream.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("the connection to its port ended")

    # -- events

    def _happened(self, event: Event) -> int:
        """Tell the stream; returns how many payload bytes somebody wanted."""
        stream = self._streams.get(getattr(event, "stream", 0))
        if stream is None:
            return 0
        if isinstance(event, Data):
            stream.arrived(event.data)
            return len(event.data)
        if isinstance(event, Granted):
            stream.writable()
        elif isinstance(event, Ended):
            stream.ended()
            self._forget_if_done(event.stream)
        elif isinstance(event, Reset):
            del self._streams[event.stream]
            stream.lose(event.reason or "the agent gave it up")
        return 0

    def fail(self, why: str, *, breach: bool = False) -> None:
        """End the link and every stream on it. Repeatable."""
        if self.closed.done():
            return
        self.failed = why
        self.breach = breach
        if self._transport is not None:
            self._transport.abort()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lose(why)
        if not self.synchronised.done():
            self.synchronised.cancel()
        self.closed.set_result(None)

    # -- what streams ask for

    def open(self, *, own: bool) -> GuestStream:
        """A new stream. HostFull when the machine has as many as it may."""
        if len(self._streams) >= (most := MAX_OPEN if own else MAX_OPEN - RESERVED):
            raise HostFull(f"this machine has {most} open streams already")
        try:
            number, frame = self._mux.open()
        except ProtocolError as error:
            raise HostFull("this machine's agent leaves too many streams half open") from error
        stream = self._streams[number] = GuestStream(self, number)
        self._send(frame)
        return stream

    def room(self, number: int) -> int:
        return 0 if self._congested else self._mux.room(number)

    def data(self, number: int, piece: memoryview) -> None:
        self._send(self._mux.data(number, piece))

    def end(self, number: int) -> None:
        self._send(self._mux.end(number))
        self._forget_if_done(number)

    def reset(self, number: int, reason: str) -> None:
        if self._streams.pop(number, None) is not None:
            self._stray.forgive(WINDOW)
        self._send(self._mux.reset(number, reason))

    def consumed(self, number: int, count: int) -> None:
        self._send(self._mux.consumed(number, count))

    def _forget_if_done(self, number: int) -> None:
        if not self._mux.alive(number):
            self._streams.pop(number, None)

    def _send(self, frame: bytes) -> None:
        if not frame or self._transport is None or self.closed.done():
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > _UNSENT_LIMIT:
            self.fail("its agent sends, but does not read", breach=True)


class Channel:
    """A machine's channel: connects through `connect`, again after every failure, with back-off, until closed.

    `changed(up, why)` is told when the link comes and goes. After a reconnect the streams of the old link are reset.
    """

    def __init__(self, connect: Connect, *, changed: Callable[[bool, str], None] = lambda up, why: None) -> None:
        self.breaches = 0
        self.links = 0  # made so far: another number means another link
        self._connect = connect
        self._changed = changed
        self._link: _Link | None = None
        self._begun = asyncio.Event()  # there is a link, though its agent may not have answered yet
        self._up = asyncio.Event()
        self._closed = False
        self._keeper = spawn(self._keep(), name="guest channel")

    @property
    def up(self) -> bool:
        """Whether streams can be opened now."""
        return self._up.is_set() and self._link is not None and not self._link.closed.done()

    async def open(self, *, timeout: float = 5.0, early: bool = False, own: bool = False) -> GuestStream:
        """A new stream, waiting up to `timeout` seconds for the link; `early`: not for its agent to answer, too.

        What is sent early follows the preamble, and is read as soon as that is: it spares a guest that was just
        restored a round trip. `own`: for the node itself, which may take what is RESERVED. StreamReset if no link
        comes, MachineGone if the channel is closed, HostFull when there are too many.
        """
        there = self._begun if early else self._up
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    await there.wait()
                    if self._closed:
                        raise MachineGone("the machine is not running")
                    if self._link is not None and not self._link.closed.done():
                        return self._link.open(own=own)
                    # It has failed, and its keeper has not had its turn yet
                    self._no_link()
        raise StreamReset("the machine's agent does not answer")

    def listen(self, changed: Callable[[bool, str], None]) -> None:
        """Tell another one from now on when the link comes and goes."""
        self._changed = changed

    def restart(self, why: str) -> None:
        """Drop the link, and with it every stream, and begin anew: its agent is not the one it began with."""
        if self._link is not None:
            self._link.fail(why)

    async def close(self) -> None:
        """End the link and every stream. Repeatable."""
        self._closed = True
        self._begun.set()
        self._up.set()
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self._keeper])

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            why, breach = await self._one_link()
            self.breaches += breach
            failures = 0 if time.monotonic() - began > _HEALTHY else failures + 1
            self._changed(False, why)
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])

    async def _one_link(self) -> tuple[str, bool]:
        link: _Link | None = None
        try:
            sock = await self._connect()
            _transport, link = await asyncio.get_running_loop().create_unix_connection(_Link, sock=sock)
            self._link = link
            self._begun.set()
            async with asyncio.timeout(_ECHO_PATIENCE):
                await asyncio.wait([link.synchronised])
            if not link.synchronised.cancelled():
                self.links += 1
                self._up.set()
                self._changed(True, "")
                await asyncio.wait([link.closed])
            return link.failed, link.breach
        except OSError as error:
            return f"its port cannot be reached: {error.strerror}", False
        except TimeoutError:
            return "its agent does not answer", False
        finally:
            self._no_link()
            if link is not None:
                link.fail("the machine's channel was closed")

    def _no_link(self) -> None:
        self._link = None
        if not self._closed:
            self._begun.clear()
            self._up.clear()
