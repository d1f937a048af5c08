"""Daphne with bounds: back-pressure both ways, large headers and messages, refusals and a clean end.

Daphne queues whatever a WebSocket client sends and writes whatever the application says, without limit either way
(tests/ide/test_server.py shows both). Here an application that does not receive stops the reading of its socket, and
`send` returns only once the peer has taken enough of what was sent before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from http import HTTPStatus
from typing import Any

import structlog
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from django.core.signals import request_finished
from django.db import connections
from twisted.internet import defer, reactor
from twisted.web import http

log = structlog.get_logger("atoll.server")

MEBIBYTE = 2**20
HEADER_BYTES = 100 * 1024
"""Request line and headers together: a config header of 64 KiB of JSON is 88 KiB of base64."""
BODY_BYTES = 8 * MEBIBYTE
"""An HTTP request's body, which Daphne holds in memory; large files come through the IDE's socket."""
MESSAGE_BYTES = 128 * MEBIBYTE
INBOX_MESSAGES = 64
INBOX_BYTES = MEBIBYTE
"""What may wait for the application before its socket is not read any more; one message may be larger than this."""
OUTBOX_BYTES = MEBIBYTE
"""What may wait in the socket before `send` waits."""
STOP_SECONDS = 5.0
VANISHED_SECONDS = 60
"""How long a host may leave what was sent to it unacknowledged, or its window shut."""


class Inbox(asyncio.Queue[dict[str, Any]]):
    """An application's input, which says when it is full and when there is room again."""

    def __init__(self, protocol: WebSocket) -> None:
        super().__init__()
        self._protocol = protocol
        self._bytes = 0

    @staticmethod
    def _size(message: dict[str, Any]) -> int:
        return len(message.get("bytes") or message.get("text") or b"")

    def put_nowait(self, item: dict[str, Any]) -> None:
        """Add a message; beyond the bounds the socket is paused."""
        super().put_nowait(item)
        self._bytes += self._size(item)
        if self.qsize() >= INBOX_MESSAGES or self._bytes >= INBOX_BYTES:
            self._protocol.hold("inbox")

    async def get(self) -> dict[str, Any]:
        """The next message; with half of the room free the socket is read again."""
        item = await super().get()
        self._bytes -= self._size(item)
        if self.qsize() <= INBOX_MESSAGES // 2 and self._bytes <= INBOX_BYTES // 2:
            self._protocol.release("inbox")
        return item


