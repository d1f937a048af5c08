"""The spellings in which a value may come back: raw, hexadecimal, base64, URL, JSON and HTML. Pure."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

_LEFT = ("!'()*", "!'()*;,/?:@&=+$#")
"""What JavaScript's encodeURIComponent and encodeURI leave as it is, beside what all do."""
_BESIDE = ("", "&<>\u2028\u2029", "&<>'\u2028\u2029", "&<>'=\u2028\u2029")
"""What is escaped in JSON beside what must be: nothing; by Go, Rails and Django; by Jinja and PHP; by Gson."""
_NET = re.compile(r"[^ -~]|[\"&'+<>`\\]")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", "\\": "\\\\"}
SHORTEST = 4
"""Bytes below which neither a value nor a spelling of it is looked for: it would be found everywhere."""


def forms(value: str) -> tuple[bytes, ...]:
    """Every spelling of a value that is looked for, each once; none of a value that is too short."""
    raw = value.encode()
    if len(raw) < SHORTEST:
        return ()
    found = dict.fromkeys([raw, *_hexadecimal(raw), *_base64(raw), *_escaped(value)])
    return tuple(form for form in found if len(form) >= SHORTEST)


def _hexadecimal(raw: bytes) -> Iterator[bytes]:
    yield raw.hex().encode()
    yield raw.hex().upper().encode()


def _base64(raw: bytes) -> Iterator[bytes]:
    """What base64 makes of a value at each of three places in what is encoded: only the digits it alone decides."""
    for before in range(3):
        first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + raw)[first:last]


def _escaped(value: str) -> Iterator[bytes]:
    for text in _percented(value):
        yield text.encode()
        yield _lower_percent(text).encode()
    for text in (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        for beside in _BESIDE:
            for digits in "xX":
                more = text.translate({ord(one): f"\\u{ord(one):04{digits}}" for one in beside})
                yield more.encode()
                yield more.replace("/", "\\/").encode()
    yield _NET.sub(_in_capitals, value).encode()
    for text in (html.escape(value, quote=False), html.escape(value)):
        yield text.encode()
        yield text.replace("&#x27;", "&#39;").replace("&quot;", "&#34;").encode()


def _percented(value: str) -> Iterator[str]:
    """As each family of libraries leaves some characters; Python's never encodes a tilde, and most forms do."""
    for text in (quote(value, safe=""), quote(value), quote_plus(value), quote_plus(value, safe="*")):
        yield text
        yield text.replace("~", "%7E")
    for left in _LEFT:
        yield quote(value, safe=left)


def _in_capitals(found: re.Match[str]) -> str:
    """A character in JSON as .NET writes it."""
    if found[0] in _SHORT:
        return _SHORT[found[0]]
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[place : place + 2].hex().upper()}" for place in range(0, len(units), 2))


def _lower_percent(text: str) -> str:
    head, *rest = text.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])
