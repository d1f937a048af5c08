"""Moves frames between one file descriptor and streams, with back-pressure both ways.

The descriptor is a virtio-serial port (or a socket, in tests). While nobody is at its other end a port reports a
hang-up for ever, which a level-triggered loop would spin on: so it is then watched for changes only, by an
edge-triggered epoll inside the loop's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections import deque
from collections.abc import Callable, Coroutine

from vm.guest.frames import (
    HEADER,
    MAX_PAYLOAD,
    Data,
    Ended,
    Inbox,
    LinkReset,
    Multiplexer,
    Opened,
    ProtocolError,
    Reset,
)

# A port hands out a page for each read and takes 32 KiB for each write; with vectors one system call does many.
_PAGE = 4096
_PAGES = 128
_SEGMENT = 32_768
_SEGMENTS = 16
_HIGH = 524_288  # unsent bytes above which writers wait
_LOW = 262_144
_LOOK_AGAIN = 2.0  # seconds; only in case the kernel did not tell of a change


class StreamGone(Exception):
    """The stream was reset by the host, or its link began anew."""


class Stream:
    """One stream from the host: read, write, end, reset. One reader and one writer at a time."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self.gone = False
        self._link = link
        self._inbox = Inbox()
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self, limit: int = 262_144) -> bytes:
        """Up to `limit` bytes as they come; empty at the host's end. StreamGone."""
        while True:
            data = self._inbox.take(limit)
            if data:
                self._link.consumed(self.number, len(data))
                return data
            if self.gone:
                raise StreamGone
            if self._ended:
                return b""
            self._reader = self._link.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def read_many(self, limit: int) -> list[bytes]:
        """Like `read`, but everything that is there already, up to `limit`, in its pieces. StreamGone."""
        first = await self.read(limit)
        if not first:
            return []
        pieces, room = [first], limit - len(first)
        while room and (piece := self._inbox.take(room)):
            self._link.consumed(self.number, len(piece))
            pieces.append(piece)
            room -= len(piece)
        return pieces

    async def read_all(self, limit: int) -> bytes:
        """What `read_many` gives, as one piece. StreamGone."""
        return b"".join(await self.read_many(limit))

    async def read_exactly(self, count: int) -> bytes | None:
        """`count` bytes; None if the stream ended before. StreamGone."""
        pieces = []
        while count:
            piece = await self.read(count)
            if not piece:
                return None
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`, waiting while host or link have no room. StreamGone."""
        view = memoryview(data)
        link = self._link
        while view:
            if self.gone:
                raise StreamGone
            room = link.mux.room(self.number)
            if room == 0 or link.unsent > _HIGH:
                self._writer = link.loop.create_future()
                if room:
                    link.waiting_writers.append(self._writer)
                try:
                    await self._writer
                finally:
                    self._writer = None
                continue
            piece = view[: min(room, MAX_PAYLOAD)]
            link.send_data(self.number, piece)
            view = view[len(piece) :]

    def end(self) -> None:
        """Say that nothing more comes from here. Repeatable."""
        if not self.gone:
            self._link.send(self._link.mux.end(self.number))

    def reset(self, reason: str) -> None:
        """Give the stream up in both directions. Repeatable."""
        if not self.gone:
            self._link.send(self._link.mux.reset(self.number, reason))
            self.lose()

    def drain(self) -> None:
        """Drop what nobody will read, so that the host can go on to the end of its input."""
        while data := self._inbox.take(MAX_PAYLOAD):
            self._link.consumed(self.number, len(data))

    # -- what the link tells it

    def arrived(self, data: bytes) -> None:
        """Bytes came."""
        self._inbox.put(data)
        _wake(self._reader)

    def ended(self) -> None:
        """The host will send nothing more."""
        self._ended = True
        _wake(self._reader)

    def granted(self) -> None:
        """There is room to write again."""
        _wake(self._writer)

    def lose(self) -> None:
        """The stream is gone: whoever waits on it learns that."""
        self.gone = True
        _wake(self._reader)
        _wake(self._writer)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Link:
    """Serves the streams of `fd` until it is closed; `serve` handles one stream and is cancelled with it."""

    def __init__(
        self,
        fd: int,
        serve: Callable[[Stream], Coroutine[None, None, None]],
        *,
        reopen: bool,
        said: Callable[[str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.mux = Multiplexer(host=False)
        self.mux.search()  # an agent that starts anew may find itself in the middle of its predecessor's link
        self.unsent = 0
        self.waiting_writers: list[asyncio.Future[None]] = []
        self.closed = self.loop.create_future()
        self._fd = fd
        self._serve = serve
        self._reopen = reopen  # a port comes back after a hang-up, a socket does not
        self._said = said
        self._streams: dict[int, tuple[Stream, asyncio.Task[None]]] = {}
        self._out: deque[memoryview] = deque()
        self._writing = False
        self._edge: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._view = memoryview(bytearray(_PAGE * _PAGES))
        self._pages = [self._view[at : at + _PAGE] for at in range(0, len(self._view), _PAGE)]
        os.set_blocking(fd, False)
        self.loop.add_reader(fd, self._readable)

    # -- receiving

    def _readable(self) -> None:
        try:
            count = os.readv(self._fd, self._pages)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count == 0:
            self._hung_up()
            return
        self._received(self._view[:count])

    def _received(self, data: memoryview) -> None:
        try:
            events = self.mux.receive(data)
        except ProtocolError as error:
            self._said(f"the host broke the protocol: {error}")
            self._forget()
            self.mux = Multiplexer(host=False)
            self.mux.search()
            events = self.mux.receive(data)  # the host's next preamble may be here already
        for event in events:
            if isinstance(event, LinkReset):
                self._forget()
                self.send(event.echo)
            elif isinstance(event, Opened):
                self._opened(event.stream)
            else:
                entry = self._streams.get(event.stream)
                if entry is None:
                    # Nobody reads here any more, but the host's window must not stay closed
                    if isinstance(event, Data):
                        self.consumed(event.stream, len(event.data))
                elif isinstance(event, Data):
                    entry[0].arrived(event.data)
                elif isinstance(event, Ended):
                    entry[0].ended()
                elif isinstance(event, Reset):
                    entry[0].lose()
                    entry[1].cancel()
                else:
                    entry[0].granted()

    def _opened(self, number: int) -> None:
        stream = Stream(self, number)
        task = self.loop.create_task(self._serve(stream))
        self._streams[number] = (stream, task)
        task.add_done_callback(lambda done: self._served(number, stream, done))

    def _served(self, number: int, stream: Stream, task: asyncio.Task[None]) -> None:
        if self._streams.get(number, (None,))[0] is stream:
            del self._streams[number]
            stream.drain()
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), StreamGone):
            self._said(f"a call failed: {task.exception()!r}")
            stream.reset("the agent failed")

    def _forget(self) -> None:
        self._out.clear()
        self.unsent = 0
        streams, self._streams = self._streams, {}
        for stream, task in streams.values():
            stream.lose()
            task.cancel()
        self._wake_writers()

    def _hung_up(self) -> None:
        self.loop.remove_reader(self._fd)
        if self._writing:
            self.loop.remove_writer(self._fd)
            self._writing = False
        if self._reopen:
            self._edge = select.epoll()
            self._edge.register(self._fd, select.EPOLLIN | select.EPOLLET)
            self.loop.add_reader(self._edge.fileno(), self._look_again)
            self._timer = self.loop.call_later(_LOOK_AGAIN, self._look_again)
        else:
            self._forget()
            if not self.closed.done():
                self.closed.set_result(None)

    def _look_again(self) -> None:
        if self._edge is None:
            return
        self._edge.poll(0)
        try:
            count = os.readv(self._fd, self._pages)
        except (BlockingIOError, InterruptedError):
            count = -1  # somebody is there and has said nothing yet
        except OSError:
            count = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if count == 0:
            self._timer = self.loop.call_later(_LOOK_AGAIN, self._look_again)
            return
        self.loop.remove_reader(self._edge.fileno())
        self._edge.close()
        self._edge = None
        self.loop.add_reader(self._fd, self._readable)
        if count > 0:
            self._received(self._view[:count])
        self._pump()

    # -- sending

    def consumed(self, number: int, count: int) -> None:
        """A reader took `count` bytes of a stream."""
        self.send(self.mux.consumed(number, count))

    def send(self, frame: bytes) -> None:
        """Queue one whole frame (or nothing) and write what the descriptor takes."""
        if frame:
            self._queue(memoryview(frame))
            if not self._writing:
                self._pump()

    def _queue(self, view: memoryview) -> None:
        self._out.append(view)
        self.unsent += len(view)

    def send_data(self, number: int, payload: memoryview) -> None:
        """Queue one frame of data. Only its first segment is copied: `payload` must not change any more."""
        header = self.mux.data_header(number, len(payload))
        # The port takes each part of a vector by itself, so a header alone would cost more than the copy
        first = min(len(payload), _SEGMENT - len(header))
        self._queue(memoryview(b"".join((header, payload[:first]))))
        if first < len(payload):
            self._queue(payload[first:])
        if not self._writing:
            self._pump()

    def confuse(self) -> None:
        """Break the link that a predecessor of this process left: no frame can go on after so many bytes of ones."""
        self.send(b"\xff" * (MAX_PAYLOAD + 2 * HEADER.size))

    def _pump(self) -> None:
        while self._out:
            segments: list[memoryview] = []
            for view in self._out:
                for at in range(0, len(view), _SEGMENT):
                    segments.append(view[at : at + _SEGMENT])
                if len(segments) >= _SEGMENTS:
                    break
            try:
                count = os.writev(self._fd, segments)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError:
                return  # the reader notices the hang-up
            if count == 0:
                if not self._writing:
                    self._writing = True
                    self.loop.add_writer(self._fd, self._pump)
                return
            self._sent(count)
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self._fd)

    def _sent(self, count: int) -> None:
        self.unsent -= count
        while count:
            head = self._out[0]
            if len(head) > count:
                self._out[0] = head[count:]
                break
            count -= len(head)
            self._out.popleft()
        if self.unsent <= _LOW:
            self._wake_writers()

    def _wake_writers(self) -> None:
        waiting, self.waiting_writers = self.waiting_writers, []
        for future in waiting:
            _wake(future)

    def close(self) -> None:
        """Stop serving; the descriptor is the caller's."""
        with contextlib.suppress(OSError, ValueError):
            self.loop.remove_reader(self._fd)
            self.loop.remove_writer(self._fd)
        self._forget()
