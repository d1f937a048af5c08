"""Multiplexes byte streams with flow control over one byte pipe; does no I/O and is the same code on host and guest.

A frame is an 8-byte big-endian header (stream u32, type u8, zero u8, length u16) and `length` bytes of payload.
The host opens streams and numbers them upwards from 1; a number is never used twice on one link. Each direction of a
stream ends on its own (END), or both at once (RESET). A sender may have `WINDOW` unconsumed bytes under way per stream;
the receiver grants more with WINDOW frames as its reader takes them. Where much moves, the receiver widens the window
of a few streams to `WIDE`, because each grant wakes a peer for which waking is dear (a guest under TCG: 0.3 ms).

Resynchronisation: either side may have been cut inside a frame, so the host starts every link with `preamble(nonce)`:
65,536 zero bytes, `MAGIC` and 16 random bytes. Zeros complete whatever half frame the guest was reading; a header of
zeros then sends it searching for MAGIC, upon which it forgets every stream and its own half-sent frame and echoes
MAGIC and nonce. The host drops all input up to that echo. The peer is not trusted: every bound is checked, and a
breach raises `ProtocolError`, which ends the link, never the process.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct(">IBBH")
MAGIC = b"\xffATOLL\x01\xff"
NONCE_BYTES = 16
MAX_PAYLOAD = 65_536 - HEADER.size
WINDOW = 262_144
WIDE = 1_048_576
MAX_WIDE = 8  # wide streams per link and direction: bounds what a link may hold beyond MAX_STREAMS windows
MAX_STREAMS = 1024
MAX_REASON = 1024


class Type(IntEnum):
    """What a frame does; PAD exists only in the preamble."""

    PAD = 0
    OPEN = 1
    DATA = 2
    END = 3
    RESET = 4
    WINDOW = 5


class ProtocolError(Exception):
    """The peer broke the framing; drop the link and start a new one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The host opened a stream (seen by the guest only)."""

    stream: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes arrived; call `Multiplexer.consumed` once the reader took them."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer will send nothing more on this stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream is gone in both directions; `reason` is the peer's, at most MAX_REASON bytes."""

    stream: int
    reason: str


@dataclass(frozen=True, slots=True)
class Granted:
    """`Multiplexer.room(stream)` has grown."""

    stream: int


@dataclass(frozen=True, slots=True)
class LinkReset:
    """The host began anew (seen by the guest only): forget every stream, then send `echo` first of all."""

    echo: bytes


Event = Opened | Data | Ended | Reset | Granted | LinkReset


def preamble(nonce: bytes) -> bytes:
    """What the host sends first on every link; `nonce` is NONCE_BYTES random bytes, new for each."""
    return bytes(65_536) + MAGIC + nonce


class EchoScanner:
    """Host side: drops input until the guest's echo of `nonce`, keeping at most the echo's length of it."""

    def __init__(self, nonce: bytes) -> None:
        self._wanted = MAGIC + nonce
        self._kept = b""

    def feed(self, data: bytes) -> bytes | None:
        """None while the echo has not come; afterwards whatever followed it (possibly empty), once."""
        data = self._kept + data
        at = data.find(self._wanted)
        if at >= 0:
            return data[at + len(self._wanted) :]
        self._kept = data[-(len(self._wanted) - 1) :]
        return None


@dataclass(slots=True)
class _Stream:
    room: int = WINDOW  # bytes that we may still send
    window: int = WINDOW  # bytes that the peer may have under way to us: WINDOW or WIDE
    taken: int = 0  # bytes our reader took in all, up to the first grant of a wide window
    unacknowledged: int = 0  # bytes our reader took and we have not yet granted again
    outstanding: int = 0  # bytes received and not yet granted again: bounded by `window`
    sent_end: bool = False
    got_end: bool = False


