"""The spellings in which a value may come back: raw, hexadecimal, base64, URL, JSON and HTML. Pure."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

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
    for text in (quote(value, safe=""), quote(value), quote_plus(value)):
        yield text.encode()
        yield _lower_percent(text).encode()
    for text in (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        yield text.encode()
        yield text.replace("/", "\\/").encode()
    for text in (html.escape(value, quote=False), html.escape(value)):
        yield text.encode()
        yield text.replace("&#x27;", "&#39;").replace("&quot;", "&#34;").encode()


def _lower_percent(text: str) -> str:
    head, *rest = text.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])
