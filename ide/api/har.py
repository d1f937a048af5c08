"""Requests of a sandbox as an HTTP Archive (HAR 1.2, http://www.softwareishard.com/blog/har-12-spec/), in pieces.

Only what is journalled can be in it: no headers, no bodies, and of a query the names.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from sandboxes.events import timestamp
from sandboxes.models import EgressRecord

_HEAD = '{"log":{"version":"1.2","creator":{"name":"Atoll","version":"1"},"entries":['
_TAIL = "]}}"
_UNKNOWN = -1
"""As HAR has it for what nobody knows."""


async def archive(pieces: AsyncIterator[list[EgressRecord]]) -> AsyncIterator[bytes]:
    """The whole file, a piece of rows at a time."""
    yield _HEAD.encode()
    between = ""
    async for rows in pieces:
        yield (between + ",".join(json.dumps(_entry(row)) for row in rows)).encode()
        between = ","
    yield _TAIL.encode()


def _entry(row: EgressRecord) -> dict[str, Any]:
    milliseconds = round(row.seconds * 1000, 3)
    port = "" if row.port == 443 else f":{row.port}"
    return {
        "startedDateTime": timestamp(row.at),
        "time": milliseconds,
        "request": {
            "method": row.method,
            "url": f"https://{row.host}{port}{row.path}",
            "httpVersion": "",
            "cookies": [],
            "headers": [],
            "queryString": [],
            "headersSize": _UNKNOWN,
            "bodySize": row.sent,
        },
        "response": {
            "status": row.status,
            "statusText": _phrase(row.status),
            "httpVersion": "",
            "cookies": [],
            "headers": [],
            "content": {"size": row.received, "mimeType": ""},
            "redirectURL": "",
            "headersSize": _UNKNOWN,
            "bodySize": row.received,
        },
        "cache": {},
        "timings": {"send": 0, "wait": milliseconds, "receive": 0},
        "comment": row.detail,
    }


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
