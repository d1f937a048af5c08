"""Puts values in the place of placeholders in a request's headers, path, query and body. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote, quote_plus

from vm.api import Secret
from vm.egress.interceptor.replace import Replacements
from vm.egress.secrets import PREFIX, placeholders_in

type Fields = Sequence[tuple[bytes, bytes]]

# What servers put into their pages and logs, or pass on to others, and what frames or routes the request
_NEVER = frozenset(
    b"baggage connection expect forwarded from host keep-alive max-forwards origin range referer te trailer "
    b"traceparent tracestate transfer-encoding upgrade user-agent via x-correlation-id x-real-ip x-request-id "
    b"sec-websocket-accept sec-websocket-extensions sec-websocket-key sec-websocket-version".split()
)
_NEVER_BEGINNINGS = (
    b"accept",
    b"access-control-",
    b"content-",
    b"sec-ch-",
    b"sec-fetch-",
    b"x-forwarded-",
    b"x-original-",
    b"x-rewrite-",
)
_BASIC = re.compile(rb"(basic)([ \t]+)([A-Za-z0-9+/=_-]+)[ \t]*", re.IGNORECASE)
MAX_HEAD = 2**18
"""Bytes that a request's head may become: a value may be long, and its placeholder stand there often."""
_FORBIDDEN = re.compile(r"[\r\n\0]")


class Unfit(ValueError):
    """A value cannot stand where its placeholder stood; the message names the secret, not the value."""


def in_headers(fields: Fields, secrets: Iterable[Secret]) -> list[tuple[bytes, bytes]]:
    """Header fields with values in them, but for fields that tend to be reflected. Unfit."""
    known = {secret.placeholder.encode(): secret for secret in secrets}
    filled, size = [], 0
    for name, value in fields:
        filled.append((name, _in_field(name.lower(), value, known)))
        size += len(name) + len(filled[-1][1])
        if size > MAX_HEAD:
            raise Unfit(_TOO_LONG)
    return filled


_TOO_LONG = f"its head would have more than {MAX_HEAD // 1024} KiB with values in it"


def _put(text: bytes, placeholder: bytes, value: bytes) -> bytes:
    if len(text) + text.count(placeholder) * (len(value) - len(placeholder)) > MAX_HEAD:
        raise Unfit(_TOO_LONG)
    return text.replace(placeholder, value)


def _in_field(name: bytes, value: bytes, known: dict[bytes, Secret]) -> bytes:
    if name in _NEVER or name.startswith(_NEVER_BEGINNINGS):
        return value
    if name in (b"authorization", b"proxy-authorization") and (basic := _BASIC.fullmatch(value)):
        plain = _decoded(basic[3])
        if plain is not None and PREFIX.encode() in plain:
            return basic[1] + basic[2] + base64.b64encode(_replaced(plain, known))
    return _replaced(value, known) if PREFIX.encode() in value else value


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(
            text + b"=" * (-len(text) % 4), altchars=b"-_" if b"-" in text or b"_" in text else None
        )
    except binascii.Error:
        return None


def _replaced(value: bytes, known: dict[bytes, Secret]) -> bytes:
    for placeholder, secret in known.items():
        if placeholder in value:
            if _FORBIDDEN.search(secret.value):
                raise Unfit(f"the value of {secret.name} has line ends or NULs in it, which no header can carry")
            value = _put(value, placeholder, secret.value.encode())
    return value


def in_target(target: bytes, secrets: Iterable[Secret]) -> bytes:
    """A request's target (path and query) with the values of those secrets in it that may stand there. Unfit."""
    path, mark, query = target.partition(b"?")
    for secret in secrets:
        placeholder, value = secret.placeholder.encode(), quote(secret.value, safe="").encode()
        if "path" in secret.places:
            path = _put(path, placeholder, value)
        if "query" in secret.places:
            query = _put(query, placeholder, value)
    return path + mark + query


def in_body(content_type: str, secrets: Iterable[Secret]) -> Replacements:
    """What to replace in a body of that type: a value is escaped as the type asks for."""
    escape = _escape(content_type)
    return Replacements(
        {secret.placeholder.encode(): escape(secret.value).encode() for secret in secrets if "body" in secret.places}
    )


def _escape(content_type: str) -> Callable[[str], str]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")) or "ndjson" in kind:
        return lambda value: json.dumps(value, ensure_ascii=False)[1:-1]
    return quote_plus if kind == "application/x-www-form-urlencoded" else str


def placeholders(fields: Fields, target: bytes) -> set[str]:
    """Everything in the head of a request that looks like a placeholder, whoever's it is; also within Basic."""
    found = set(placeholders_in(target))
    for name, value in fields:
        found.update(placeholders_in(value))
        if name.lower() in (b"authorization", b"proxy-authorization") and (basic := _BASIC.fullmatch(value)):
            found.update(placeholders_in(_decoded(basic[3]) or b""))
    return found


class Watch:
    """Finds what looks like a placeholder in a stream, however it is cut; `found` is told of all so far."""

    _LONGEST = len(PREFIX) + 128
    _MOST = 32

    def __init__(self, found: Callable[[set[str]], None]) -> None:
        self._tell = found
        self._found: set[str] = set()
        self._tail = b""

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Look at these bytes, and at the end of those before."""
        seen, before = self._tail + data, len(self._found)
        # One that touches the end may go on
        sure = len(seen) if last else max(0, len(seen) - self._LONGEST)
        place = seen.find(PREFIX.encode())
        while place != -1 and place < sure and len(self._found) < self._MOST:
            self._found.update(placeholders_in(seen[place : place + self._LONGEST]))
            place = seen.find(PREFIX.encode(), place + 1)
        self._tail = b"" if last else seen[sure:]
        if len(self._found) > before:
            self._tell(set(self._found))
