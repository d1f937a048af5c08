"""HTTP requests that leave from inside a sandbox: aiohttp's client over connections that the guest's agent dials.

Each connection begins in the guest, so that its gate decides about it as about one of a program there. Encryption and
HTTP are ours: the guest need have no client, and is spared the work, which takes it ten times as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest

from sandboxes.errors import DomainError
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid

type Dial = Callable[[dict[str, Any]], Awaitable[GuestCall]]
"""Opens a `dial` call of the agent, which has not been answered yet."""

REDIRECTS = 20
HEAD_BYTES = 65_536
"""Longest line, and longest field, of a response's head."""
_PIECE = 65_536


class GuestRefused(aiohttp.ClientConnectionError):
    """The guest could not connect; `error` is its error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message")))
        self.error = error


class GuestClient:
    """aiohttp's session, and what it cannot know of its connections."""

    def __init__(self, session: aiohttp.ClientSession, connector: _Connector) -> None:
        self.session = session
        self._connector = connector

    @property
    def broken(self) -> bool:
        """Whether a connection broke off: a body whose end is that of its connection is not whole then."""
        return self._connector.broken


@asynccontextmanager
async def guest_client(dial: Dial, *, authority: Path, pid: int | None = None) -> AsyncIterator[GuestClient]:
    """A client whose connections the guest makes; with `pid` all of them lead to what that process listens on."""
    connector = _Connector(dial, await asyncio.to_thread(_trusting, authority), pid)
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        trust_env=False,
        max_line_size=HEAD_BYTES,
        max_field_size=HEAD_BYTES,
        read_bufsize=_PIECE,
        headers={"User-Agent": "Atoll"},
        skip_auto_headers=("Content-Type",),  # a body is what its sender says it is, or nothing
    )
    try:
        yield GuestClient(session, connector)
    finally:
        await session.close()
        await connector.ended()


@cache
def _trusting(authority: Path) -> ssl.SSLContext:
    # As guests do: the world's authorities and the installation's, which speaks for hosts of secrets
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=authority)
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Connector(aiohttp.BaseConnector):
    """As aiohttp's own for unix sockets, with another way to connect."""

    def __init__(self, dial: Dial, context: ssl.SSLContext, pid: int | None) -> None:
        super().__init__(force_close=True, limit=0)
        self._dial = dial
        self._context = context
        self._pid = pid
        self._relays: set[asyncio.Task[None]] = set()
        self.broken = False

    async def ended(self) -> None:
        """Wait for the connections to be closed in the guest, too."""
        for relay in self._relays:
            relay.cancel()
        if self._relays:
            await asyncio.wait(self._relays)

    async def _create_connection(
        self, req: ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        target = {"pid": self._pid} if self._pid is not None else {"host": req.url.raw_host, "port": req.url.port}
        call = await self._dialled(target)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        relay = loop.create_task(self._relay(call, ours))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)
        encrypted = self._context if req.url.scheme == "https" and self._pid is None else None
        try:
            _transport, protocol = await loop.create_connection(
                self._factory,
                sock=theirs,
                ssl=encrypted,
                server_hostname=(req.url.raw_host or "").rstrip(".") if encrypted else None,
            )
        except ssl.SSLCertVerificationError as error:
            relay.cancel()
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
        except OSError as error:
            relay.cancel()
            raise aiohttp.ClientConnectionError(str(error) or type(error).__name__) from error
        return protocol

    async def _relay(self, call: GuestCall, ours: socket.socket) -> None:
        async with call:
            with ours:
                feeding = asyncio.ensure_future(_feed(ours, call))
                try:
                    while piece := await call.read(_PIECE):
                        await asyncio.get_running_loop().sock_sendall(ours, piece)
                except DomainError:
                    # Told by closing only, it would look like the end
                    self.broken = True
                except OSError:
                    pass  # nobody wants more
                else:
                    with contextlib.suppress(OSError):
                        ours.shutdown(socket.SHUT_WR)
                    await asyncio.wait([feeding])
                finally:
                    feeding.cancel()
                    await asyncio.wait([feeding])

    async def _dialled(self, target: dict[str, Any]) -> GuestCall:
        try:
            call = await self._dial(target)
            try:
                await call.reply()
            except BaseException:
                await call.abort()
                raise
        except GuestFailed as failed:
            raise GuestRefused(failed.error) from failed
        except GuestInvalid as invalid:
            raise aiohttp.InvalidURL(str(target), str(invalid)) from invalid
        return call


async def _feed(ours: socket.socket, call: GuestCall) -> None:
    with contextlib.suppress(OSError, DomainError):
        while piece := await asyncio.get_running_loop().sock_recv(ours, _PIECE):
            await call.write(piece)
        await call.end_input()
