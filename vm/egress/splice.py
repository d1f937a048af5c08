"""The two ends of one connection: each passes on what it gets as fast as the other takes it, and holds next to nothing.

All ends share one buffer: what the peer takes at once is never copied, and only what it does not take is kept, which
stops the reading until it is gone. The larger a read, the less a byte costs; so that peers who take nothing cannot have
much kept for them, reads are small once all ends together keep `_MUCH`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from vm.egress.peek import MAX_PEEK, Unreadable
from vm.egress.requests import Requests
from vm.egress.turns import Share

_ROOM = 524_288
_SMALL = 65_536
_LITTLE = 4096  # where it is others' turn
_STEP = 3072  # bytes that pass in the time of one step of a look
_MUCH = 16 * 2**20
_buffer = memoryview(bytearray(_ROOM))
_LINGER = struct.pack("ii", 1, 0)


class Side(asyncio.BufferedProtocol):
    """One end. Until it is joined to another it collects a little of what it gets in `held`; it may hear it before.

    `gone` is called once when its connection is no more.
    """

    __slots__ = (
        *("_eof", "_gone", "_kept", "_objection", "_parked", "_passed", "_requests", "_share", "_sock", "_waiter"),
        *("closed", "counted", "held", "peer", "touched", "transport"),
    )
    kept = 0
    """Bytes that all ends together were sent and have not taken yet."""

    def __init__(self, sock: socket.socket, gone: Callable[[], None], share: Share | None = None) -> None:
        self._sock = sock
        self._gone = gone
        self._waiter: asyncio.Future[None] | None = None
        self._eof = False
        self._kept = 0
        self._share = share
        self._parked = False
        self._passed = 0  # bytes of what is held that the other end has already
        self._requests: Requests | None = None
        self._objection: Callable[[Unreadable], None] | None = None
        self.held: bytearray | None = bytearray()
        self.peer: Side | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.counted = 0  # bytes that came in here
        self.touched = time.monotonic()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    # -- before it is joined

    async def more(self, timeout: float | None) -> bool:
        """Wait until more is held than now; False if nothing more comes in time, or at all."""
        if self.ended:
            return False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiter
        except TimeoutError:
            return False
        finally:
            self._waiter = None
        return not self.ended

    def hear(self, other: Side) -> None:
        """From now on what the other gets is this one's, whose own is still held."""
        self.peer, other.peer = other, self
        other._release()

    def let_pass(self) -> None:
        """Let the other end have what is held by now; it stays here as well, to be read with what comes after it."""
        if self.held is not None and len(self.held) > self._passed:
            self._pass_on(memoryview(bytes(self.held[self._passed :])))
            self._passed = len(self.held)

    def part(self) -> None:
        """Hear nobody, whose end is reset; all that is held is as if nobody had had any of it. Repeatable."""
        peer, self.peer, self._passed = self.peer, None, 0
        if peer is not None:
            peer.peer = None
            peer.reset()

    def follow(self, requests: Requests, objection: Callable[[Unreadable], None]) -> None:
        """Once it is joined, pass on no more than may pass of a client's requests; `objection` is told what ends it."""
        self._requests, self._objection = requests, objection

    def join(self, other: Side) -> None:
        """From now on what either gets is the other's."""
        self.peer, other.peer = other, self
        for one in (self, other):
            one._release()

    def _release(self) -> None:
        held, self.held = self.held, None
        if held and self._requests is not None:
            self._look(lambda requests: requests.feed(held))
        elif held and len(held) > self._passed:
            self._pass_on(memoryview(bytes(held[self._passed :])))
        if self._eof:
            self._pass_end()
        else:
            self._read()

    def _read(self) -> None:
        """Read again, if nothing is against it."""
        if self.transport is None or self.transport.is_closing():
            return
        if not (self._eof or self._parked or self._behind or self._full):
            self.transport.resume_reading()

    @property
    def _behind(self) -> bool:
        return self._requests is not None and self._requests.behind

    @property
    def _full(self) -> bool:
        peer = self.peer
        return peer is not None and peer.transport is not None and peer.transport.get_write_buffer_size() > 0

    @property
    def ended(self) -> bool:
        """Nothing more comes in here: whoever sent has closed it, or will not send again."""
        return self._eof or self.closed

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
        if self.held is not None:
            return _buffer[: max(1, MAX_PEEK + 1 - len(self.held))]
        if self._share is not None and self._share.spent:
            return _buffer[:_LITTLE]
        room = _ROOM if Side.kept < _MUCH else _SMALL
        return _buffer[: room if self._requests is None else min(room, self._requests.room)]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self.counted += nbytes
        if self.held is not None:
            self.held += _buffer[:nbytes]
            if len(self.held) > MAX_PEEK and self.transport is not None:
                self.transport.pause_reading()
        elif self.peer is not None:
            data = _buffer[:nbytes]
            if self.peer._requests is not None and self.peer._requests.asks:
                self.peer._look(lambda requests: requests.answered(data))
            if self._requests is None or self._requests.let_by(nbytes):
                self._pass_on(data)
            else:
                self._look(lambda requests: requests.feed(data))
            if self._share is not None:
                self._share.spend(self, nbytes)
        self._wake()

    def eof_received(self) -> bool:
        """Nothing more comes in here; what goes out may go on."""
        self._eof = True
        if self.held is None and self.peer is not None:
            self._pass_end()
        self._wake()
        return True

    def pause_writing(self) -> None:
        """This end takes no more."""
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """This end took everything."""
        self._keep(-self._kept)
        if self.peer is not None:
            self.peer._read()

    # -- turns

    def park(self) -> None:
        """Read nothing until the others have had their turn."""
        self._parked = True
        if self.transport is not None and not self.transport.is_closing() and not self._eof:
            self.transport.pause_reading()

    def unpark(self) -> None:
        """Read again, if the other end takes anything."""
        self._parked = False
        if self._behind:
            asyncio.get_running_loop().call_soon(self._look_on)
        else:
            self._read()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self.closed = True
        self._keep(-self._kept)
        if self._share is not None:
            self._share.leave(self)
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
            peer._keep(len(data) - sent)
            peer.transport.write(bytes(data[sent:]))

    def _look(self, passing: Callable[[Requests], bytes]) -> None:
        """Pass on what may pass of a client's requests, and go on in the loop's next turn where there is more."""
        requests = self._requests
        if requests is None or self._objection is None:
            return
        try:
            data = memoryview(passing(requests))
        except Unreadable as error:
            self._objection(error)
            return
        had = min(self._passed, len(data))
        self._passed -= had
        if had < len(data):
            self._pass_on(data[had:])
        if self._share is not None:
            self._share.spend(self, requests.steps * _STEP)
        if requests.behind:
            if self.transport is not None and not self.transport.is_closing():
                self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._look_on)
        elif self._eof:
            self._pass_end()

    def _look_on(self) -> None:
        if self._behind and not self._parked and self.transport is not None and not self.transport.is_closing():
            self._look(lambda requests: requests.feed(b""))
            self._read()

    def _keep(self, count: int) -> None:
        self._kept += count
        Side.kept += count

    def _pass_end(self) -> None:
        peer = self.peer
        if peer is None or peer.transport is None or peer.closed or self._behind:
            return
        if self._requests is not None and self._requests.waits and not peer._eof:
            return  # after what is held, which goes once the other end has answered
        if peer._eof and peer.held is None and not peer._behind:
            # Both have ended: each goes once its last bytes have
            peer.close()
            self.close()
        elif not peer.transport.is_closing():
            with suppress(OSError):
                peer.transport.write_eof()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
