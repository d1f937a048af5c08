"""Decides about one request on a connection that was handed over: it must be for the host that was dialled. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vm.egress.hostnames import fold
from vm.egress.policy import Decision

_CONTROL = re.compile(rb"[\r\n\0]")
_METHODS = (b"CONNECT", b"TRACE", b"TRACK", b"PRI")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(rb"/[\x21-\x7e]*")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's head as it came in; `authority` is HTTP/2's, or that of an absolute target."""

    http2: bool
    method: bytes
    target: bytes
    authority: bytes
    fields: Sequence[tuple[bytes, bytes]]

    def all(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, which is in lower case."""
        return [value for field, value in self.fields if field.lower() == name]


def objection(asked: Asked, *, host: str, port: int, sni: str | None) -> Decision | None:
    """Why a request may not pass, if so, whatever the policy says."""
    where = f"{host}:{port}"
    if _folded(sni) != host:
        return Decision(False, "host mismatch", f"{where} is denied: the client's server name is another.")
    if asked.method.upper() in _METHODS:
        return Decision(False, "method", f"{where} is denied: {_said(asked.method)} is not for a server behind a gate.")
    if any(_CONTROL.search(value) for _name, value in asked.fields) or _CONTROL.search(asked.target):
        # A header that goes on in a second line is two headers to some servers
        return Decision(False, "unreadable", f"{where} is denied: a header of the request is broken over lines.")
    if not _TOKEN.fullmatch(asked.method):
        return Decision(False, "unreadable", f"{where} is denied: {_said(asked.method)} is no method.")
    if asked.authority and not asked.http2:
        return Decision(False, "unreadable", f"{where} is denied: its target is a whole URL, as for a proxy.")
    if not (_PATH.fullmatch(asked.target) or (asked.method, asked.target) == (b"OPTIONS", b"*")):
        # HTTP/2 says anything here, and a server of HTTP/1.1 is sent it as a line
        return Decision(False, "unreadable", f"{where} is denied: its target is no path of printable ASCII.")
    if not is_plainly_framed(asked.all(b"transfer-encoding")):
        return Decision(False, "unreadable", f"{where} is denied: its transfer coding cannot be looked through.")
    hosts = asked.all(b"host")
    if asked.http2:
        named = [asked.authority] if asked.authority else []
        named += hosts
    else:
        named = hosts
    if not named or (len(hosts) > 1):
        return Decision(False, "unreadable", f"{where} is denied: the request does not name one host.")
    for one in named:
        if not _is(one, host, port):
            return Decision(False, "host mismatch", f"{where} is denied: the client asked there for {_said(one)}.")
    upgrades = [one.strip().lower() for value in asked.all(b"upgrade") for one in value.split(b",")]
    if asked.all(b"http2-settings") or any(one != b"websocket" for one in upgrades):
        return Decision(
            False, "unreadable", f"{where} is denied: of all upgrades only WebSocket can be looked through."
        )
    return None


def is_plainly_framed(transfer_encodings: Iterable[bytes]) -> bool:
    """Whether a message is sent as it is, or in chunks of that: no coding within hides what is in it."""
    return all(value.strip().lower() in (b"", b"chunked") for value in transfer_encodings)


def is_websocket(asked: Asked) -> bool:
    """Whether it asks for a WebSocket."""
    return not asked.http2 and bool(asked.all(b"upgrade"))


def shown_path(target: bytes) -> str:
    """A target as it is written down: of a query the names only."""
    path, mark, query = target.partition(b"?")
    # A part without a name is a value
    names = b"&".join(part.partition(b"=")[0] for part in query.split(b"&") if b"=" in part)
    return (path + mark + names)[:2048].decode("latin-1")


def _is(authority: bytes, host: str, port: int) -> bool:
    name, colon, digits = authority.decode("latin-1").partition(":")
    return _folded(name) == host and (not colon or digits == str(port))


def _folded(name: str | None) -> str | None:
    try:
        return fold(name) if name else None
    except ValueError:
        return None


def _said(text: bytes) -> str:
    return ascii(text[:80].decode("latin-1"))[1:-1]
