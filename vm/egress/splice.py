"""The two ends of one connection: each passes on what it gets as fast as the other takes it, and holds next to nothing.

All ends share one buffer: what the peer takes at once is never copied, and only what it does not take is kept, which
stops the reading until it is gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from vm.egress.peek import MAX_PEEK

_ROOM = 131_072
_buffer = memoryview(bytearray(_ROOM))
_LINGER = struct.pack("ii", 1, 0)


class Side(asyncio.BufferedProtocol):
    """One end. Until it is joined to another it collects a little of what it gets in `held`.

    `gone` is called once when its connection is no more.
    """

    __slots__ = ("_eof", "_gone", "_sock", "_waiter", "closed", "counted", "held", "peer", "touched", "transport")

    def __init__(self, sock: socket.socket, gone: Callable[[], None]) -> None:
        self._sock = sock
        self._gone = gone
        self._waiter: asyncio.Future[None] | None = None
        self._eof = False
        self.held: bytearray | None = bytearray()
        self.peer: Side | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.counted = 0  # bytes that came in here
        self.touched = time.monotonic()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    # -- before it is joined

    async def more(self, timeout: float) -> bool:
        """Wait until more is held than now; False if nothing more comes in time, or at all."""
        if self._eof or self.closed:
            return False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiter
        except TimeoutError:
            return False
        finally:
            self._waiter = None
        return not self._eof and not self.closed

    def join(self, other: Side) -> None:
        """From now on what either gets is the other's."""
        self.peer, other.peer = other, self
        for one in (self, other):
            held, one.held = one.held, None
            if held:
                one._pass_on(memoryview(bytes(held)))
            if one._eof:
                one._pass_end()
            elif one.transport is not None and not one.transport.is_closing() and not one._full:
                one.transport.resume_reading()

    @property
    def _full(self) -> bool:
        peer = self.peer
        return peer is not None and peer.transport is not None and peer.transport.get_write_buffer_size() > 0

    # -- ending

    def say(self, data: bytes) -> None:
        """Send something of ours, and nothing after it; what comes in from now on is dropped."""
        if self.transport is not None and not self.transport.is_closing():
            self.held = None
            self.transport.write(data)
            self.transport.write_eof()
            self.transport.resume_reading()

    def reset(self) -> None:
        """End it so that the other end sees an error. Repeatable."""
        if self.transport is None or self.closed:
            return
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.transport.abort()

    def close(self) -> None:
        """End it once everything was sent."""
        if self.transport is not None:
            self.transport.close()

    # -- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        self.transport = transport  # type: ignore[assignment]
        # Whatever is not taken at once stops the reading
        self.transport.set_write_buffer_limits(high=0)  # type: ignore[union-attr]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self.counted += nbytes
        if self.peer is not None:
            self._pass_on(_buffer[:nbytes])
        elif self.held is not None:
            self.held += _buffer[:nbytes]
            if len(self.held) > MAX_PEEK and self.transport is not None:
                self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Nothing more comes in here; what goes out may go on."""
        self._eof = True
        if self.peer is not None:
            self._pass_end()
        self._wake()
        return True

    def pause_writing(self) -> None:
        """This end takes no more."""
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """This end took everything."""
        peer = self.peer
        if peer is None or peer.transport is None or peer.transport.is_closing():
            return
        if not peer._eof:
            peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self.closed = True
        self._wake()
        if self.peer is not None and not self.peer.closed:
            if error is not None:
                self.peer.reset()
            else:
                self.peer.close()
        self._gone()

    # -- passing on

    def _pass_on(self, data: memoryview) -> None:
        peer = self.peer
        if peer is None or peer.transport is None or peer.transport.is_closing():
            return
        self.touched = time.monotonic()
        sent = 0
        if peer.transport.get_write_buffer_size() == 0:
            try:
                sent = peer._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                # asyncio finds the same, and tells of it
                sent = 0
        if sent < len(data):
            peer.transport.write(bytes(data[sent:]))

    def _pass_end(self) -> None:
        peer = self.peer
        if peer is None or peer.transport is None or peer.closed:
            return
        if peer._eof:
            # Both have ended: each goes once its last bytes have
            peer.close()
            self.close()
        elif not peer.transport.is_closing():
            with suppress(OSError):
                peer.transport.write_eof()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
