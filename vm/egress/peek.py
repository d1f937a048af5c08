"""What a connection's first bytes say of the host it is meant for: TLS's SNI, HTTP's Host. Pure; input is hostile."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from urllib.parse import urlsplit

from vm.egress.hostnames import fold
from vm.egress.policy import Host

MAX_PEEK = 32_768
_MAX_RECORDS = 64
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0
_RECORDS = range(0x14, 0x19)
"""Every type of a TLS record: servers drop a warning, or a change of ciphers, that comes before the hello."""
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}) ([\x21-\x7e]+) (HTTP/1\.[01])")
_SPACE = rb"\t\v\f\r\x1c-\x20\x85\xa0"  # between words, to servers that split text, which is Latin-1 to them
_WORD = rb"[^\0-\x20\x7f\x85\xa0]"
_BEGINNING = re.compile(
    rb"[\n%b]*(?:%b*\Z|(?P<method>%b+)[%b]+(?P<rest>[^\n]*)(?P<end>\n)?)" % (_SPACE, _WORD, _WORD, _SPACE)
)
"""What may become, or is, the first line of a request, as loosely as any server reads one: a method, then a target.

Only control characters are in no method: nothing else tells most binary protocols from one that is long.
"""
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class Unreadable(ValueError):
    """It is not what it must be on this port; the message says why, to people."""


class Speech(Enum):
    """What a client speaks. HTTP of any version that is not within TLS."""

    TLS = "TLS"
    HTTP = "HTTP"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Claim:
    """Whom a client says it talks to; `host` None if it does not say."""

    host: Host | None
    port: int | None = None


def read_hello(data: bytes | bytearray) -> Claim | None:
    """The SNI of a ClientHello, however it is split over records. None: more is needed. Unreadable."""
    message, place, records = bytearray(), 0, 0
    while True:
        if place < len(data) and data[place] != _HANDSHAKE:
            raise Unreadable("what the client sent is not TLS")
        if place + 5 > len(data):
            break
        length = int.from_bytes(data[place + 3 : place + 5])
        records += 1
        if data[place + 1] != 3 or not 0 < length <= 16_384 or records > _MAX_RECORDS:
            raise Unreadable("what the client sent is not TLS")
        if place + 5 + length > len(data):
            break
        message += data[place + 5 : place + 5 + length]
        place += 5 + length
        if message[0] != _CLIENT_HELLO:
            raise Unreadable("TLS does not begin with a ClientHello")
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4]):
            return Claim(_server_name(bytes(message[4 : 4 + int.from_bytes(message[1:4])])))
    if len(data) > MAX_PEEK:
        raise Unreadable("the ClientHello is too long")
    return None


@dataclass(frozen=True, slots=True)
class Request:
    """The head of an HTTP/1 request: whom it is for, where it ends, how its body is framed."""

    claim: Claim
    end: int
    length: int
    chunked: bool
    upgrade: bool


def read_head(data: bytes | bytearray) -> Claim | None:
    """The host of an HTTP/1 request. None: more is needed. Unreadable, also where it names none, or several."""
    request = read_request(data)
    return request.claim if request is not None else None


def read_request(data: bytes | bytearray) -> Request | None:
    """The head of an HTTP/1 request. None: more is needed. Unreadable, also where servers could read it in two ways."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_PEEK or b"\n\n" in data or data[:1].isspace():
            raise Unreadable("what the client sent is not an HTTP/1 request")
        return None
    first, *fields = bytes(data[:end]).split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise Unreadable("what the client sent is not an HTTP/1 request")
    found: dict[bytes, list[bytes]] = {}
    for field in fields:
        parts = _FIELD.fullmatch(field)
        if parts is None:
            raise Unreadable("a header of the request cannot be read")
        found.setdefault(parts[1].lower(), []).append(parts[2])
    length, chunked = _framing(found, old=line[3] == b"HTTP/1.0")
    return Request(_meant(line, found.get(b"host", [])), end + 4, length, chunked, b"upgrade" in found)


def _framing(fields: Mapping[bytes, Sequence[bytes]], *, old: bool) -> tuple[int, bool]:
    """The length of a body, and whether it comes in chunks instead."""
    lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if codings and not lengths and not old and [coding.lower() for coding in codings] == [b"chunked"]:
        return 0, True
    if codings or len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]{1,18}", length) for length in lengths):
        raise Unreadable("how long the request is cannot be read")
    return int(lengths[0]) if lengths else 0, False


