"""DNS messages, as much of them as a resolver that knows only addresses needs. Pure; input is hostile.

Names are the bytes of their labels: what makes a host name of them is decided by whoever asks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

A, CNAME, AAAA, OPT = 1, 5, 28, 41
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
MAX_QUERY = 1232
MAX_NAME = 255
_HEADER = struct.Struct(">6H")
_FIXED = struct.Struct(">HHIH")
_RESPONSE, _TRUNCATED, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
_EXTENDED = b"\x00" + _FIXED.pack(OPT, MAX_QUERY, 0, 0)  # ours: EDNS(0), version 0


class Malformed(ValueError):
    """This is no message that anybody here can read."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `question` is its bytes, as an answer repeats them."""

    number: int
    flags: int
    opcode: int
    labels: tuple[bytes, ...]
    kind: int
    group: int
    question: bytes
    extended: bool


def query_read(message: bytes) -> Query:
    """The question in a message. Malformed; an answer (which nobody answers) is Malformed too."""
    number, flags, questions, answers, authorities, additional = _header(message)
    if flags & _RESPONSE:
        raise Malformed("an answer")
    if len(message) > MAX_QUERY or (questions, answers, authorities) != (1, 0, 0) or additional > 2:
        raise Malformed("not one question")
    labels, place = _name(message, _HEADER.size, compressed=False)
    kind, group = _words(message, place)
    question, place = message[_HEADER.size : place + 4], place + 4
    extended = additional > 0 and message[place : place + 3] == b"\x00" + OPT.to_bytes(2)
    return Query(number, flags, flags >> 11 & 15, labels, kind, group, question, extended)


def reply_to(message: bytes) -> bytes | None:
    """FORMERR to what could not be read, or None where not even that can be said."""
    if len(message) < _HEADER.size or message[2] & 0x80:
        return None
    return message[:2] + struct.pack(">5H", _RESPONSE | FORMERR, 0, 0, 0, 0)


def answer(query: Query, code: int = NOERROR, addresses: Sequence[IPv4Address] = (), *, ttl: int = 60) -> bytes:
    """An answer with these A records."""
    flags = _RESPONSE | query.opcode << 11 | query.flags & _RECURSION_DESIRED | _RECURSION_AVAILABLE | code
    header = _HEADER.pack(query.number, flags, 1, len(addresses), 0, int(query.extended))
    # Each record points at the question's name, which begins behind the header
    records = b"".join(b"\xc0\x0c" + _FIXED.pack(A, IN, ttl, 4) + address.packed for address in addresses)
    return header + query.question + records + (_EXTENDED if query.extended else b"")


def ask(number: int, name: str, kind: int) -> bytes:
    """A recursive question about a folded name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\x00" + struct.pack(">2H", kind, IN)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream said about a name: its code, whether it was cut short, and its addresses."""

    code: int
    truncated: bool
    addresses: tuple[IPv4Address | IPv6Address, ...]


def answer_read(message: bytes, asked: bytes) -> Answer:
    """The answer to the question `asked`, following its aliases. Malformed, also when it answers something else."""
    _number, flags, questions, answers, _authorities, _additional = _header(message)
    name, place = _name(message, _HEADER.size, compressed=False)
    if not flags & _RESPONSE or questions != 1 or message[:2] != asked[:2]:
        raise Malformed("not an answer to this question")
    wanted, _ = _name(asked, _HEADER.size, compressed=False)
    if name != wanted or message[place : place + 4] != asked[-4:]:
        raise Malformed("an answer to another question")
    place += 4
    meant = {wanted}
    found: list[IPv4Address | IPv6Address] = []
    for _ in range(min(answers, 100)):
        owner, place = _name(message, place, compressed=True)
        if place + _FIXED.size > len(message):
            if flags & _TRUNCATED:
                break
            raise Malformed("cut short")
        kind, group, _ttl, length = _FIXED.unpack_from(message, place)
        place += _FIXED.size
        data = message[place : place + length]
        if len(data) != length:
            raise Malformed("cut short")
        if group == IN and owner in meant:
            if kind == CNAME:
                meant.add(_name(message, place, compressed=True)[0])
            elif kind == A and length == 4:
                found.append(IPv4Address(data))
            elif kind == AAAA and length == 16:
                found.append(IPv6Address(data))
        place += length
    return Answer(flags & 15, bool(flags & _TRUNCATED), tuple(found))


def _header(message: bytes) -> tuple[int, int, int, int, int, int]:
    if len(message) < _HEADER.size:
        raise Malformed("shorter than a header")
    first, second, third, fourth, fifth, sixth = _HEADER.unpack_from(message)
    return first, second, third, fourth, fifth, sixth


def _words(message: bytes, place: int) -> tuple[int, int]:
    if place + 4 > len(message):
        raise Malformed("cut short")
    return int.from_bytes(message[place : place + 2]), int.from_bytes(message[place + 2 : place + 4])


def _name(message: bytes, place: int, *, compressed: bool) -> tuple[tuple[bytes, ...], int]:
    """A name's labels in lower case, and where the message goes on behind it."""
    labels: list[bytes] = []
    size, behind = 1, -1
    while True:
        if place >= len(message):
            raise Malformed("cut short")
        length = message[place]
        if length >= 0xC0 and compressed:
            target = int.from_bytes(message[place : place + 2]) & 0x3FFF
            if place + 2 > len(message) or target >= place:
                raise Malformed("a pointer that does not point backwards")
            behind = place + 2 if behind < 0 else behind
            place = target
            continue
        if length > 63:
            raise Malformed("a label of no known kind")
        if length == 0:
            return tuple(labels), place + 1 if behind < 0 else behind
        label = message[place + 1 : place + 1 + length]
        size += length + 1
        if len(label) != length or size > MAX_NAME:
            raise Malformed("a name too long")
        labels.append(label.lower())
        place += 1 + length
