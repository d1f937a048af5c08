"""mitmproxy's HTTP layer, where it would hold too much, say too much, or frame a body as few servers understand it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from mitmproxy import version
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import events
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http import (
    DropStream,
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
    SendHttp,
    _http2,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection
from mitmproxy.proxy.layers.tls import TLSLayer

from vm.egress.explain import answer_headers
from vm.egress.interceptor.work import Work

MAX_BUFFERED = 2**18
"""Bytes of a head, or of what a client sends before its turn, that one connection may hold."""
UNREACHED = "atoll.unreached"
"""Where a flow keeps why its upstream could not be reached."""
_UNSAID = "the exchange broke off"
_ANSWERED = ResponseData | ResponseTrailers | ResponseEndOfMessage


class Refused(Exception):
    """Raised where a request streams: its flow has the answer, which the guest gets if it has none yet."""


def has_no_body(flow: Any) -> bool:
    """Whether the answer ends with its head, whatever comes behind it."""
    return flow.request.method == "HEAD" or flow.response.status_code in (204, 304)


@dataclass
class GiveTurn(StartHook):  # type: ignore[misc]
    """A stream waits: enough was done for its connection, of what one side sent."""

    from_client: bool


class HttpLayer(http.HttpLayer):  # type: ignore[misc]
    """Makes streams of ours; `work` is what is done in the event that is handled."""

    def __init__(self, context: Any, mode: Any) -> None:
        super().__init__(context, mode)
        self.work = Work()

    def make_stream(self, stream_id: int) -> Any:
        """See mitmproxy."""
        self.streams[stream_id] = _Stream(self.context.fork(), stream_id, self.work)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class _Stream(http.HttpStream):  # type: ignore[misc]
    server_state: Any

    def __init__(self, context: Any, stream_id: int, work: Work) -> None:
        super().__init__(context, stream_id)
        self._work = work

    def _handle_event(self, event: Any) -> Any:
        # Hooks must know whether there is a body before it comes
        if isinstance(event, RequestHeaders) and event.end_stream:
            event.request.timestamp_end = event.request.timestamp_start
        if isinstance(event, ResponseHeaders) and event.end_stream:
            event.response.timestamp_end = event.response.timestamp_start
        # An empty piece in the middle would be taken for the end of a body
        if isinstance(event, RequestData | ResponseData) and not event.data:
            return
        from_client = isinstance(event, RequestData | RequestTrailers | RequestEndOfMessage)
        if (from_client or isinstance(event, _ANSWERED)) and self._is_left(from_client=from_client):
            return
        # What is denied already is not collected
        denied = self.client_state == self.state_consume_request_body and self.flow.response is not None
        if denied and isinstance(event, RequestData | RequestTrailers):
            return
        # HTTP/2 frames a body even where none can be: it would be collected, and sent on as it is
        if isinstance(event, ResponseData) and self.flow.response is not None and has_no_body(self.flow):
            yield from self._break_off()
            return
        try:
            if isinstance(event, RequestData | ResponseData):
                yield from self._by_and_by(super()._handle_event(event), from_client=from_client)
            else:
                yield from super()._handle_event(event)
        except Refused:
            yield from self._refuse()

    def _by_and_by(self, handling: Generator[Any, Any, None], *, from_client: bool) -> Any:
        """Pass on what comes of a piece, and let others have their turn in between."""
        reply = None
        while True:
            if self._work.enough:
                yield GiveTurn(from_client)
                if self._is_left(from_client=from_client):
                    handling.close()
                    return
            try:
                command = handling.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(command, SendHttp) and isinstance(command.event, RequestData | ResponseData):
                self._work.made(len(command.event.data))
                if not command.event.data:
                    continue
            reply = yield command

    def _is_left(self, *, from_client: bool) -> bool:
        """Whether it is known already that nobody takes any more what comes of what one side sent."""
        gone = RequestProtocolError | ResponseProtocolError if from_client else RequestProtocolError
        return any(isinstance(event, gone) for event in self._paused_event_queue)

    def _refuse(self) -> Any:
        """Let the server have no more of a request, and the guest the flow's answer."""
        if self.server_state != self.state_wait_for_response_headers:
            yield from self._break_off()
            return
        yield SendHttp(RequestProtocolError(self.stream_id, _UNSAID, ErrorCode.CANCEL), self.context.server)
        answer = self.flow.response
        yield SendHttp(ResponseHeaders(self.stream_id, answer, end_stream=False), self.context.client)
        yield SendHttp(ResponseData(self.stream_id, answer.content), self.context.client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        yield DropStream(self.stream_id)

    def _break_off(self) -> Any:
        """End the exchange on both sides; the guest reads a 502 where nothing of an answer went out yet."""
        yield SendHttp(RequestProtocolError(self.stream_id, _UNSAID, ErrorCode.CANCEL), self.context.server)
        yield from self.handle_protocol_error(
            ResponseProtocolError(self.stream_id, _UNSAID, ErrorCode.GENERIC_SERVER_ERROR)
        )

    def check_invalid(self, request: bool) -> Any:
        """See mitmproxy, which would quote the answer's head to the guest, before anybody took values out of it."""
        if request:
            return (yield from super().check_invalid(request))
        try:
            if not 100 <= self.flow.response.status_code <= 999:
                raise ValueError("a status has three digits")
            validate_headers(self.flow.response)
        except ValueError:
            yield from self._break_off()
            return True
        return False

    def handle_protocol_error(self, event: Any) -> Any:
        """Its message becomes a page for the guest: nothing that somebody sent may be quoted there."""
        if event.code is ErrorCode.CONNECT_FAILED:
            self.flow.metadata[UNREACHED] = event.message
        else:
            event.message = _UNSAID
        yield from super().handle_protocol_error(event)


class _Http1Server(Http1Server):  # type: ignore[misc]
    def send(self, event: Any) -> Any:
        """A 100 is not the answer; mitmproxy would take it for that, and end what fails behind it without a word."""
        yield from super().send(event)
        if _is_interim(event):
            self.response = None


class _Http1Client(Http1Client):  # type: ignore[misc]
    def send(self, event: Any) -> Any:
        """A body of unknown length is sent in chunks; mitmproxy would end the connection behind it."""
        if isinstance(event, RequestHeaders) and not event.end_stream:
            headers = event.request.headers
            if "content-length" not in headers and "transfer-encoding" not in headers:
                headers["transfer-encoding"] = "chunked"
        yield from super().send(event)

    def read_headers(self, event: Any) -> Any:
        """What a server says before its answer (100, 103) is dropped; mitmproxy would take it for the answer."""
        while True:
            for command in super().read_headers(event):
                if isinstance(command, ReceiveHttp) and _is_interim(command.event):
                    self.response = None
                    break
                yield command
            else:
                return


def _is_interim(event: Any) -> bool:
    return (
        isinstance(event, ResponseHeaders)
        and 100 <= event.response.status_code < 200
        and event.response.status_code != 101
    )


def _page(status: int, message: str = "") -> bytes:
    # What is not well formed would be quoted
    said = "the request is not well formed" if status == 400 else message or _UNSAID
    return f"Atoll: {said}.\n".encode()


def _answer(status: int, message: str = "") -> bytes:
    body = _page(status, message)
    fields = {**answer_headers(failed=True), "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Error\r\n{head}\r\n".encode() + body


def install() -> None:
    """Put ours in the place of what mitmproxy looks up by name in its modules."""
    version.MITMPROXY = "atoll"
    http.Http1Client = _Http1Client
    http.Http1Server = _Http1Server
    http._http1.make_error_response = lambda status, message="": _answer(status, message)
    _http2.format_error = _page


def forget_closed(layer: HttpLayer) -> None:
    """Keep nothing of upstreams that are gone: mitmproxy keeps them, and their TLS, as long as the guest's end.

    It would also answer every later request with the error of one that could not be reached once.
    """
    for connection in list(layer.connections):
        if connection is layer.context.client or connection in layer.waiting_for_establishment:
            continue
        if connection.error or (connection.timestamp_end is not None and not layer.streams):
            _let_go(layer.connections.pop(connection))


def _let_go(handler: Any) -> None:
    # Layers refer to each other in circles, which are collected late; OpenSSL's memory goes at once
    while handler is not None:
        if isinstance(handler, TLSLayer):
            handler.tls = None
            handler.conn.certificate_list = []
        handler = getattr(handler, "child_layer", None)


def forget_waiting(layer: HttpLayer) -> None:
    """Let go of all that could not be passed on, and never will be: see `_let_go`."""
    for handler in layer.connections.values():
        if isinstance(inner := _innermost(handler), Http2Connection):
            inner.h2_conn.stream_buffers.clear()
    for stream in layer.streams.values():
        stream._paused_event_queue.clear()


def waiting(layer: HttpLayer, *, from_client: bool, unread: bool = True) -> int | None:
    """Bytes from one side that could not be passed on yet; `unread` counts those as well that were not looked at.

    None: somebody sends what nobody asked for.
    """
    held = 0
    for connection, handler in layer.connections.items():
        inner = _innermost(handler)
        to_client = connection is layer.context.client
        if isinstance(inner, Http1Connection):
            if inner.state != inner.passthrough and len(inner.buf) > MAX_BUFFERED:
                return None
        elif connection.state is ConnectionState.CLOSED:
            continue  # what waits for one that is gone waits for nothing
        elif isinstance(inner, Http2Connection) and to_client is not from_client:
            held += sum(len(piece.data) for pieces in inner.h2_conn.stream_buffers.values() for piece in pieces)
            if isinstance(inner, Http2Client):
                held += sum(_size(event) for queue in inner.stream_queue.values() for event in queue)
    kind = RequestData if from_client else ResponseData
    for stream in layer.streams.values() if unread else ():
        held += sum(_size(event) for event in stream._paused_event_queue if isinstance(event, kind))
    return held


def _innermost(layer: Any) -> Any:
    while (inner := getattr(layer, "child_layer", None)) is not None:
        layer = inner
    return layer


def _size(event: Any) -> int:
    return len(getattr(event, "data", b""))
