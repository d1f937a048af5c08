"""Finds and dials hosts on behalf of guests, in the host's own namespace: by the system's resolver, or a named one."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv6Address

from vm.egress import dns
from vm.egress.policy import Address
from vm.egress.refused import address_of

_LOOKUP = 10.0  # seconds
_TRY = 2.0
_DIAL = 5.0
_FRESH = 5.0  # seconds for which an answer is not asked for again
_KNOWN = 4096


class NotFound(Exception):
    """The host has no address, or nobody said; the message is for people."""


class Upstream:
    """Shared by all machines. `server` is a resolver's address and port; None asks the system's."""

    def __init__(self, server: tuple[str, int] | None = None) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="lookup")
        self._known: dict[str, tuple[float, list[Address]]] = {}

    def close(self) -> None:
        """Look nothing up any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of a folded name, IPv4 first; at least one. NotFound."""
        until, found = self._known.get(name, (0.0, []))
        if time.monotonic() < until:
            return found
        try:
            async with asyncio.timeout(_LOOKUP):
                found = await (self._ask_system(name) if self._server is None else self._ask(name, self._server))
        except TimeoutError as error:
            raise NotFound(f"nobody said in time which address {name} has") from error
        if not found:
            raise NotFound(f"{name} has no address")
        found = sorted(dict.fromkeys(found), key=lambda address: address.version)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[name] = (time.monotonic() + _FRESH, found)
        return found

    async def dial(self, address: Address, port: int) -> socket.socket:
        """A socket that is connected to this very address. OSError, TimeoutError."""
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(_DIAL):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _ask_system(self, name: str) -> list[Address]:
        def look() -> list[Address]:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            return [address_of(str(entry[4][0])) for entry in found]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, look)
        except OSError as error:
            raise NotFound(f"{name} has no address ({error.strerror})") from error

    async def _ask(self, name: str, server: tuple[str, int]) -> list[Address]:
        answers = await asyncio.gather(*(self._ask_for(name, kind, server) for kind in (dns.A, dns.AAAA)))
        return [address for answer in answers for address in answer]

    async def _ask_for(self, name: str, kind: int, server: tuple[str, int]) -> list[Address]:
        asked = dns.ask(secrets.randbelow(65_536), name, kind)
        for _ in range(3):
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_TRY):
                    answer = await _over_udp(asked, server)
                    if answer.truncated:
                        answer = await _over_tcp(asked, server)
                    return list(answer.addresses)
        raise NotFound(f"the resolver did not say which address {name} has")


async def _over_udp(asked: bytes, server: tuple[str, int]) -> dns.Answer:
    loop = asyncio.get_running_loop()
    with socket.socket(_family(server), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(server)  # whoever else sends here is not heard
        await loop.sock_sendall(sock, asked)
        while True:
            with suppress(dns.Malformed):
                return dns.answer_read(await loop.sock_recv(sock, 4096), asked)


async def _over_tcp(asked: bytes, server: tuple[str, int]) -> dns.Answer:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(asked).to_bytes(2) + asked)
        return dns.answer_read(await reader.readexactly(int.from_bytes(await reader.readexactly(2))), asked)
    except (asyncio.IncompleteReadError, dns.Malformed) as error:
        raise OSError("no answer") from error
    finally:
        writer.transport.abort()


def _family(server: tuple[str, int]) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server[0] else socket.AF_INET
