"""Follows the requests of one HTTP/1 connection by their framing, so that each of them can be looked at. Pure.

Bodies are counted, not read. What cannot be followed, or what servers could read in two ways, is Unreadable.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import Enum

from vm.egress.peek import MAX_PEEK, Claim, Unreadable, read_request

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?\r\n")
_TRAILER = re.compile(rb"(?:[^\r\n\0:]+:[^\r\n\0]*)?\r\n")
_MAX_LINE = 4096
_SWITCHES = re.compile(rb"HTTP/1\.[01] 101[ \r]")
_INTERIM = re.compile(rb"(?:HTTP/1\.[01] 1(?!01)[0-9]{2}[ \r][^\n]*\n(?:[^\r\n]+\r\n)*\r\n)*")
_AT_ONCE = 16_384  # bytes that are read of what is not only counted
SLICE = 1024
"""Steps of one look: about a millisecond of work."""
_HEAD = 16  # steps that one is, and one more for each few of its bytes
_FEW = 8


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
    """`agreed` is told whom each request is for, with its head, and raises Unreadable to end it.

    A look ends after so many steps: others have connections too. While it is `behind` there is more to look at, by
    `feed` with nothing.
    """

    def __init__(self, agreed: Callable[[Claim, bytes], None]) -> None:
        self._agreed = agreed
        self._at, self._then = _At.HEAD, _At.HEAD  # what follows the request that is being read
        self._held = bytearray()
        self._left = 0
        self._first = True
        self._claim: Claim | None = None
        self.steps = 0  # of the last look
        self.behind = False

    @property
    def asks(self) -> bool:
        """Whether the server's answer tells what may follow."""
        return self._then is _At.ASKED

    @property
    def waits(self) -> bool:
        """Whether something is held until the server answers."""
        return self._at is _At.ASKED and bool(self._held)

    @property
    def room(self) -> int:
        """How many bytes may be read at once: those that are only counted, and some more."""
        if self._at is _At.FREE:
            return sys.maxsize
        return _AT_ONCE + (self._left if self._at in (_At.BODY, _At.DATA) else 0)

    def let_by(self, count: int) -> bool:
        """Whether so many bytes may pass unseen; they have passed then."""
        if self._at is _At.FREE:
            return not self._held
        if self._held or self._at not in (_At.BODY, _At.DATA) or count >= self._left:
            return False
        self._left -= count
        return True

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """What of these bytes, and of those before them, may pass after one look. Unreadable."""
        self._held += data
        self.steps = 0
        passed = bytearray()
        while self._held and self.steps < SLICE and (step := self._step()):
            self.steps += 1
            passed += self._held[:step]
            del self._held[:step]
        self.behind = bool(self._held) and self.steps >= SLICE
        if not self.behind and len(self._held) > MAX_PEEK:
            raise Unreadable("the client sent too much at once")
        return bytes(passed)

    def answered(self, data: bytes | bytearray | memoryview) -> bytes:
        """What may pass now that the server says this, which may be its answer already. Unreadable."""
        interim = _INTERIM.match(data)
        place = interim.end() if interim is not None else 0
        if place < len(data):
            # One that comes in smaller pieces is taken for a refusal
            self._then = _At.FREE if _SWITCHES.match(data, place) else _At.HEAD
            if self._at is _At.ASKED:
                self._at = self._then
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
        self.steps += _HEAD + request.end // _FEW
        if request.claim != self._claim:
            self.steps += SLICE  # it is looked up among all rules and secrets
        self._claim = request.claim
        self._agreed(request.claim, bytes(self._held[: request.end]))
        # Before the answer to a later one there may be others
        self._then = _At.ASKED if self._first and request.upgrade else _At.HEAD
        self._first = False
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
        self._at = self._then
