"""JSON-RPC 2.0 as the official SDKs speak it: text to messages and back, without I/O."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from ide import errors

type Json = Any


@dataclass(frozen=True, slots=True)
class Request:
    """A call that wants an answer; the id goes back as it came."""

    id: int | float | str
    method: str
    params: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Notification:
    """A message without an answer."""

    method: str
    params: dict[str, Json]


class Malformed(Exception):
    """Text that is not a message: `reply` answers it where it has an id, else `close` is the code to close with."""

    def __init__(self, reply: str | None, close: int = 4001) -> None:
        super().__init__("the message is not JSON-RPC" if close == 4001 else "the message is not JSON")
        self.reply = reply
        self.close = close


class InvalidParams(Exception):
    """Parameters of the wrong shape; `issues` as the SDKs want them, paths being strings."""

    def __init__(self, issues: list[dict[str, Json]]) -> None:
        super().__init__("Invalid params")
        self.issues = issues

    @classmethod
    def one(cls, path: str, expected: str, message: str = "") -> InvalidParams:
        """A single issue."""
        text = message or f"Invalid input: expected {expected}"
        return cls([{"code": "invalid_type", "path": [path], "expected": expected, "message": text}])


class Failure(Exception):
    """A top-level JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class OperationFailed(Exception):
    """The operation failed inside the sandbox; `error` is the SDK's error object."""

    def __init__(self, error: dict[str, Json]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = error


def parse(text: str) -> Request | Notification:
    """The message that the text is. Malformed otherwise; an answer then carries the request's id where it has one."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(None, 4000) from None
    if not isinstance(message, dict):
        raise Malformed(None)
    identifier = message.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, int | float | str):
        identifier = None
    method, params = message.get("method"), message.get("params")
    if not isinstance(method, str) or not isinstance(params, dict | None):
        raise Malformed(None if identifier is None else failure(identifier, errors.INVALID_REQUEST, "Invalid request"))
    if "id" not in message:
        return Notification(method, params or {})
    if identifier is None:
        raise Malformed(None)
    return Request(identifier, method, params or {})


def encode(message: Json) -> str:
    """Compact JSON. Lone surrogates stay escaped: they are legal in JSON text and no legal UTF-8."""
    try:
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(message, separators=(",", ":"))
    return text


def ok(identifier: Json, value: Json) -> str:
    """The operation's value; None for those that return nothing."""
    return encode({"jsonrpc": "2.0", "id": identifier, "result": {"ok": value}})


def error(identifier: Json, value: dict[str, Json]) -> str:
    """The operation failed inside the sandbox."""
    return encode({"jsonrpc": "2.0", "id": identifier, "result": {"error": value}})


def failure(identifier: Json, code: int, message: str, data: dict[str, Json] | None = None) -> str:
    """The call itself failed."""
    body: dict[str, Json] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return encode({"jsonrpc": "2.0", "id": identifier, "error": body})


def invalid_params(identifier: Json, issues: list[dict[str, Json]]) -> str:
    """Wrong parameters, in the form both SDKs read: a ZodError whose message is a JSON array."""
    return failure(
        identifier,
        errors.INVALID_PARAMS,
        "Invalid params",
        {"constructorName": "ZodError", "message": json.dumps(issues)},
    )


def notification(method: str, params: dict[str, Json]) -> str:
    """A message to the client that wants no answer."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def stream_start(stream: int) -> str:
    """A stream from us begins."""
    return notification("$sandbox.stream.start", {"streamId": stream})


def stream_data(stream: int, data: bytes) -> str:
    """A part of it; never empty, which would end a JavaScript client's process."""
    if not data:
        raise ValueError("an empty chunk")
    # By hand: this is the hot path, and base64 needs no escaping.
    encoded = base64.b64encode(data).decode("ascii")
    return (
        '{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue","params":{"streamId":'
        + str(stream)
        + ',"data":"'
        + encoded
        + '"}}'
    )


def stream_end(stream: int) -> str:
    """Its end."""
    return notification("$sandbox.stream.end", {"streamId": stream})


def stream_error(stream: int, value: dict[str, Json]) -> str:
    """It failed; an end follows for clients that know no error."""
    return notification("$sandbox.stream.error", {"streamId": stream, "error": value})


def watcher_restart(watcher: str) -> str:
    """A program that is watched was started anew."""
    return notification("$sandbox.deno.watcher.restart", {"watcherId": watcher})


def stream_cancel(stream: int) -> str:
    """We take no more of a stream of the client's."""
    return notification("$sandbox.stream.cancel", {"streamId": stream, "reason": None})


def error_object(value: Json, fallback: str = "the sandbox's agent failed") -> dict[str, Json]:
    """An error object from the guest, with nothing in it that a client's validation would reject."""
    value = value if isinstance(value, dict) else {}
    name, message = value.get("constructorName"), value.get("message")
    made: dict[str, Json] = {
        "constructorName": name[:100] if isinstance(name, str) else "Error",
        "message": message[:10_000] if isinstance(message, str) else fallback,
    }
    for key in ("code", "name", "stack"):
        text = value.get(key)
        if isinstance(text, str):
            made[key] = text[:10_000]
    return made


ABORTED = {
    "constructorName": "DOMException",
    "name": "AbortError",
    "message": "The operation was aborted",
    "code": None,
}
GONE = {"constructorName": "TypeError", "code": "ENOENT", "message": "the process has ended: its sandbox was stopped"}
