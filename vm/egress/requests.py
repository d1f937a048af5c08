"""Follows the requests of one HTTP/1 connection by their framing, so that each of them can be looked at. Pure.

Bodies are counted, not read. What cannot be followed, or what servers could read in two ways, is Unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from vm.egress.peek import MAX_PEEK, Claim, Unreadable, read_request

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?\r\n")
_TRAILER = re.compile(rb"(?:[^\r\n\0:]+:[^\r\n\0]*)?\r\n")
_MAX_LINE = 4096
_SWITCHES = re.compile(rb"HTTP/1\.[01] 101[ \r]")


class _At(Enum):
    HEAD = "a head"
    BODY = "a body of known length"
    CHUNK = "the line before a chunk"
    DATA = "a chunk"
    END = "the line end behind a chunk"
    TRAILER = "what follows the last chunk"
    ASKED = "what follows a request for another protocol"
    FREE = "another protocol"


class Requests:
    """`agreed` is told whom each request is for, and raises Unreadable to end it."""

    def __init__(self, agreed: Callable[[Claim], None]) -> None:
        self._agreed = agreed
        self._at = _At.HEAD
        self._held = bytearray()
        self._left = 0
        self._first, self._asks = True, False

    @property
    def asks(self) -> bool:
        """Whether the server's answer tells what may follow."""
        return self._at is _At.ASKED

    def let_by(self, count: int) -> bool:
        """Whether so many bytes may pass unseen; they have passed then."""
        if self._at is _At.FREE:
            return True
        if self._at not in (_At.BODY, _At.DATA) or count >= self._left:
            return False
        self._left -= count
        return True

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """What of these bytes, and of those before them, may pass now. Unreadable."""
        self._held += data
        passed = bytearray()
        while self._held and (step := self._step()):
            passed += self._held[:step]
            del self._held[:step]
        if len(self._held) > MAX_PEEK:
            raise Unreadable("the client sent too much at once")
        return bytes(passed)

    def answered(self, data: bytes | bytearray | memoryview) -> bytes:
        """What may pass now that the server's answer begins like this. Unreadable."""
        # One that comes in smaller pieces is taken for a refusal
        self._at = _At.FREE if _SWITCHES.match(data) else _At.HEAD
        return self.feed(b"")

    def _step(self) -> int:
        """How many of the next bytes may pass; 0 where more are needed."""
        match self._at:
            case _At.HEAD:
                return self._head()
            case _At.BODY | _At.DATA:
                return self._counted()
            case _At.CHUNK:
                return self._chunk()
            case _At.END:
                return self._line_end(_At.CHUNK)
            case _At.TRAILER:
                return self._trailer()
            case _At.ASKED:
                return 0
            case _At.FREE:
                return len(self._held)

    def _head(self) -> int:
        if not self._first and self._held[:1] == b"\r":
            return self._line_end(_At.HEAD)  # some clients end a body with a line too many
        request = read_request(self._held)
        if request is None:
            return 0
        self._agreed(request.claim)
        # Before the answer to a later one there may be others
        self._asks, self._first = self._first and request.upgrade, False
        self._left = request.length
        if request.chunked:
            self._at = _At.CHUNK
        elif request.length:
            self._at = _At.BODY
        else:
            self._ended()
        return request.end

    def _counted(self) -> int:
        step = min(self._left, len(self._held))
        self._left -= step
        if not self._left and self._at is _At.DATA:
            self._at = _At.END
        elif not self._left:
            self._ended()
        return step

    def _chunk(self) -> int:
        line = _CHUNK.match(self._held)
        if line is None:
            return self._more()
        self._left = int(line[1], 16)
        self._at = _At.DATA if self._left else _At.TRAILER
        return line.end()

    def _line_end(self, then: _At) -> int:
        if not b"\r\n".startswith(self._held[:2]):
            raise Unreadable("a request does not end where it should")
        if len(self._held) < 2:
            return 0
        self._at = then
        return 2

    def _trailer(self) -> int:
        line = _TRAILER.match(self._held)
        if line is None:
            return self._more()
        if line.end() == 2:
            self._ended()
        return line.end()

    def _more(self) -> int:
        if b"\n" in self._held or len(self._held) > _MAX_LINE:
            raise Unreadable("the body of a request cannot be followed")
        return 0

    def _ended(self) -> None:
        self._at = _At.ASKED if self._asks else _At.HEAD
