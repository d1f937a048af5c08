"""SSH forwards: connections into the guest (-L, -D, -W), and listeners in it whose connections go to the client (-R).

The guest's agent dials and listens, with the guest's own names and addresses. The client's SSH agent is a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh
import structlog

from ide.gateway.channel import PACKET, WINDOW, ChannelClosed, Pipe, TcpPipe, UnixPipe, relay
from ide.gateway.session import Guest
from sandboxes import background
from sandboxes.errors import DomainError
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid

log = structlog.get_logger("atoll.gateway")

type Connect = Callable[[list[Any]], Awaitable[Pipe]]
"""Opens a channel to the client for a connection from that address, port (both may be missing)."""


async def dialled(guest: Guest, target: dict[str, Any], pipe: Pipe) -> Any:
    """A session that carries a connection to that target in the guest. asyncssh.ChannelOpenError."""
    try:
        call = await guest.call("dial", target, more=True)
    except DomainError as error:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from error
    try:
        await call.reply()
    except (DomainError, GuestFailed, GuestInvalid) as error:
        await call.abort()
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(error)) from error
    except BaseException:
        await call.abort()
        raise
    background.spawn(_carry(guest, pipe, call), name="ssh forward")
    return pipe


async def _carry(guest: Guest, pipe: Pipe, call: GuestCall) -> None:
    guest.used()
    async with call:
        try:
            await pipe.opened()
            await relay(pipe, call, guest.used)
            pipe.close()
        except (DomainError, ChannelClosed):
            pipe.abort()


class GuestListener(asyncssh.SSHListener):
    """A listener in the guest, each of whose connections becomes a channel to the client."""

    def __init__(self, guest: Guest, call: GuestCall, told: dict[str, Any], connect: Connect) -> None:
        super().__init__()
        self._guest = guest
        self._call = call
        self._name = str(told.get("listener"))
        port = told.get("port")
        self._port = port if isinstance(port, int) and 0 < port < 65_536 else 0
        self._connect = connect
        self._serving = background.spawn(self._serve(), name="ssh listener")

    @classmethod
    async def open(cls, guest: Guest, target: dict[str, Any], connect: Connect) -> GuestListener | None:
        """Listen there; None where the guest refuses."""
        try:
            call = await guest.call("listen", target, more=True)
        except DomainError:
            return None
        try:
            told = await call.reply()
        except (DomainError, GuestFailed, GuestInvalid):
            await call.abort()
            return None
        return cls(guest, call, told if isinstance(told, dict) else {}, connect)

    def get_port(self) -> int:
        """Where it listens."""
        return self._port

    def close(self) -> None:
        """Listen no more; connections that are open go on. Repeatable."""
        self._serving.cancel()

    async def wait_closed(self) -> None:
        """Return once nothing listens any more."""
        await asyncio.wait([self._serving])

    async def _serve(self) -> None:
        async with self._call:
            with contextlib.suppress(DomainError):
                async for record in self._call.records():
                    if isinstance(record, dict):
                        background.spawn(self._taken(record), name="ssh forward back")

    async def _taken(self, record: dict[str, Any]) -> None:
        peer = record.get("peer")
        accept = {"listener": self._name, "connection": record.get("connection")}
        try:
            async with await self._guest.call("accept", accept, more=True) as call:
                await call.reply()
                try:
                    pipe = await self._connect(peer if isinstance(peer, list) else [])
                except (asyncssh.ChannelOpenError, OSError):
                    return  # the client does not want it
                await _carry(self._guest, pipe, call)
        except (DomainError, GuestFailed, GuestInvalid):
            pass  # it has ended meanwhile


def tcp_back(connection: asyncssh.SSHServerConnection, host: str, port: Callable[[], int]) -> Connect:
    """Opens channels for connections to a port that the client asked to be listened on."""

    async def connect(peer: list[Any]) -> Pipe:
        address = str(peer[0]) if peer else ""
        number = peer[1] if len(peer) > 1 and isinstance(peer[1], int) else 0
        _, pipe = await connection.create_connection(
            TcpPipe, host, port(), address, number, window=WINDOW, max_pktsize=PACKET
        )
        return pipe  # type: ignore[return-value]

    return connect


def unix_back(connection: asyncssh.SSHServerConnection, path: str) -> Connect:
    """The same for a unix socket."""

    async def connect(peer: list[Any]) -> Pipe:
        _, pipe = await connection.create_unix_connection(UnixPipe, path, window=WINDOW, max_pktsize=PACKET)
        return pipe  # type: ignore[return-value]

    return connect


class ForwardedAgent:
    """The client's SSH agent in the guest: a socket in a directory that only its user may enter."""

    def __init__(self, guest: Guest, connection: asyncssh.SSHServerConnection) -> None:
        self._guest = guest
        self._connection = connection
        self._making = asyncio.Lock()
        self._folder = ""
        self._listener: GuestListener | None = None

    async def path(self) -> str:
        """Where it is; empty where the client has not forwarded one, or the guest does not let us."""
        if self._connection.get_agent_path() is None:
            return ""
        async with self._making:
            if self._listener is None:
                try:
                    self._folder = str(await self._guest.ask("makeTempDir", {"options": {"prefix": "ssh-"}}))
                except (DomainError, GuestFailed, GuestInvalid):
                    return ""
                target = {"path": posixpath.join(self._folder, "agent")}
                self._listener = await GuestListener.open(self._guest, target, self._connect)
        return posixpath.join(self._folder, "agent") if self._listener is not None else ""

    async def _connect(self, peer: list[Any]) -> Pipe:
        _, pipe = await self._connection.create_agent_connection(UnixPipe, window=WINDOW, max_pktsize=PACKET)
        return pipe  # type: ignore[return-value]

    async def close(self) -> None:
        """Take socket and directory away. Repeatable."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            await listener.wait_closed()
            with contextlib.suppress(DomainError, GuestFailed, GuestInvalid):
                await self._guest.ask("remove", {"path": self._folder, "options": {"recursive": True}})
