"""HTTP/1.1 messages as a relay needs them: heads read strictly, bodies only as far as where they end. Pure.

What two readers could understand differently is refused (RFC 9112, sections 2.2, 5, 6 and 11.2): a relay that guessed
would let one visitor's request end up in another's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

MAX_HEAD = 65_536
MAX_SIZE_LINE = 4096
MAX_TRAILERS = 16_384

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*)?)[ \t]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?[ \t]*")
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"upgrade"}
)


class BadMessage(Exception):
    """A message that is none; `status` is what its sender should be told."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Ends(Enum):
    """How the end of a body is told."""

    NONE = "there is no body"
    LENGTH = "after so many bytes"
    CHUNKED = "by a last chunk"
    CLOSE = "by the end of the connection"


@dataclass(frozen=True, slots=True)
class Body:
    """Where a message's body ends."""

    ends: Ends
    length: int = 0


type Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A head. `start` is the request line or status line without its version, `minor` that of HTTP/1.x."""

    minor: int
    headers: Headers

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header; `name` in small letters."""
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: bytes) -> bytes:
        """The first value, or nothing."""
        return next(iter(self.all(name)), b"")

    def options(self, name: bytes) -> set[bytes]:
        """The words of a list-valued header, in small letters."""
        return {word.strip().lower() for value in self.all(name) for word in value.split(b",")} - {b""}

    @property
    def keeps(self) -> bool:
        """Whether the sender will go on with the connection after this message."""
        words = self.options(b"connection")
        return b"close" not in words and (self.minor == 1 or b"keep-alive" in words)

    def passed_on(self) -> Headers:
        """The headers that are not about this connection alone (RFC 9110, section 7.6.1)."""
        dropped = HOP_BY_HOP | (self.options(b"connection") - {b"te"})
        return tuple((name, value) for name, value in self.headers if name.lower() not in dropped)


@dataclass(frozen=True, slots=True)
class Request(Message):
    """A request's head."""

    method: bytes = b""
    target: bytes = b""

    @property
    def host(self) -> str:
        """The host it names, without a port, in small letters."""
        return host_of(self.get(b"host"))

    @property
    def upgrades(self) -> bool:
        """Whether it asks for another protocol on this connection, as WebSocket does; HTTP/1.0 knows no such thing."""
        return self.minor == 1 and b"upgrade" in self.options(b"connection") and bool(self.get(b"upgrade"))

    def body(self) -> Body:
        """Where its body ends. BadMessage for one that could end in two places."""
        coded, lengths = self.all(b"transfer-encoding"), self.all(b"content-length")
        if coded:
            if lengths or self.minor == 0:
                raise BadMessage("the length of the body is said in two ways")
            if [value.lower() for value in coded] != [b"chunked"]:
                raise BadMessage("a transfer coding other than chunked", 501)
            return Body(Ends.CHUNKED)
        if not lengths:
            return Body(Ends.NONE)
        return Body(Ends.LENGTH, _length(lengths))


@dataclass(frozen=True, slots=True)
class Response(Message):
    """A response's head."""

    status: int = 0
    reason: bytes = b""

    @property
    def informs(self) -> bool:
        """Whether another one follows."""
        return 100 <= self.status < 200 and self.status != 101

    def body(self, method: bytes) -> Body:
        """Where its body ends, as the answer to such a request. BadMessage."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return Body(Ends.NONE)
        if coded := self.all(b"transfer-encoding"):
            if [value.lower() for value in coded] != [b"chunked"]:
                raise BadMessage("a transfer coding other than chunked", 502)
            return Body(Ends.CHUNKED)
        lengths = self.all(b"content-length")
        return Body(Ends.LENGTH, _length(lengths)) if lengths else Body(Ends.CLOSE)

    def passed_on(self) -> Headers:
        """As Message has it; without a length beside chunks, which would be believed by some."""
        headers = Message.passed_on(self)
        if self.all(b"transfer-encoding"):
            headers = tuple((name, value) for name, value in headers if name.lower() != b"content-length")
        return headers


def parse_request(head: bytes) -> Request:
    """A request's head, all lines of it with their ends. BadMessage."""
    first, headers = _lines(head)
    found = _REQUEST.fullmatch(first)
    if found is None:
        raise BadMessage("the request line is none")
    request = Request(minor=int(found[3]), headers=headers, method=found[1], target=found[2])
    if len(request.all(b"host")) != 1 and request.minor == 1:
        raise BadMessage("there must be exactly one Host")
    if request.target[:1] != b"/":
        if request.method == b"OPTIONS" and request.target == b"*":
            return request
        # The absolute form, which every server must take: its path is what is asked for
        absolute = re.fullmatch(rb"https?://[^/?#]+(/?[^#]*)", request.target)
        if absolute is None:
            raise BadMessage("the request's target is none")
        path = absolute[1] if absolute[1].startswith(b"/") else b"/" + absolute[1]
        return replace(request, target=path)
    return request


