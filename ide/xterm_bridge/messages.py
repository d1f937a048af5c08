"""Control messages between a page and its terminal: parses the page's, writes the server's; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 4096
MAX_SIDE = 1000
MAX_ID = 64
MAX_PATH = 2048


class BadMessage(Exception):
    """The page sent something that is no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Open:
    """Start a terminal and attach to it."""

    cols: int
    rows: int
    cwd: str | None


@dataclass(frozen=True, slots=True)
class Attach:
    """Come to a terminal, at `offset` if it is known."""

    id: str
    offset: int | None
    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class Resize:
    """The window's new size."""

    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class Ack:
    """All output before `offset` was drawn."""

    offset: int


@dataclass(frozen=True, slots=True)
class Close:
    """End a terminal."""

    id: str


@dataclass(frozen=True, slots=True)
class ListTerminals:
    """Which terminals are there."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Is anybody there."""


type FromPage = Open | Attach | Resize | Ack | Close | ListTerminals | Ping


def parse(text: str) -> FromPage:
    """The message in a text frame. BadMessage for everything that is none."""
    if len(text) > MAX_TEXT:
        raise BadMessage("message too long")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON") from error
    if not isinstance(data, dict):
        raise BadMessage("not an object")
    match data.get("type"):
        case "open":
            cwd = data.get("cwd")
            return Open(_side(data, "cols"), _side(data, "rows"), None if cwd is None else _text(data, "cwd", MAX_PATH))
        case "attach":
            offset = data.get("offset")
            return Attach(
                _text(data, "id", MAX_ID),
                None if offset is None else _whole(data, "offset"),
                _side(data, "cols"),
                _side(data, "rows"),
            )
        case "resize":
            return Resize(_side(data, "cols"), _side(data, "rows"))
        case "ack":
            return Ack(_whole(data, "offset"))
        case "close":
            return Close(_text(data, "id", MAX_ID))
        case "list":
            return ListTerminals()
        case "ping":
            return Ping()
    raise BadMessage("unknown type")


def _whole(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    # bool is an int in Python and no number on this wire.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**53:
        raise BadMessage(f"{key} is not a whole number")
    return value


def _side(data: Mapping[str, Any], key: str) -> int:
    value = _whole(data, key)
    if not 1 <= value <= MAX_SIDE:
        raise BadMessage(f"{key} is not between 1 and {MAX_SIDE}")
    return value


def _text(data: Mapping[str, Any], key: str, limit: int) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise BadMessage(f"{key} is not a text of 1 to {limit} characters")
    return value


def attached(*, terminal: str, offset: int, end: int, truncated: bool) -> str:
    """Binary frames follow, from `offset` on."""
    return json.dumps({"type": "attached", "id": terminal, "offset": offset, "end": end, "truncated": truncated})


def terminals(entries: Sequence[Mapping[str, Any]]) -> str:
    """Answer to ListTerminals."""
    keys = ("id", "title", "running", "started", "exit")
    return json.dumps({"type": "terminals", "terminals": [{key: entry.get(key) for key in keys} for entry in entries]})


def closed(terminal: str) -> str:
    """Answer to Close."""
    return json.dumps({"type": "closed", "id": terminal})


def input_taken(count: int) -> str:
    """Total of this connection's typed bytes that the terminal has taken."""
    return json.dumps({"type": "input", "bytes": count})


def exited(status: int | None) -> str:
    """The process ended and all output was sent."""
    return json.dumps({"type": "exit", "status": status})


def error(*, code: str, message: str, retry: bool) -> str:
    """What went wrong, and whether attaching again can help."""
    return json.dumps({"type": "error", "code": code, "message": message, "retry": retry})


PONG = json.dumps({"type": "pong"})