def _meant(line: re.Match[bytes], hosts: Sequence[bytes]) -> Claim:
    if len(hosts) != 1:
        raise Unreadable("the request must name one host in its Host header")
    claim = _authority(hosts[0].decode("latin-1"))
    method, target = line[1], line[2].decode("ascii")
    if method == b"CONNECT":
        raise Unreadable("CONNECT is not for a server, but for a proxy")
    if not target.startswith("/") and target != "*":
        try:
            other = urlsplit(target)
        except ValueError as error:
            raise Unreadable("the request's target cannot be read") from error
        if other.scheme.lower() != "http" or _authority(other.netloc).host != claim.host:
            raise Unreadable("the request's target is another host than its Host header")
    return claim


def speech(data: bytes | bytearray) -> Speech | None:
    """What a client speaks that begins like this. None: more is needed."""
    first = data[:1]
    if first >= b"\x80":
        # The ClientHello of SSL 2 names no host, and servers take it as the beginning of TLS to this day
        if len(data) < 4 or data[2:4] == b"\x01\x03":
            return None if len(data) < 4 else Speech.TLS
        if first not in (b"\x85", b"\xa0"):
            return Speech.OTHER
    if first and data[0] in _RECORDS:
        if len(data) < 2 or data[1] == 3:
            return None if len(data) < 2 else Speech.TLS
        # Servers that go by TLS 1.3, and Go's, do not care for the version of the first record. Whatever may be in it
        # (a hello, a warning, a change of ciphers) begins with a 1
        return None if len(data) < 6 else Speech.TLS if data[5] == 1 else Speech.OTHER
    begun = _BEGINNING.match(data)
    if begun is None:
        return Speech.OTHER
    rest, end = begun["rest"], begun["end"]
    if end is None:
        return Speech.HTTP if len(data) > MAX_PEEK else None
    bare = rest.lower().startswith((b"/", b"http://", b"https://"))
    # Whatever a GET names is a target to some servers, of HTTP 0.9 as well
    asks = bool(rest) and begun["method"] == b"GET"
    return Speech.HTTP if asks or bare or b"HTTP/" in rest.upper() else Speech.OTHER


def is_http2(data: bytes | bytearray) -> bool:
    """Whether it begins HTTP/2 at once, as between those who know that of each other."""
    return data.startswith(b"PRI * HTTP/2.0\r\n")


def looks_like_http(data: bytes | bytearray) -> bool:
    """Whether somebody waits here for an answer in HTTP."""
    return re.match(rb"[A-Z]{3,10} [\x21-\x7e]", bytes(data[:64])) is not None


def _authority(text: str) -> Claim:
    host, colon, digits = text.partition(":")
    if colon and not (digits.isascii() and digits.isdecimal() and len(digits) <= 5):
        raise Unreadable("the host of the request cannot be read")
    try:
        return Claim(_host(host), int(digits) if colon else None)
    except ValueError as error:
        raise Unreadable(f"the host of the request cannot be read: {error}") from error


def _host(text: str) -> Host:
    if text.replace(".", "").isdecimal():
        return IPv4Address(text)
    return fold(text)


def _server_name(hello: bytes) -> str | None:
    try:
        reader = _Reader(hello)
        reader.take(2 + 32)
        for width in (1, 2, 1):  # session, ciphers, compressions
            reader.take(reader.number(width))
        if not reader.left:
            return None
        extensions = _Reader(reader.take(reader.number(2)))
        names = []
        while extensions.left:
            kind = extensions.number(2)
            body = extensions.take(extensions.number(2))
            if kind == _SERVER_NAME:
                listed = _Reader(body)
                listed = _Reader(listed.take(listed.number(2)))
                while listed.left:
                    if listed.number(1) != 0:
                        raise Unreadable("the ClientHello names something that is no host")
                    names.append(listed.take(listed.number(2)))
    except IndexError as error:
        raise Unreadable("the ClientHello cannot be read") from error
    if not names:
        return None
    if len(names) > 1:
        raise Unreadable("the ClientHello names more than one host")
    try:
        return fold(names[0].decode("ascii"))
    except ValueError as error:
        raise Unreadable("the ClientHello names no host, but something else") from error


class _Reader:
    """Takes bytes off the front. IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise IndexError
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))
