"""Hooks: callables of the administrator's that see and change requests to some hosts, and their answers. Pure.

A hook is called once with a request, and once more with the answer to it:

    def hook(request: Request, response: Response | None = None) -> Request | Response | None

It returns None to let what it was called about pass as it is, a changed copy of that (`dataclasses.replace`), or raises
`Refused`. docs/hooks.md says more.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vm.egress.policy import Host, Rule, parse

type Headers = tuple[tuple[str, str], ...]

MAX_BODY = 2**20
"""Bytes of a body that a hook is given as a whole, and may give back."""
MAX_CALL = 4 * 2**20
"""Bytes of JSON that one call of a hook is told, and may return."""
FRAMING = frozenset(
    b"connection content-encoding content-length expect host http2-settings keep-alive proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
"""Header fields that say how a message is sent: no hook sees or sets them."""
_CALL = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\.([A-Za-z_]\w*)", re.ASCII)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_PATH = re.compile(rb"[!-~]{1,65536}")
_VALUE = re.compile(rb"[^\r\n\0]{0,65536}")


class Refused(Exception):
    """Raised by a hook to deny what it was called about; the message is shown to the guest and to people."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request before values of secrets go into it. `host` and `port` are where it goes and cannot be changed.

    `body` is None where it streams: its length was not said, or is above 1 MiB.
    """

    method: str
    host: str
    port: int
    path: str
    headers: Headers
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer after values were taken out of it; `body` as a request's."""

    status: int
    headers: Headers
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Hook:
    """One that is configured: the dotted name of its callable, and the hosts it is for."""

    call: str
    hosts: tuple[Rule, ...]

    @property
    def module(self) -> str:
        """Where it is imported from."""
        return self.call.rpartition(".")[0]

    def is_for(self, host: Host, port: int) -> bool:
        """Whether what goes there passes it."""
        return any(rule.matches(host, port) for rule in self.hosts)


def parse_hooks(words: Sequence[str]) -> tuple[Hook, ...]:
    """Hooks from `package.module.callable=host` words, in the order of their first ones. ValueError."""
    found: dict[str, list[Rule]] = {}
    for word in words:
        call, equals, pattern = word.partition("=")
        if not equals or _CALL.fullmatch(call) is None:
            raise ValueError(f"{word[:100]!r}: a hook is written package.module.callable=host")
        rule = parse(pattern)
        if not rule.name:
            raise ValueError(f"{word[:100]!r}: a hook is for hosts with a name only")
        found.setdefault(call, []).append(rule)
    return tuple(Hook(call, tuple(rules)) for call, rules in found.items())


def is_hooked(hooks: Sequence[Hook], host: Host, port: int) -> bool:
    """Whether any of them is for that destination."""
    return any(hook.is_for(host, port) for hook in hooks)


def require_showable(message: Request | Response) -> None:
    """ValueError for what is shown to no hook, nor taken from one: a clause for people, without a word of it."""
    if isinstance(message, Response):
        if not 101 <= message.status <= 599:
            raise ValueError("its status is not one of 101 to 599")
    elif not _TOKEN.fullmatch(message.method.encode("latin-1")):
        raise ValueError("its method is no word of at most 256 letters")
    elif not _PATH.fullmatch(message.path.encode("latin-1")):
        raise ValueError("its path is not printable ASCII of at most 64 KiB")
    for name, value in message.headers:
        if not _TOKEN.fullmatch(name.encode("latin-1")):
            raise ValueError("a name in its headers is longer than 256 bytes, or none")
        if not _VALUE.fullmatch(value.encode("latin-1")):
            raise ValueError("a value in its headers is longer than 64 KiB, or broken over lines")
    if message.body is not None and len(message.body) > MAX_BODY:
        raise ValueError("its body is longer than 1 MiB")


# -- between an interceptor and the process of a hook


def request_to_json(request: Request) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "method": request.method,
        "host": request.host,
        "port": request.port,
        "path": request.path,
        "headers": [list(pair) for pair in request.headers],
        "body": _to_text(request.body),
    }


def request_from_json(data: Mapping[str, Any]) -> Request:
    """The inverse; ValueError for what no request can be."""
    host, port, headers = str(data["host"]), int(data["port"]), _headers(data["headers"])
    request = Request(str(data["method"]), host, port, str(data["path"]), headers, _from_text(data["body"]))
    require_showable(request)
    return request


def response_to_json(response: Response) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "status": response.status,
        "headers": [list(pair) for pair in response.headers],
        "body": _to_text(response.body),
    }


def response_from_json(data: Mapping[str, Any]) -> Response:
    """The inverse; ValueError for what no answer can be."""
    response = Response(int(data["status"]), _headers(data["headers"]), _from_text(data["body"]))
    require_showable(response)
    return response


def _headers(pairs: Sequence[Sequence[str]]) -> Headers:
    return tuple((str(name), str(value)) for name, value in pairs)


def _to_text(body: bytes | None) -> str | None:
    return None if body is None else base64.b64encode(body).decode("ascii")


def _from_text(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("a body that cannot be read") from None
