"""Domain errors in the words of HTTP and of the SDK's JSON-RPC: the only table of its kind."""

from __future__ import annotations

from typing import Any

from sandboxes.errors import DomainError

STATUS = {
    "BAD_REQUEST": 400,
    "NOT_AUTHENTICATED": 401,
    "INVALID_TOKEN": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "LINK_USED": 410,
    "CONFLICT": 409,
    "SLUG_ALREADY_IN_USE": 409,
    "NOT_RUNNING": 409,
    "SUSPENDED": 409,
    "LIMIT_EXCEEDED": 429,
    "NOT_AVAILABLE": 501,
    "UNAVAILABLE": 503,
    "SECRETS_LOCKED": 503,
}

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL = -32603
SERVER = -32000
CLOSED = 1
AGENT = 3


def status_of(error: DomainError) -> int:
    """The HTTP status that says it."""
    return STATUS.get(error.code, 500)


def body_of(error: DomainError) -> dict[str, Any]:
    """The JSON body that says it."""
    return {"code": error.code, "message": error.message}


def headers_of(error: DomainError) -> dict[str, str]:
    """The HTTP headers that say it: when to try again, where that is known."""
    wait = error.fields.get("retry_after")
    return {} if wait is None else {"Retry-After": str(wait)}
