"""A gate whose guest is the test, over real sockets, and servers of ours for the internet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address

from vm.egress import dns
from vm.egress.gate import Gate
from vm.egress.journal import Passage
from vm.egress.policy import Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VirtualNames
from vm.egress.turns import Turns
from vm.egress.upstream import Upstream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
LIST = ("*.example",)
"""What the administrator opened is open to a sandbox that has a list only."""


class World:
    """A gate whose guest is this test: it says where each connection wanted to go."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.names = VirtualNames()
        self.records: dict[str, str] = {}
        self.asked: list[str] = []
        self.wanted: list[tuple[IPv4Address, int]] = []
        self.ports: dict[int, int] = {}
        self.policy = Policy(LIST)
        self.limit = 1024
        self.turns: Turns | None = None
        self.opened = ["127.0.0.0/8"]

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._dns.bind(("127.0.0.1", 0))
        loop.add_reader(self._dns, self._answer)
        self.upstream = _Rerouted(self, self._dns.getsockname())
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.gate = Gate(
            listener,
            policy=self.policy,
            names=self.names,
            refusals=Refusals(self.opened),
            upstream=self.upstream,
            journal=self.passages.append,
            limit=self.limit,
            turns=self.turns,
            original=lambda sock: self.wanted.pop(0),
        )
        self.gate.open()

    def close(self) -> None:
        self.gate.close()
        self.upstream.close()
        asyncio.get_running_loop().remove_reader(self._dns)
        self._dns.close()

    def _answer(self) -> None:
        message, peer = self._dns.recvfrom(2048)
        query = dns.query_read(message)
        name = b".".join(query.labels).decode()
        self.asked.append(name)
        known = self.records.get(name)
        addresses = [IPv4Address(one) for one in known.split()] if known and query.kind == dns.A else []
        self._dns.sendto(dns.answer(query, addresses=addresses), peer)

    async def connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            address = IPv4Address(host)
        except ValueError:
            address = self.names.address_of(host)
        self.wanted.append((address, port))
        return await asyncio.open_connection(*self.address)

    async def exchange(self, host: str, port: int, data: bytes, *, end: bool = True) -> bytes:
        """What comes back for `data`, up to the end. ConnectionError where it is reset."""
        reader, writer = await self.connect(host, port)
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(10):
                return await reader.read(-1)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def last(self) -> Passage:
        async with asyncio.timeout(5):
            while not self.passages:
                await asyncio.sleep(0.01)
        return self.passages.pop()

    @asynccontextmanager
    async def serving(self, port: int, handler: Handler) -> AsyncIterator[None]:
        """A server of ours stands for `port`, whatever address was dialled for it."""
        server = await asyncio.start_server(handler, "127.0.0.1", 0)  # type: ignore[arg-type]
        self.ports[port] = server.sockets[0].getsockname()[1]
        async with server:
            yield


class _Rerouted(Upstream):
    """Dials our servers' ports in place of the well-known ones."""

    def __init__(self, world: World, server: tuple[str, int]) -> None:
        super().__init__(server)
        self._world = world
        self.dialled: list[str] = []

    async def dial(self, address: object, port: int) -> socket.socket:
        self.dialled.append(f"{address}:{port}")
        return await super().dial(address, self._world.ports.get(port, 1))  # type: ignore[arg-type]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()


def get(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
