"""One connection that was handed over, from the guest's TLS to the upstream's: mitmproxy's core under rules of ours.

mitmproxy parses, encrypts and carries; whom it dials, which requests pass, and what becomes of them is decided here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from mitmproxy import options as mitmproxy_options
from mitmproxy.connection import ConnectionState
from mitmproxy.flow import Flow
from mitmproxy.proxy import commands, mode_specs
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer
from mitmproxy.proxy.server import LiveConnectionHandler

from vm.egress.handover import HandOver
from vm.egress.interceptor.budget import Held
from vm.egress.interceptor.certificates import Minting, Verifying
from vm.egress.interceptor.exchange import Exchanges
from vm.egress.interceptor.frames import BadFrame
from vm.egress.interceptor.hooks import Hooks
from vm.egress.interceptor.known import Machine
from vm.egress.interceptor.layers import HttpLayer, forget_closed, forget_waiting, waiting
from vm.egress.interceptor.work import Work
from vm.egress.journal import Passage

log = logging.getLogger("atoll.interceptor")

_DIALLING = 10.0  # seconds
_IDLE = 3600
_HIGH = 2**20  # bytes that may wait for one side before the other is not read any more
_HIGHEST = 16 * 2**20  # where both wait for each other
_ORDINARY = 3 * 2**16  # of a read or two, which are not counted: each connection may have them
_OF_THE_CONNECTION = ("ntlm", "negotiate")
"""Ways to log in that hold for a connection rather than for a request."""
_SECOND = (
    64 * 2**20
)  # bytes of a turn that a second of work stands for: what is looked through and encrypted takes long
_MODE = mode_specs.ProxyMode.parse("regular")


def make_options() -> mitmproxy_options.Options:
    """mitmproxy's options; those that its add-ons would have added, of which none is here, are added here."""
    options = mitmproxy_options.Options()
    for name, kind, value in (
        ("store_streamed_bodies", bool, False),
        ("connection_strategy", str, "lazy"),
        ("stream_large_bodies", str | None, None),
        ("body_size_limit", str | None, None),
        ("keep_host_header", bool, False),
        ("proxy_debug", bool, False),
        ("normalize_outbound_headers", bool, True),
        ("validate_inbound_headers", bool, True),
    ):
        options.add_option(name, kind, value, "")
    # WebSockets go through as bytes, which vm.egress.interceptor.frames looks through: mitmproxy keeps whole messages
    options.update(upstream_cert=False, websocket=False, rawtcp=True, http3=False, tcp_timeout=_IDLE)
    return options


class _Reading:
    """One end's, which waits for its machine's turn."""

    def __init__(self) -> None:
        self._may = asyncio.Event()
        self._may.set()

    def park(self) -> None:
        self._may.clear()

    def unpark(self) -> None:
        self._may.set()

    async def turn(self) -> None:
        """Return when it may go on."""
        await self._may.wait()