def parse_response(head: bytes) -> Response:
    """A response's head. BadMessage, with 502: whoever asked is not at fault."""
    try:
        first, headers = _lines(head)
    except BadMessage as error:
        raise BadMessage(str(error), 502) from None
    found = _STATUS.fullmatch(first)
    if found is None:
        raise BadMessage("the status line is none", 502)
    return Response(minor=int(found[1]), headers=headers, status=int(found[2]), reason=found[3] or b"")


def request_head(request: Request, added: Headers) -> bytes:
    """A request as it goes on, with more headers; in its own version, as its sender has to understand the answer."""
    first = b"%s %s HTTP/1.%d" % (request.method, request.target, request.minor)
    closing = () if request.minor else ((b"Connection", b"close"),)
    return _head(first, (*request.passed_on(), *added, *closing))


def response_head(response: Response, added: Headers) -> bytes:
    """A response as it goes on, with more headers."""
    return _head(b"HTTP/1.1 %d %s" % (response.status, response.reason), (*response.passed_on(), *added))


def host_of(value: bytes) -> str:
    """A Host's value without its port, in small letters."""
    text = value.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]


def _head(first: bytes, headers: Headers) -> bytes:
    return b"\r\n".join([first, *(b"%s: %s" % header for header in headers), b"", b""])


def _lines(head: bytes) -> tuple[bytes, Headers]:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    headers = []
    for line in lines[1:]:
        # Neither a bare CR or LF nor a continued line matches
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadMessage("a header is none")
        headers.append((found[1], found[2]))
    return lines[0], tuple(headers)


def _length(values: list[bytes]) -> int:
    if len(set(values)) != 1 or _DIGITS.fullmatch(values[0]) is None:
        raise BadMessage("Content-Length is no number")
    return int(values[0])


class Chunks:
    """Finds where a chunked body ends, of which the bytes are passed on as they are."""

    def __init__(self) -> None:
        self.done = False
        self._line = bytearray()
        self._left = 0  # of the chunk's data, its line end included
        self._trailers = -1  # bytes of them; -1 before the last chunk

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body: all, unless it is `done`. BadMessage."""
        at = 0
        while at < len(data) and not self.done:
            if self._left > 2:
                step = min(self._left - 2, len(data) - at)
                self._left -= step
                at += step
                continue
            if self._left:
                if data[at] != b"\r\n"[2 - self._left]:
                    raise BadMessage("a chunk is longer than it said")
                self._left -= 1
                at += 1
                continue
            end = data.find(b"\n", at)
            piece = data[at : end + 1] if end >= 0 else data[at:]
            self._line += piece
            at += len(piece)
            if len(self._line) > (MAX_SIZE_LINE if self._trailers < 0 else MAX_TRAILERS - self._trailers):
                raise BadMessage("a line of a chunked body is too long")
            if end >= 0:
                self._took(bytes(self._line))
                self._line.clear()
        return at

    def _took(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BadMessage("a line of a chunked body does not end as one")
        line = line[:-2]
        if self._trailers >= 0:
            self._trailers += len(line) + 2
            if not line:
                self.done = True
            elif _HEADER.fullmatch(line) is None:
                raise BadMessage("a trailer is none")
            return
        if _HEX.fullmatch(line) is None:
            raise BadMessage("a chunk's size is none")
        size = int(line.partition(b";")[0], 16)
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