class Gate:
    """Registered with a transport as its producer: open while the transport takes more."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def pauseProducing(self) -> None:
        """The send buffer is full."""
        self._open.clear()

    def resumeProducing(self) -> None:
        """The send buffer is empty."""
        self._open.set()

    def stopProducing(self) -> None:
        """The connection is gone: whoever waits may go on and find out."""
        self._open.set()

    async def wait(self) -> None:
        """Return when there is room, or nobody to have it."""
        await self._open.wait()


class WebSocket(WebSocketProtocol):  # type: ignore[misc]
    """One WebSocket: bounded, with refusals as HTTP responses, accept headers and close reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self._held: set[str] = set()
        self._refusal: dict[str, Any] | None = None

    def connectionMade(self) -> None:
        """Take over flow control of the transport from the HTTP channel."""
        super().connectionMade()
        self.transport.bufferSize = OUTBOX_BYTES
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.gate, True)

    def dataReceived(self, data: bytes) -> None:
        """Parse; what comes before the handshake is answered has to wait in the kernel."""
        super().dataReceived(data)
        if self.state == self.STATE_CONNECTING and len(self.data) > HEADER_BYTES:
            self.hold("handshake")

    def connectionLost(self, reason: Any) -> None:
        """Let go whoever waits for room."""
        self.gate.stopProducing()
        super().connectionLost(reason)

    def hold(self, why: str) -> None:
        """Stop reading until every `why` is released."""
        if not self._held:
            self.transport.pauseProducing()
            # No pong can be read now; check_timeouts finds a dead peer meanwhile.
            if self.autoPingTimeoutCall:
                self._cancelAutoPingTimeoutCall()
        self._held.add(why)

    def release(self, why: str) -> None:
        """Read again if nothing else holds it."""
        if why in self._held:
            self._held.discard(why)
            if not self._held:
                self.last_ping = time.time()
                self.transport.resumeProducing()

    def check_timeouts(self) -> None:
        """Daphne's timer; while the socket is not read, pings are sent without waiting for an answer."""
        if self._refusal is not None:
            return
        if not self._held:
            super().check_timeouts()
        elif self.state == self.STATE_OPEN and time.time() - self.last_ping > self.server.ping_interval:
            # The event loop does not watch a paused socket, so that only writing to it tells that the peer is gone.
            self.last_ping = time.time()
            self.sendPing()

    def cut(self) -> None:
        """Drop the connection at once."""
        self.dropConnection(abort=True)

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Carry out one ASGI event of the application."""
        kind = message.get("type")
        if kind == "websocket.accept":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message.get("headers", ())}
            self.handshake_deferred.callback((message.get("subprotocol"), headers))
            del self.handshake_deferred
            self.release("handshake")
        elif kind == "websocket.close" and self.state == self.STATE_CONNECTING:
            self._refuse(403, [], b"")
        elif kind == "websocket.close":
            reason = str(message.get("reason") or "").encode()[:120].decode("utf-8", "ignore")
            self.sendCloseFrame(code=message.get("code") or 1000, reasonUtf8=reason.encode())
        elif kind == "websocket.http.response.start":
            self._refusal = {"status": message["status"], "headers": list(message.get("headers", ())), "body": b""}
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            self._refusal["body"] += message.get("body", b"")
            if not message.get("more_body", False):
                self._refuse(self._refusal["status"], self._refusal["headers"], self._refusal["body"])
        else:
            super().handle_reply(message)

    def serverReject(self) -> None:
        """Nobody answered the handshake in time."""
        self._refuse(
            503, [(b"content-type", b"application/json")], b'{"code": "TIMEOUT", "message": "no answer in time"}'
        )

    def handle_exception(self, exception: BaseException) -> None:
        """The application failed: an HTTP error before the handshake, a close frame after it."""
        if hasattr(self, "handshake_deferred"):
            body = json.dumps({"code": "INTERNAL", "message": "the server failed"}).encode()
            self._refuse(500, [(b"content-type", b"application/json")], body)
        else:
            self.sendCloseFrame(code=1011, reasonUtf8=b"the server failed")

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if not hasattr(self, "handshake_deferred"):
            return
        del self.handshake_deferred
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in headers]
        lines += [b"Content-Length: " + str(len(body)).encode(), b"Connection: close", b"", body]
        self.wasNotCleanReason = f"refused with {status}"
        self.sendData(b"\r\n".join(lines))
        self.dropConnection(abort=False)


class Request(WebRequest):  # type: ignore[misc]
    """One HTTP request: a bounded body, and a response that waits for its reader."""

    gate: Gate | None = None
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that says it is too large before it comes."""
        super().gotLength(length)
        if length is not None and length > BODY_BYTES:
            self.channel.refuse(413)

    def handleContentChunk(self, data: bytes) -> None:
        """Count a body that does not say how large it is."""
        self._received += len(data)
        if self._received > BODY_BYTES:
            self.channel.refuse(413)
        else:
            super().handleContentChunk(data)

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Carry out one ASGI event; from the first part of a streamed body on, flow control is ours."""
        if (
            message.get("type") == "http.response.body"
            and message.get("more_body")
            and self.gate is None
            and self.channel is not None
            and not self.finished
        ):
            self.gate = Gate()
            self.registerProducer(self.gate, True)
            # The kernel counts a shut window as silence, but whoever pauses a download may take it up again.
            self.channel.transport.getHandle().setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        super().handle_reply(message)

    def handle_exception(self, exception: BaseException) -> None:
        """The application failed: an HTTP error, or a broken connection when part of an answer may have been sent."""
        if self._response_started:
            # A clean end would pass a truncated download off as a whole one.
            self.cut()
        else:
            super().handle_exception(exception)

    def cut(self) -> None:
        """Drop the connection at once."""
        if self.channel is not None and not self.finished:
            self.channel.transport.abortConnection()

    def finish(self) -> None:
        """The response is complete."""
        if self.gate is not None and self.producer is not None:
            self.unregisterProducer()
        super().finish()

    def connectionLost(self, reason: Any) -> None:
        """Let go whoever waits for room."""
        if self.gate is not None:
            self.gate.stopProducing()
        super().connectionLost(reason)


class Channel(http.HTTPChannel):
    """One HTTP connection: larger headers, and a refusal that arrives."""

    MAX_LENGTH = HEADER_BYTES
    totalHeadersSize = HEADER_BYTES

    def lineReceived(self, line: bytes) -> None:
        """Count what the request line and the headers come to."""
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self.refuse(431)
        else:
            super().lineReceived(line)  # type: ignore[no-untyped-call]

    def lineLengthExceeded(self, line: bytes) -> None:
        """One header alone is too large."""
        self.refuse(431)

    def refuse(self, status: int) -> None:
        """Answer, then read and drop what still comes for a moment: closing at once would reset the answer away."""
        if self.transport is None:
            return
        code, text = ("HEADERS_TOO_LARGE", "headers") if status == 431 else ("BODY_TOO_LARGE", "body")
        limit = HEADER_BYTES if status == 431 else BODY_BYTES
        body = json.dumps({"code": code, "message": f"the request's {text} exceed {limit} bytes"}).encode()
        transport: Any = self.transport
        transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, HTTPStatus(status).phrase.encode(), len(body), body)
        )
        self.dataReceived = lambda data: None  # type: ignore[method-assign]
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        later: Any = reactor
        later.callLater(1, transport.loseConnection)


class ChannelFactory(HTTPFactory):  # type: ignore[misc]
    """Makes HTTP connections of our kind."""

    protocol = staticmethod(lambda: http._GenericHTTPChannelProtocol(Channel()))  # type: ignore[no-untyped-call]

    def buildProtocol(self, addr: Any) -> Any:
        """One connection, whose requests are ours."""
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol


class SocketFactory(WebSocketFactory):  # type: ignore[misc]
    """Makes WebSockets of our kind."""

    protocol = WebSocket


class BoundedServer(Server):  # type: ignore[misc]
    """Daphne's server, with the protocols above and an end that is bounded."""

    def run(self) -> None:
        """Serve until stopped. Daphne takes its factories from its module, so they are put there first."""
        import daphne.server

        daphne.server.HTTPFactory = ChannelFactory
        daphne.server.WebSocketFactory = SocketFactory
        super().run()

    def listen_success(self, port: Any) -> None:
        """The port is open: have the kernel look after silent peers on every connection it accepts."""
        super().listen_success(port)
        listening = port.socket
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        # Keep-alive is silent while something sent, such as a ping, is unacknowledged; this bounds that as well.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_SECONDS * 1000)

    def application_checker(self) -> None:
        """Daphne's timer that reaps applications; it goes on whatever one of them brings about."""
        try:
            super().application_checker()
        except Exception:
            log.exception("application_checker_failed")
            # Daphne reaps in this order, so the first ended one is what failed: it would fail every time, before the
            # ones after it get their turn.
            for protocol, details in list(self.connections.items()):
                task = details.get("application_instance")
                if task is not None and task.done():
                    del details["application_instance"]
                    with contextlib.suppress(Exception):
                        protocol.cut()
                    break
            later: Any = reactor
            later.callLater(1, self.application_checker)

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Start the application for one request or socket; its input queue."""
        if scope["type"] != "websocket":
            return super().create_application(protocol, scope)
        if protocol not in self.connections:
            return None
        scope |= {"asgi": {"version": "3.0"}, "extensions": {"websocket.http.response": {}}}
        inbox = Inbox(protocol)

        async def send(message: dict[str, Any]) -> None:
            await self.handle_reply(protocol, message)

        self.connections[protocol]["application_instance"] = asyncio.ensure_future(
            self.application(scope=scope, receive=inbox.get, send=send)
        )
        return inbox

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Pass the application's event on, and return when the peer has taken enough of it."""
        await super().handle_reply(protocol, message)
        if protocol.gate is not None:
            await protocol.gate.wait()

    def kill_all_applications(self) -> Any:
        """On the way out: say goodbye to every socket, give the applications a moment, then cancel them."""
        return defer.Deferred.fromFuture(asyncio.ensure_future(self._end()))

    async def _end(self) -> None:
        for listener in self.listeners:
            listener.addCallback(lambda port: port.stopListening())
        tasks = []
        for protocol, details in list(self.connections.items()):
            task = details.get("application_instance")
            if isinstance(protocol, WebSocket) and protocol.state == protocol.STATE_OPEN:
                protocol.sendCloseFrame(code=1001, reasonUtf8=b"the server is being stopped")
                protocol.application_queue.put_nowait({"type": "websocket.disconnect", "code": 1001})
                protocol.muted = True
            elif isinstance(protocol, WebSocket) and task is not None:
                task.cancel()
            if task is not None and not task.done():
                tasks.append(task)
        for seconds in (STOP_SECONDS, 1.0):
            if tasks:
                _done, waiting = await asyncio.wait(tasks, timeout=seconds)
                for task in waiting:
                    task.cancel()
                tasks = list(waiting)
        log.info("stopped", unfinished=len(tasks))


def _close_connections(**_said: Any) -> None:
    # A page's request has a thread of its own, which ends with it; what queries much does so in sandboxes.database's
    connections.close_all()


def serve(application: Any, *, bind: str, port: int, server: type[Server] = BoundedServer) -> None:
    """Serve the application until SIGTERM or SIGINT."""
    request_finished.connect(_close_connections)
    host = bind.replace(":", r"\:")
    server(
        application,
        endpoints=[f"tcp:port={port}:interface={host}:backlog=512"],
        server_name="atoll",
        websocket_timeout=-1,
        websocket_connect_timeout=60,
        websocket_handshake_timeout=90,
        websocket_max_message_size=MESSAGE_BYTES,
        websocket_max_frame_size=MESSAGE_BYTES,
        ping_interval=10,
        ping_timeout=15,
        application_close_timeout=30,
    ).run()