class Intercepted(LiveConnectionHandler):  # type: ignore[misc] # mitmproxy is not installed where this is checked
    """Runs one connection by `handle_client`; `tell` is told of requests and alerts.

    One that was between requests for `resting` seconds keeps only the guest's end: the other's TLS is most of what it
    holds. The next request dials the same address again and demands the same proof, before anything of it is sent.
    """

    layer: Any

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        options: mitmproxy_options.Options,
        *,
        handed: HandOver,
        machine: Machine,
        minting: Minting,
        verifying: Verifying,
        hooks: Hooks,
        tell: Callable[[Passage], None],
        resting: float,
    ) -> None:
        super().__init__(reader, writer, options, _MODE)
        self._resting = resting
        self._handed = handed
        self._minting = minting
        self._verifying = verifying
        # mitmproxy has five, and a guest of HTTP/2 may have a hundred requests under way
        self.max_conns: defaultdict[Any, asyncio.Semaphore] = defaultdict(lambda: machine.upstreams)
        self._share = machine.share
        self._readings = {True: _Reading(), False: _Reading()}
        self._worked = 0.0
        self._exchanges = Exchanges(handed, machine, hooks, tell, pace=self)
        context = self.layer.context
        context.server.address = (str(handed.address or "0.0.0.0"), handed.port)  # noqa: S104 (never dialled)
        context.server.sni = handed.host
        self.layer = ServerTLSLayer(context)
        self.layer.child_layer = ClientTLSLayer(context)
        self._http = self.layer.child_layer.child_layer = HttpLayer(context, HTTPMode.transparent)
        self._stuck: set[bool] = set()
        self._held = Held(machine.waiting)
        self._most = _HIGH
        self._happened = asyncio.Event()  # what waits becomes less by nothing else
        self._over = False
        self._handlers: dict[str, Callable[..., Awaitable[object] | None]] = {
            "tls_start_client": self._tls_start_client,
            "tls_start_server": self._tls_start_server,
            "server_connect": self._server_connect,
            "server_connected": self._server_connected,
            "server_disconnected": self._server_disconnected,
            "requestheaders": self._request_headers,
            "request": self._exchanges.request,
            "responseheaders": self._response_headers,
            "response": self._exchanges.response,
            "error": self._exchanges.error,
            "tcp_message": self._tcp_message,
            "give_turn": self._give_turn,
        }

    async def handle_client(self) -> None:
        """Run it until it ends."""
        try:
            await super().handle_client()
        finally:
            self._over = True
            self._happened.set()
            forget_waiting(self._http)
            self._held.close()
            self._exchanges.held.close()
            for reading in self._readings.values():
                self._share.leave(reading)
                reading.unpark()

    def abort(self) -> None:
        """End it at once."""
        transport = self.transports.get(self.client)
        if transport is not None and transport.writer is not None:
            transport.writer.transport.abort()
            if transport.handler is not None:
                transport.handler.cancel("aborted")

    # -- hooks

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """mitmproxy asks what to do."""
        handler = self._handlers.get(hook.name)
        if handler is not None:
            try:
                work = Work()
                waiting_for = handler(*hook.args())
                self.worked(work.seconds)
                if inspect.isawaitable(waiting_for):
                    await waiting_for
            except Exception:
                # What was not looked through must not pass
                for flow in hook.args():
                    if isinstance(flow, Flow) and flow.killable:
                        flow.kill()
                self.log("", logging.ERROR, exc_info=True)

    def _tls_start_client(self, start: Any) -> None:
        start.ssl_conn = self._minting.connection(self._handed.host)

    def _tls_start_server(self, start: Any) -> None:
        start.ssl_conn = self._verifying.connection(self._handed.host, http2=self.client.alpn == b"h2")

    def _server_connect(self, data: Any) -> None:
        server = data.server
        if self._handed.address is None or server.address != (str(self._handed.address), self._handed.port):
            server.error = "this is not the address that was decided on"
            return
        asyncio.get_running_loop().call_later(_DIALLING, self._give_up, server)

    def _give_up(self, server: Any) -> None:
        transport = self.transports.get(server)
        if transport is None or transport.writer is not None or transport.handler is None:
            return
        # Before it begins it waits for others of its machine to end: mitmproxy would not say that it was given up then
        began = server.timestamp_start
        left = _DIALLING if began is None else began + _DIALLING - time.time()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._give_up, server)
        else:
            transport.handler.cancel("no answer in time")

    def _request_headers(self, flow: Any) -> Awaitable[object] | None:
        forget_closed(self._http)
        return self._exchanges.request_headers(flow)

    def _response_headers(self, flow: Any) -> Awaitable[object] | None:
        asked = flow.response.headers.get_all("www-authenticate")
        if any(one.lower().startswith(_OF_THE_CONNECTION) for one in asked):
            self._resting = _IDLE
        return self._exchanges.response_headers(flow)

    # -- resting

    def _server_connected(self, data: Any) -> None:
        asyncio.get_running_loop().call_later(self._resting, self._rest, data.server)

    def _rest(self, server: Any) -> None:
        """Let go of an upstream that nobody needs now.

        Events are handled without a pause, so none is half handled here; and no request takes one that is not open.
        """
        transport = self.transports.get(server)
        if transport is None or transport.handler is None or server.state is not ConnectionState.OPEN:
            return
        quiet = time.time() - self.timeout_watchdog.last_activity
        if self._http.streams or quiet < self._resting:
            wait = self._resting if self._http.streams else self._resting - quiet
            asyncio.get_running_loop().call_later(wait, self._rest, server)
        else:
            server.state = ConnectionState.CLOSED
            transport.handler.cancel("nobody needs it now")

    def _server_disconnected(self, data: Any) -> None:
        forget_closed(self._http)

    def _tcp_message(self, flow: Any) -> None:
        message = flow.messages[-1]
        flow.messages.clear()
        try:
            message.content = self._exchanges.frames(message.content, from_client=message.from_client)
        except BadFrame as error:
            message.content = b""
            log.info("a WebSocket to %s was ended: %s", self._handed.host, error)
            self.abort()

    # -- bounds

    async def server_event(self, event: Any) -> None:
        """All that mitmproxy does for the connection, without a pause."""
        self._http.work.begin()
        await super().server_event(event)
        self.worked(self._http.work.seconds)
        self._happened.set()

    def worked(self, seconds: float) -> None:
        """Count it: see Pace."""
        self._worked += seconds

    async def rest(self) -> None:
        """Return when it is our turn: see Pace."""
        await asyncio.sleep(0)
        await self._turn(self._readings[False])

    async def _turn(self, reading: _Reading) -> None:
        worked, self._worked = self._worked, 0.0
        self._share.spend(reading, int(worked * _SECOND))
        await reading.turn()

    async def _give_turn(self, from_client: bool) -> None:
        """What comes of a read goes on when others had their turn, and there is room for it."""
        await self._turn(self._readings[from_client])
        self._count()
        for connection, transport in list(self.transports.items()):
            if (connection is self.client) is not from_client and transport.writer is not None:
                with suppress(OSError):
                    await transport.writer.drain()
        await self._room(from_client=from_client, unread=False)

    async def drain_writers(self) -> None:
        """Called after each read: go on reading once there is room for what was read, and when it is our turn."""
        self._count()
        await super().drain_writers()
        from_client = self.transports[self.client].handler is asyncio.current_task()
        await self._turn(self._readings[from_client])
        await self._room(from_client=from_client, unread=True)

    def _count(self) -> dict[bool, int] | None:
        """What waits of what each side sent; it is counted as its machine's. None if it is over."""
        if self._over or self.client.state is ConnectionState.CLOSED:
            return None
        held = {from_client: waiting(self._http, from_client=from_client) for from_client in (True, False)}
        known = {side: count for side, count in held.items() if count is not None and count <= _HIGHEST}
        if len(known) < 2:
            self._too_much()
            return None
        sent = sum(one.writer.transport.get_write_buffer_size() for one in self.transports.values() if one.writer)
        self._most = _HIGH if self._held.keep(self, max(0, sum(known.values()) + sent - _ORDINARY)) else _ORDINARY
        return known

    def _too_much(self) -> None:
        self._over = True
        log.warning("a connection to %s was ended: too much waits in it", self._handed.host)
        self._exchanges.why = "too much waits in it"
        self.abort()

    async def _room(self, *, from_client: bool, unread: bool) -> None:
        """Return when no more waits of what one side sent than may."""
        while (held := self._count()) is not None:
            here, there = held[from_client], 0
            if not unread:
                # What was not looked at yet is behind what waits here, and the other side's may be what lets it on
                here, there = waiting(self._http, from_client=from_client, unread=False) or 0, held[not from_client]
            if here <= self._most:
                break
            if len(self._stuck | {from_client}) == 2 or there > self._most:
                if self._most < _HIGH:
                    self._too_much()
                break
            self._stuck.add(from_client)
            self._happened.clear()
            try:
                await self._happened.wait()
            except asyncio.CancelledError:
                self._stuck.discard(from_client)
                raise
        self._stuck.discard(from_client)

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """mitmproxy's messages may quote what passes, so none is kept; a fault of its own ends the connection."""
        if not exc_info:
            return
        kind, _error, trace = sys.exc_info() if exc_info is True else exc_info
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "an unknown place"
        log.error("a connection to %s was ended: %s in %s", self._handed.host, kind and kind.__name__, place)
        self.abort()