class Multiplexer:
    """The framing of one link. Feed it bytes, act on its events, write what its send methods return.

    One instance lives as long as one link (host) or until LinkReset (guest, which goes on with the same instance).
    """

    def __init__(self, *, host: bool) -> None:
        self._host = host
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._highest_seen = 0
        self._wide = 0
        self._buffer = bytearray()
        self._searching = False

    # -- receiving -----------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Guest, after a ProtocolError: drop everything up to the host's next preamble."""
        self._searching = True

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Parse what arrived; nothing of `data` is kept by reference. ProtocolError when the peer breaks the rules."""
        events: list[Event] = []
        with memoryview(data) as view:
            at = self._complete(view, events) if self._buffer else 0
            if not self._buffer:
                # Read in place: most input is whole frames, and copies cost
                done = at
                try:
                    done += self._parse(view[at:], events)
                finally:
                    self._buffer += view[done:]
        return events

    def _complete(self, view: memoryview, events: list[Event]) -> int:
        """Add to the frame that is half here what it lacks, and parse it; returns how much of `view` went into it."""
        at = 0
        while self._buffer and at < len(view):
            add = view[at : at + self._lacking()]
            self._buffer += add
            at += len(add)
            half, self._buffer = self._buffer, bytearray()
            done = 0
            try:
                with memoryview(half) as whole:
                    done = self._parse(whole, events)
            finally:
                self._buffer += half[done:]
        return at

    def _lacking(self) -> int:
        if self._searching:
            return MAX_PAYLOAD
        if len(self._buffer) < HEADER.size:
            return HEADER.size - len(self._buffer)
        length: int = HEADER.unpack_from(self._buffer)[3]
        return max(1, HEADER.size + min(length, MAX_PAYLOAD) - len(self._buffer))

    def _parse(self, view: memoryview, events: list[Event]) -> int:
        """Append what `view` says to `events`; returns how many bytes are done with."""
        at = 0
        end = len(view)
        while True:
            if self._searching:
                sought = bytes(view[at:])
                found = sought.find(MAGIC)
                if found < 0:
                    return max(at, end - len(MAGIC) + 1)
                at += found
                if end - at < len(MAGIC) + NONCE_BYTES:
                    return at
                echo = sought[found : found + len(MAGIC) + NONCE_BYTES]
                at += len(echo)
                self._searching = False
                self._streams.clear()
                self._wide = 0
                self._highest_seen = 0
                events.append(LinkReset(echo))
                continue
            if end - at < HEADER.size:
                return at
            stream, kind, zero, length = HEADER.unpack_from(view, at)
            if stream == 0 and kind == Type.PAD and length == 0 and not self._host:
                self._searching = True
                continue
            if zero or length > MAX_PAYLOAD:
                raise ProtocolError(f"bad header: type {kind}, length {length}")
            after = at + HEADER.size + length
            if end < after:
                return at
            event = self._frame(stream, kind, bytes(view[at + HEADER.size : after]))
            at = after
            if event is not None:
                events.append(event)

    def _frame(self, number: int, kind: int, payload: bytes) -> Event | None:
        if kind == Type.OPEN:
            if self._host or payload or number <= self._highest_seen:
                raise ProtocolError("unexpected OPEN")
            if len(self._streams) >= MAX_STREAMS:
                raise ProtocolError("too many streams")
            self._highest_seen = number
            self._streams[number] = _Stream()
            return Opened(number)
        stream = self._streams.get(number)
        if stream is None:
            # Crossed with our own RESET or the second END: legal, and nobody is listening any more.
            if number == 0 or kind not in (Type.DATA, Type.END, Type.RESET, Type.WINDOW) or self._never_was(number):
                raise ProtocolError(f"frame of type {kind} for unknown stream {number}")
            return None
        if kind == Type.DATA:
            if stream.got_end or not payload:
                raise ProtocolError("DATA after END, or empty")
            stream.outstanding += len(payload)
            if stream.outstanding > stream.window:
                raise ProtocolError("window exceeded")
            return Data(number, payload)
        if kind == Type.END:
            if stream.got_end or payload:
                raise ProtocolError("END twice, or with payload")
            stream.got_end = True
            self._drop_if_done(number, stream)
            return Ended(number)
        if kind == Type.RESET:
            self._drop(number)
            return Reset(number, payload[:MAX_REASON].decode("utf-8", "replace"))
        if kind == Type.WINDOW:
            if len(payload) != 4:
                raise ProtocolError("WINDOW of wrong length")
            stream.room += int.from_bytes(payload, "big")
            if stream.room > WIDE:
                raise ProtocolError("window grown beyond its size")
            return Granted(number)
        raise ProtocolError(f"unknown frame type {kind}")

    def _never_was(self, number: int) -> bool:
        return number >= self._next if self._host else number > self._highest_seen

    # -- sending: each returns the bytes to write ----------------------------------------------------------------------

    def open(self) -> tuple[int, bytes]:
        """Start a stream (host only). Raises ProtocolError at MAX_STREAMS: the caller must refuse work first."""
        if len(self._streams) >= MAX_STREAMS:
            raise ProtocolError("too many streams")
        number = self._next
        self._next += 1
        self._streams[number] = _Stream()
        return number, HEADER.pack(number, Type.OPEN, 0, 0)

    def room(self, number: int) -> int:
        """Bytes that may be sent on the stream now; 0 for a stream that is gone or ended by us."""
        stream = self._streams.get(number)
        return 0 if stream is None or stream.sent_end else stream.room

    def alive(self, number: int) -> bool:
        """Whether the stream still exists in either direction."""
        return number in self._streams

    def data(self, number: int, payload: bytes | memoryview) -> bytes:
        """At most min(room, MAX_PAYLOAD) bytes, never none. ValueError if the caller did not keep to that."""
        return b"".join((self.data_header(number, len(payload)), payload))

    def data_header(self, number: int, length: int) -> bytes:
        """What goes before a payload of `length` bytes, for a caller that saves the copy. Bounds as for `data`."""
        stream = self._streams[number]
        if stream.sent_end or not 0 < length <= min(stream.room, MAX_PAYLOAD):
            raise ValueError("payload does not fit the window")
        stream.room -= length
        return HEADER.pack(number, Type.DATA, 0, length)

    def end(self, number: int) -> bytes:
        """Say that nothing more follows from this side; no bytes if that was said or the stream is gone."""
        stream = self._streams.get(number)
        if stream is None or stream.sent_end:
            return b""
        stream.sent_end = True
        self._drop_if_done(number, stream)
        return HEADER.pack(number, Type.END, 0, 0)

    def reset(self, number: int, reason: str) -> bytes:
        """Give the stream up in both directions; no bytes if it is gone already."""
        if number not in self._streams:
            return b""
        self._drop(number)
        payload = reason.encode()[:MAX_REASON]
        return HEADER.pack(number, Type.RESET, 0, len(payload)) + payload

    def consumed(self, number: int, count: int) -> bytes:
        """The reader took `count` bytes: grants them to the peer, in steps large enough to save frames."""
        stream = self._streams.get(number)
        if stream is None:
            return b""
        stream.unacknowledged += count
        # Of a wide window half is enough to go on with, and each grant wakes the sender
        step = stream.window // (2 if stream.window == WIDE else 4)
        if stream.got_end or stream.unacknowledged < step:
            return b""
        # `outstanding` counts what the peer may not yet send again, so what was consumed leaves it only when granted.
        grant, stream.unacknowledged = stream.unacknowledged, 0
        stream.outstanding -= grant
        if stream.window == WINDOW and self._wide < MAX_WIDE:
            stream.taken += grant
            if stream.taken >= WINDOW:
                stream.window = WIDE
                self._wide += 1
                grant += WIDE - WINDOW
        return HEADER.pack(number, Type.WINDOW, 0, 4) + grant.to_bytes(4, "big")

    def _drop_if_done(self, number: int, stream: _Stream) -> None:
        if stream.sent_end and stream.got_end:
            self._drop(number)

    def _drop(self, number: int) -> None:
        self._wide -= self._streams.pop(number).window == WIDE


class Inbox:
    """Received bytes of one stream, in order, handed out in pieces of the reader's choosing."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def put(self, data: bytes) -> None:
        """Append what a Data event brought."""
        self._pieces.append(data)

    def take(self, limit: int) -> bytes:
        """Up to `limit` bytes; empty if there are none."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
            piece = piece[:limit]
        return piece
