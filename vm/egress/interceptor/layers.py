"""mitmproxy's HTTP layer, where it would hold too much, say too much, or frame a body as few servers understand it."""

from __future__ import annotations

from typing import Any

from mitmproxy import version
from mitmproxy.proxy import events
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http import ErrorCode, RequestData, RequestHeaders, RequestTrailers, ResponseData, _http2
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection

MAX_BUFFERED = 2**18
"""Bytes of a head, or of what a client sends before its turn, that one connection may hold."""
UNREACHED = "atoll.unreached"
"""Where a flow keeps why its upstream could not be reached."""
_UNSAID = "the exchange broke off"


class HttpLayer(http.HttpLayer):  # type: ignore[misc]
    """Makes streams of ours."""

    def make_stream(self, stream_id: int) -> Any:
        """See mitmproxy."""
        self.streams[stream_id] = _Stream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class _Stream(http.HttpStream):  # type: ignore[misc]
    def _handle_event(self, event: Any) -> Any:
        # An empty piece in the middle would be taken for the end of a body
        if isinstance(event, RequestData | ResponseData) and not event.data:
            return
        # What is denied already is not collected
        denied = self.client_state == self.state_consume_request_body and self.flow.response is not None
        if denied and isinstance(event, RequestData | RequestTrailers):
            return
        yield from super()._handle_event(event)

    def handle_protocol_error(self, event: Any) -> Any:
        """Its message becomes a page for the guest: nothing that somebody sent may be quoted there."""
        if event.code is ErrorCode.CONNECT_FAILED:
            self.flow.metadata[UNREACHED] = event.message
        else:
            event.message = _UNSAID
        yield from super().handle_protocol_error(event)


class _Http1Client(Http1Client):  # type: ignore[misc]
    def send(self, event: Any) -> Any:
        """A body of unknown length is sent in chunks; mitmproxy would end the connection behind it."""
        if isinstance(event, RequestHeaders) and not event.end_stream:
            headers = event.request.headers
            if "content-length" not in headers and "transfer-encoding" not in headers:
                headers["transfer-encoding"] = "chunked"
        yield from super().send(event)


def _page(status: int, message: str = "") -> bytes:
    return f"Atoll: {message or _UNSAID}.\n".encode()


def _answer(status: int, message: str = "") -> bytes:
    # What is not well formed would be quoted
    body = _page(status, "the request is not well formed" if status == 400 else message)
    fields = f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status} Error\r\n{fields}\r\n".encode() + body


def install() -> None:
    """Put ours in the place of what mitmproxy looks up by name in its modules."""
    version.MITMPROXY = "atoll"
    http.Http1Client = _Http1Client
    http._http1.make_error_response = lambda status, message="": _answer(status, message)
    _http2.format_error = _page


def waiting(layer: HttpLayer, *, from_client: bool) -> int | None:
    """Bytes from one side that could not be passed on yet. None: somebody sends what nobody asked for."""
    held = 0
    for connection, handler in layer.connections.items():
        inner = _innermost(handler)
        to_client = connection is layer.context.client
        if isinstance(inner, Http1Connection):
            if inner.state != inner.passthrough and len(inner.buf) > MAX_BUFFERED:
                return None
        elif isinstance(inner, Http2Connection) and to_client is not from_client:
            held += sum(len(piece.data) for pieces in inner.h2_conn.stream_buffers.values() for piece in pieces)
            if isinstance(inner, Http2Client):
                held += sum(_size(event) for queue in inner.stream_queue.values() for event in queue)
    kind = RequestData if from_client else ResponseData
    for stream in layer.streams.values():
        held += sum(_size(event) for event in stream._paused_event_queue if isinstance(event, kind))
    return held


def _innermost(layer: Any) -> Any:
    while (inner := getattr(layer, "child_layer", None)) is not None:
        layer = inner
    return layer


def _size(event: Any) -> int:
    return len(getattr(event, "data", b""))
