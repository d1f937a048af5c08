"""Connections that the host asks for: to servers inside the machine, and from its programs back to the host.

A call is one connection: its input goes to the peer, the peer's bytes are its output, and an end of either direction is
passed on as what it is, the end of one direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Any

from vm.guest.agent import sockets
from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal, bad_resource
from vm.guest.agent.settings import Settings
from vm.guest.agent.workers import Workers

_PIECE = 262_144
_CONNECT_SECONDS = 30.0
LISTENERS = 64
WAITING = 64  # connections of one listener that nobody has taken yet; further ones wait in the kernel
_UNTAKEN_SECONDS = 30.0  # after which a connection that nobody took is closed


class Network:
    """The calls about connections and listeners."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self._settings = settings
        self._workers = workers
        self._listeners: dict[str, _Listener] = {}

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        target = {"host": "string?", "port": "integer?", "path": "string?"}
        methods.add("dial", self.dial, **target, pid="integer?")
        methods.add("listen", self.listen, **target)
        methods.add("accept", self.accept, listener="string", connection="integer")
        methods.add("port.list", self.ports)

    async def dial(self, call: Call, host: str | None, port: int | None, path: str | None, pid: int | None) -> None:
        """Connect to a port, to a unix socket, or to what a process listens on; then bytes both ways.

        Without `host` the machine's own addresses are tried. Refusal with the system's error where nobody answers.
        """
        connection = await self._connect(host, port, path, pid)
        try:
            await call.reply()
            await relay(call, connection)
        finally:
            connection.close()

    async def _connect(self, host: str | None, port: int | None, path: str | None, pid: int | None) -> socket.socket:
        if path is not None:
            # By a thread with the user's rights: which sockets may be opened is a matter of the file system
            return await self._workers.run(_connect_unix, self._absolute(path))
        if pid is not None:
            found = await self._workers.run(sockets.ports_of, pid)
            if not found:
                raise OSError(errno.ECONNREFUSED, f"process {pid} listens on no port")
            port = found[0]
        if port is None or not 0 < port < 65_536:
            raise Refusal("TypeError", "port: 1 to 65535", "EINVAL")
        addresses = await self._addresses(host, port)
        failed: OSError | None = None
        for family, address in addresses:
            try:
                return await _connect_tcp(family, address)
            except OSError as error:
                failed = failed or error
        raise failed or OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    async def _addresses(self, host: str | None, port: int) -> list[tuple[int, Any]]:
        if host is None or host in ("localhost", ""):
            found: list[tuple[int, Any]] = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
            # A server may have bound to the address of the card alone
            if host is None and self._settings.real:
                found.append((socket.AF_INET, (sockets.CARD, port)))
            return found
        try:
            # As ASCII: Python's own coding of names would load tables of megabytes
            name = host.encode("ascii")
        except UnicodeEncodeError:
            raise Refusal("TypeError", f"not a name or address: {host!r}", "EINVAL") from None
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Refusal("Error", f"{host}: {error.strerror or error}", "ENOTFOUND") from error
        return [(info[0], info[4]) for info in infos]

    def _absolute(self, path: str) -> str:
        return os.path.join(self._settings.home, path)

    # -- from programs of the machine to the host

    async def listen(self, call: Call, host: str | None, port: int | None, path: str | None) -> None:
        """Listen on a port (0: any) or a unix socket until the call ends; a record for each connection that comes.

        Replies `{"listener", "port"}`; a record is `{"connection": n, "peer": [address, port] or null}`.
        """
        if len(self._listeners) >= LISTENERS:
            raise Refusal("Busy", f"{LISTENERS} listeners are open: close some first", "EMFILE")
        if path is not None:
            server = await self._workers.run(_listen_unix, self._absolute(path))
        elif port is not None and 0 <= port < 65_536:
            server = await self._workers.run(_listen_tcp, host or "127.0.0.1", port)
        else:
            raise Refusal("TypeError", "port: 0 to 65535, or path", "EINVAL")
        name = os.urandom(8).hex()
        listener = self._listeners[name] = _Listener(server)
        leaving = asyncio.get_running_loop().create_task(_input_ended(call))
        try:
            bound = None if path is not None else server.getsockname()[1]
            await call.reply({"listener": name, "port": bound})
            serving = asyncio.get_running_loop().create_task(listener.serve(call))
            try:
                await asyncio.wait([serving, leaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                serving.cancel()
            if serving.done() and not serving.cancelled():
                serving.result()
        finally:
            leaving.cancel()
            del self._listeners[name]
            listener.close()
            if path is not None:
                with contextlib.suppress(OSError):
                    await self._workers.run(os.unlink, self._absolute(path))

    async def accept(self, call: Call, listener: str, connection: int) -> None:
        """Take a connection that a record of `listen` told of; then bytes both ways."""
        found = self._listeners.get(listener)
        taken = found.take(connection) if found is not None else None
        if taken is None:
            raise bad_resource(f"There is no connection {connection}")
        try:
            await call.reply()
            await relay(call, taken)
        finally:
            taken.close()

    async def ports(self, call: Call) -> list[dict[str, object]]:
        """What programs listen on: `{"port", "address", "pid", "command"}`, the last two null where it is not known."""
        return await self._workers.run(sockets.listening)


class _Listener:
    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._waiting: dict[int, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._room = asyncio.Semaphore(WAITING)
        self._next = 0

    async def serve(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            connection, peer = await loop.sock_accept(self._server)
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._next += 1
            timer = loop.call_later(_UNTAKEN_SECONDS, self._drop, self._next)
            self._waiting[self._next] = (connection, timer)
            await call.record(
                {"connection": self._next, "peer": list(peer[:2]) if isinstance(peer, tuple) and peer else None}
            )

    def take(self, number: int) -> socket.socket | None:
        """The connection of that number, which is the caller's from now on."""
        entry = self._waiting.pop(number, None)
        if entry is None:
            return None
        entry[1].cancel()
        self._room.release()
        return entry[0]

    def _drop(self, number: int) -> None:
        if (connection := self.take(number)) is not None:
            connection.close()

    def close(self) -> None:
        self._server.close()
        for number in list(self._waiting):
            self._drop(number)


async def _input_ended(call: Call) -> None:
    while await call.stream.read_all(_PIECE):
        pass


async def relay(call: Call, connection: socket.socket) -> None:
    """Carry bytes both ways until both directions have ended; the stream is reset where the peer broke off."""
    loop = asyncio.get_running_loop()

    async def inwards() -> None:
        # What the peer does not take any more is dropped: it may still have something to say
        with contextlib.suppress(OSError):
            while data := await call.stream.read_all(_PIECE):
                await loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)

    feeding = loop.create_task(inwards())
    try:
        while data := await loop.sock_recv(connection, _PIECE):
            await call.stream.write(data)
        call.stream.end()
        await feeding
    except ConnectionError as error:
        call.stream.reset(str(error))
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])


async def _connect_tcp(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(connection, address)
    except TimeoutError:
        connection.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Blocks only while the server's backlog is full
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(path)
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


def _listen_unix(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(path)
        # Whoever may pass through its directory could connect otherwise
        os.chmod(path, 0o600)
        server.listen(128)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server


def _listen_tcp(host: str, port: int) -> socket.socket:
    # "*" and nothing as SSH has them: every address
    if host in ("*", "0.0.0.0", "::"):  # noqa: S104 (inside the machine)
        host = "0.0.0.0"  # noqa: S104
    elif host == "localhost":
        host = "127.0.0.1"
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host.encode("ascii", "replace").decode(), port))
        server.listen(128)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server
