"""The host's side of the channel: finds its way back after every kind of cut, and a hostile guest hurts only itself."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from vm.errors import HostFull, MachineGone, StreamReset
from vm.guest import channel as channel_module
from vm.guest.channel import Channel, GuestStream
from vm.guest.frames import (
    HEADER,
    MAX_PAYLOAD,
    Data,
    Ended,
    LinkReset,
    Multiplexer,
    Opened,
    Type,
)


class Peer:
    """A guest of our own making: answers on every stream with what it got, until told to misbehave."""

    def __init__(self) -> None:
        self.ignored: set[int] = set()
        self.links = 0
        self._mux = Multiplexer(host=False)
        self._ours: socket.socket | None = None
        self._serving: asyncio.Future[None] | None = None
        self._sending: asyncio.Future[None] | None = None

    async def connect(self) -> socket.socket:
        """A fresh connection to it, as the channel asks for one; the guest's half stays as it was."""
        await self.cut()
        host, self._ours = socket.socketpair()
        host.setblocking(False)
        self._ours.setblocking(False)
        self._serving = asyncio.ensure_future(self._serve(self._ours))
        return host

    async def send(self, data: bytes) -> None:
        """Send anything at all. BrokenPipeError if the host does not take it any more."""
        assert self._ours is not None
        self._sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(self._ours, data))
        await asyncio.wait([self._sending])
        if self._sending.cancelled() or self._sending.exception() is not None:
            raise BrokenPipeError

    async def cut(self) -> None:
        """End the connection, wherever it is."""
        # First, or the loop would take the number of the closed socket for that of the next one
        for task in (self._serving, self._sending):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._ours is not None:
            self._ours.close()

    async def _serve(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(ours, 65_536):
            for event in self._mux.receive(data):
                answer = b""
                if isinstance(event, LinkReset):
                    self.links += 1
                    answer = event.echo
                elif isinstance(event, Data) and event.stream not in self.ignored:
                    answer = self._mux.consumed(event.stream, len(event.data)) + self._mux.data(
                        event.stream, event.data
                    )
                elif isinstance(event, Ended):
                    answer = self._mux.end(event.stream)
                elif isinstance(event, Opened):
                    pass
                if answer:
                    await loop.sock_sendall(ours, answer)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    await made.cut()


@pytest.fixture
async def link(peer: Peer) -> AsyncIterator[Channel]:
    made = Channel(peer.connect)
    yield made
    await made.close()
    await asyncio.sleep(0)


async def _echo(link: Channel, data: bytes = b"hello") -> bytes:
    stream = await link.open()
    await stream.write(data)
    await stream.end()
    back = b""
    while piece := await stream.read():
        back += piece
    return back


async def _drain(stream: GuestStream) -> None:
    while await stream.read():
        pass


async def _until(true: Callable[[], bool], patience: float = 5.0) -> None:
    until = time.monotonic() + patience
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_streams_carry_bytes_both_ways(link: Channel) -> None:
    """Small and large, several at once, in any pieces."""
    assert await _echo(link) == b"hello"
    contents = [secrets.token_bytes(200_000) for _ in range(5)]
    assert await asyncio.gather(*(_echo(link, content) for content in contents)) == contents


@pytest.mark.parametrize("kept", [1, 7, 8, 100, 60_000])
async def test_cut_inside_a_frame_it_resynchronises(peer: Peer, link: Channel, kept: int) -> None:
    """The guest has sent, and the host has read, only a part of a frame: the next link works all the same."""
    stream = await link.open()
    frame = HEADER.pack(1, Type.DATA, 0, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)
    await peer.send(frame[:kept])
    await asyncio.sleep(0.02)
    await peer.cut()
    with pytest.raises(StreamReset):
        await _drain(stream)
    assert await _echo(link) == b"hello"


@pytest.mark.parametrize("half", [1, 7, 8, 5000])
async def test_the_guest_was_cut_inside_a_frame(peer: Peer, link: Channel, half: int) -> None:
    """The guest still waits for the rest of a frame of the old link: the preamble completes it."""
    assert await _echo(link) == b"hello"
    peer._mux.receive((HEADER.pack(9, Type.OPEN, 0, 0) + HEADER.pack(9, Type.DATA, 0, 6000) + bytes(6000))[: 8 + half])
    await peer.cut()
    await _until(lambda: not link.up)
    assert await _echo(link) == b"hello"
    assert peer.links == 2


async def test_old_bytes_before_the_echo_are_dropped(peer: Peer) -> None:
    """What the guest still had under way of its old link never reaches a stream of the new one."""
    connect = peer.connect

    async def with_stray() -> socket.socket:
        made = await connect()
        await peer.send(HEADER.pack(1, Type.DATA, 0, 5) + b"stale" + secrets.token_bytes(30_000))
        return made

    link = Channel(with_stray)
    assert await _echo(link) == b"hello"
    await link.close()


async def _garbage(peer: Peer) -> None:
    await peer.send(secrets.token_bytes(100_000))


async def _unknown_streams(peer: Peer) -> None:
    await peer.send(HEADER.pack(999_999, Type.DATA, 0, 4) + b"oops")


async def _too_much(peer: Peer) -> None:
    frame = HEADER.pack(1, Type.DATA, 0, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)
    await peer.send(frame * 6)


async def _bad_window(peer: Peer) -> None:
    await peer.send(HEADER.pack(1, Type.WINDOW, 0, 4) + b"\xff\xff\xff\xff")


@pytest.mark.parametrize("attack", [_garbage, _unknown_streams, _too_much, _bad_window])
async def test_a_breach_ends_the_link_and_is_counted(
    peer: Peer, link: Channel, attack: Callable[[Peer], Awaitable[None]]
) -> None:
    """Whatever breaks the framing resets the streams, is counted, and the next link works."""
    stream = await link.open()
    await stream.write(b"x")
    assert await stream.read() == b"x"
    with suppress(OSError):  # cut off while it was still at it
        await attack(peer)
    with pytest.raises(StreamReset):
        await _drain(stream)
    await _until(lambda: link.breaches == 1)
    assert await _echo(link) == b"hello"


async def test_a_flood_for_a_stream_that_is_gone(peer: Peer, link: Channel) -> None:
    """After our RESET a guest may finish what is under way, but not send on for ever."""
    stream = await link.open()
    await stream.write(b"x")
    await stream.read()
    await stream.abort()
    frame = HEADER.pack(1, Type.DATA, 0, 60_000) + bytes(60_000)
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(1000):
            await peer.send(frame)
    await _until(lambda: link.breaches == 1)


async def test_a_flood_of_tiny_frames_leaves_the_loop_alive(peer: Peer, link: Channel) -> None:
    """A guest that sends headers as fast as it can is slowed down, and others have their turn meanwhile."""
    await _echo(link)
    await link.open()

    async def flood() -> None:
        frames = HEADER.pack(1, Type.RESET, 0, 0) * 8000
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(400):
                await peer.send(frames)

    flooding = asyncio.ensure_future(flood())
    late = 0.0
    while not flooding.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        late = max(late, time.monotonic() - began)
    await flooding
    assert late < 0.5
    assert link.breaches == 1


async def test_one_that_never_answers_is_left_alone(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an echo what it sends is bounded, and opening says so in time."""
    monkeypatch.setattr(channel_module, "_STRAY_BEFORE_ECHO", 100_000)

    async def mute() -> socket.socket:
        host, ours = socket.socketpair()
        host.setblocking(False)
        ours.setblocking(False)
        mutes.append(ours)
        floods.append(asyncio.ensure_future(_flood(ours)))
        return host

    mutes: list[socket.socket] = []
    floods: list[asyncio.Task[None]] = []
    link = Channel(mute)
    with pytest.raises(StreamReset):
        await link.open(timeout=0.5)
    assert link.breaches >= 1
    assert len(mutes) < 8, "it must back off"
    await link.close()
    await asyncio.wait(floods, timeout=5)
    for ours in mutes:
        ours.close()


async def _flood(ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            await loop.sock_sendall(ours, bytes(65_536))
    except OSError:
        return


async def test_a_reader_that_stalls_holds_one_window(peer: Peer, link: Channel) -> None:
    """The peer is stopped at its window; another stream goes on meanwhile."""
    stalled = await link.open()
    peer.ignored.add(1)
    writing = asyncio.ensure_future(stalled.write(bytes(3_000_000)))
    await asyncio.sleep(0.2)
    assert not writing.done()
    assert await _echo(link) == b"hello"
    writing.cancel()
    await stalled.abort()


async def test_streams_are_counted(peer: Peer, link: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit opening is refused, and one that ends makes room; some are left for the node itself."""
    monkeypatch.setattr(channel_module, "MAX_OPEN", 5)
    monkeypatch.setattr(channel_module, "RESERVED", 2)
    streams = [await link.open() for _ in range(3)]
    with pytest.raises(HostFull, match="3 open streams"):
        await link.open()
    own = [await link.open(own=True) for _ in range(2)]
    with pytest.raises(HostFull, match="5 open streams"):
        await link.open(own=True)
    await own[0].abort()
    with pytest.raises(HostFull):
        await link.open()
    await own[1].abort()
    await streams[0].abort()
    await link.open()


async def test_closed_is_gone(peer: Peer, link: Channel) -> None:
    """After close whoever waits, reads or opens learns at once."""
    stream = await link.open()
    reading = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0.01)
    await link.close()
    with pytest.raises(StreamReset):
        await reading
    with pytest.raises(MachineGone):
        await link.open()
    await link.close()


async def test_what_is_sent_early_follows_the_preamble(peer: Peer, link: Channel) -> None:
    """A stream that is opened before the agent has answered carries its bytes as any other; a closed link ends it."""
    stream = await link.open(early=True)
    await stream.write(b"early")
    await stream.end()
    assert await stream.read() == b"early"
    await _until(lambda: link.up)
    await peer.cut()
    await _until(lambda: not link.up)
    lost = await link.open(early=True)
    await link.close()
    with pytest.raises(StreamReset):
        await lost.read()
