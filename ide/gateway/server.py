"""The gateway's listeners: one port for each exposure or one for all names below a domain, with one certificate."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from ide.gateway.directory import Directory
from ide.gateway.relay import Find, Relay, Visitor
from ide.gateway.source import Source
from ide.gateway.ssh import SshDoor
from sandboxes import background
from sandboxes.database import in_thread
from sandboxes.models import Exposure, ExposureKind
from sandboxes.services.exposures import Listening, gateway_gone, gateway_seen

log = structlog.get_logger("atoll.gateway")

HANDSHAKE_SECONDS = 20.0
MOST = 4096
"""Visitors at a time; each holds some hundred kilobytes at most."""
BACKLOG = 256
BUFFER = 262_144
SEEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where to listen. `ports` are for one exposure each; `domain_port` for all names below `domain`."""

    bind: str
    certificate: Path
    key: Path
    ports: Sequence[int] = ()
    domain: str = ""
    domain_port: int = 443
    # Ports for SSH, of which the first that is free is taken; 0 is any
    ssh_ports: Sequence[int] = ()
    ssh_host_key: Path = Path()


class CannotListen(Exception):
    """One line: what is in the way."""


def listener(bind: str, port: int) -> socket.socket:
    """A listening socket. OSError."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    # By its protocol asyncio knows that what it accepts is TCP: it would leave Nagle's delays on otherwise
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((bind, port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


class HttpDoor:
    """Serves visitors who come over TLS."""

    def __init__(self, config: GatewayConfig, directory: Directory) -> None:
        self._config = config
        self._directory = directory
        self._visitors = 0

    async def open(self, stack: contextlib.AsyncExitStack) -> Listening:
        """Listen until the stack is closed; CannotListen where that is not possible at all."""
        tls = self._context()
        if self._config.domain:
            try:
                made = listener(self._config.bind, self._config.domain_port)
            except OSError as error:
                raise CannotListen(
                    f"port {self._config.domain_port} for exposed ports cannot be used ({error.strerror}): "
                    "stop what uses it, or choose another: ATOLL_EXPOSE_PORT"
                ) from error
            await self._serve(stack, made, tls, self._by_host)
            return Listening(domain_port=made.getsockname()[1])
        taken = []
        for port in self._config.ports:
            try:
                made = listener(self._config.bind, port)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise CannotListen(f"{self._config.bind} cannot be listened on: {error.strerror}") from error
                log.warning("a port for exposures is somebody else's", port=port)
                continue
            await self._serve(stack, made, tls, partial(self._by_port, port))
            taken.append(port)
        return Listening(ports=tuple(taken))

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._config.certificate, self._config.key)
        return context

    async def _serve(
        self, stack: contextlib.AsyncExitStack, made: socket.socket, tls: ssl.SSLContext, find: Find
    ) -> None:
        server = await asyncio.start_server(
            partial(self._visit, find),
            sock=made,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            limit=BUFFER // 2,
        )
        stack.callback(server.close)

    async def _by_port(self, port: int, host: str) -> Exposure | None:
        return await self._directory.find(ExposureKind.HTTP, port)

    async def _by_host(self, host: str) -> Exposure | None:
        name, _, domain = host.partition(".")
        if domain != self._config.domain:
            return None
        return await self._directory.find(ExposureKind.HTTP, name)

    async def _visit(self, find: Find, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._visitors >= MOST:
            writer.transport.abort()
            return
        self._visitors += 1
        writer.transport.set_write_buffer_limits(high=BUFFER)
        peer = writer.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        try:
            await Relay(Visitor(Source(reader.read), writer, address), find, self._directory).run()
        except asyncio.CancelledError:
            # Its exposure has closed, or the gateway ends. The task is this visitor's alone
            writer.transport.abort()
        finally:
            self._visitors -= 1
            writer.close()


@asynccontextmanager
async def gateway(config: GatewayConfig) -> AsyncIterator[Listening]:
    """Let visitors in for as long as the context is open. CannotListen."""
    directory = Directory()
    process = uuid.uuid4()
    async with contextlib.AsyncExitStack() as stack:
        ssh = _ssh_socket(config)
        await SshDoor(directory, config.ssh_host_key).open(stack, ssh)
        listening = replace(await HttpDoor(config, directory).open(stack), ssh_port=ssh.getsockname()[1])
        await in_thread(gateway_seen, process=process, listening=listening)
        beside = [
            background.spawn(directory.watch(), name="exposures that close"),
            background.spawn(_seen(process, listening), name="gateway presence"),
        ]
        try:
            yield listening
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            await in_thread(gateway_gone, process=process)


def _ssh_socket(config: GatewayConfig) -> socket.socket:
    failed: OSError | None = None
    for port in config.ssh_ports:
        try:
            return listener(config.bind, port)
        except OSError as error:
            failed = error
    why = failed.strerror if failed else "none is given"
    raise CannotListen(
        f"no port for SSH can be used, of {list(config.ssh_ports)} ({why}): stop what uses it, or choose another: "
        "ATOLL_SSH_PORT"
    ) from failed


async def _seen(process: uuid.UUID, listening: Listening) -> None:
    while True:
        await asyncio.sleep(SEEN_SECONDS)
        try:
            await in_thread(gateway_seen, process=process, listening=listening)
        except Exception:
            log.exception("could not say that this gateway lives")
