"""What rules and hooks see of mitmproxy's messages, and how what hooks return is put back: all but the framing."""

from __future__ import annotations

from collections.abc import Sequence

from mitmproxy import http

from vm.egress.hooks import FRAMING, MAX_BODY, Headers, Request, Response
from vm.egress.interceptor.requests import Asked

type Fields = Sequence[tuple[bytes, bytes]]


def asked_of(request: http.Request) -> Asked:
    """A request's head, as it is judged."""
    return Asked(
        http2=request.is_http2,
        method=request.data.method,
        target=request.data.path,
        authority=request.data.authority,
        fields=request.headers.fields,
    )


def is_short(message: http.Message) -> bool:
    """Whether its body can be collected: it has none, or one whose length was said and is short enough."""
    length = message.headers.get("content-length", "")
    return ends_with_its_head(message) or (length.isdecimal() and int(length) <= MAX_BODY)


def length_of(message: http.Message) -> int:
    """How long its body is, as it says."""
    length = message.headers.get("content-length", "")
    return int(length) if length.isdecimal() and not ends_with_its_head(message) else 0


def ends_with_its_head(message: http.Message) -> bool:
    """Whether its head is all there is, before its end is known to have come."""
    return message.timestamp_end is not None  # layers.py sets it


def request_of(request: http.Request, host: str, port: int, body: bytes | None) -> Request:
    """What a hook is asked about."""
    data = request.data
    path = data.path.decode("latin-1")
    return Request(data.method.decode("latin-1"), host, port, path, _shown(data.headers.fields), body)


def change_request(request: http.Request, changed: Request) -> None:
    """Let a request be what hooks made of it, but for its body."""
    request.data.method = changed.method.encode("latin-1")
    request.data.path = changed.path.encode("latin-1")
    request.headers = _fields(request.headers.fields, changed.headers, http2=request.is_http2)


def response_of(response: http.Response, body: bytes | None) -> Response:
    """What a hook is asked about."""
    return Response(response.status_code, _shown(response.headers.fields), body)


def change_response(response: http.Response, changed: Response, *, http2: bool) -> None:
    """Let an answer be what hooks made of it, but for its body."""
    if changed.status != response.status_code:
        response.status_code, response.data.reason = changed.status, b""
    response.headers = _fields(response.headers.fields, changed.headers, http2=http2)


def _shown(fields: Fields) -> Headers:
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in fields if name.lower() not in FRAMING
    )


def _fields(before: Fields, headers: Headers, *, http2: bool) -> http.Headers:
    kept = [(name, value) for name, value in before if name.lower() in FRAMING]
    given = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return http.Headers(
        kept + [(name.lower() if http2 else name, value) for name, value in given if name.lower() not in FRAMING]
    )
