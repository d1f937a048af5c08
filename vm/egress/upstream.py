"""Finds and dials hosts on behalf of guests, in the host's own namespace: by the system's resolver, or a named one."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv6Address

from vm.background import spawn
from vm.egress import dns
from vm.egress.policy import Address
from vm.egress.refused import address_of

_LOOKUP = 10.0  # seconds
_THREADS = 128  # each stands for a lookup that the system does, however long it takes
_TRY = 2.0
_DIAL = 5.0
_STAGGER = 0.25  # seconds after which the next address of a host is tried beside the one before
_FRESH = 5.0  # seconds for which an answer is not asked for again
_ANSWERING = 30.0  # seconds for which the address of a host that answered is taken again
_KNOWN = 4096


class NotFound(Exception):
    """The host has no address, or nobody said; the message is for people."""


class Upstream:
    """Shared by all machines. `server` is a resolver's address and port; None asks the system's."""

    def __init__(self, server: tuple[str, int] | None = None) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup")
        self._known: dict[str, tuple[float, list[Address]]] = {}
        self._answered: dict[tuple[tuple[Address, ...], int], tuple[float, Address]] = {}

    def close(self) -> None:
        """Look nothing up any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, name: str, places: asyncio.Semaphore) -> list[Address]:
        """The addresses of a folded name, IPv4 first; at least one. NotFound.

        `places` are those of whoever asks: one is taken until the lookup has ended, even where nobody waits any more.
        """
        if found := self._fresh(name):
            return found
        await places.acquire()
        if found := self._fresh(name):
            places.release()
            return found
        try:
            async with asyncio.timeout(_LOOKUP):
                found = await self._looked_up(name, places.release)
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

    async def dial_any(self, addresses: Sequence[Address], port: int) -> tuple[Address, socket.socket]:
        """The first of these to answer, and a socket connected to it; each later one has a moment less. OSError,

        TimeoutError: what the last one to fail said.
        """
        left, failure = list(addresses), OSError("it has no address")
        trying: dict[asyncio.Task[socket.socket | OSError], Address] = {}
        try:
            while left or trying:
                if left:
                    address = left.pop(0)
                    trying[spawn(self._try(address, port), name="dialling")] = address
                done, _ = await asyncio.wait(
                    trying, timeout=_STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if isinstance(result := task.result(), OSError):
                        failure = result
                        del trying[task]
                    else:
                        return trying.pop(task), result
            raise failure
        finally:
            for task in trying:
                task.cancel()
                task.add_done_callback(_drop)

    async def _try(self, address: Address, port: int) -> socket.socket | OSError:
        try:
            return await self.dial(address, port)
        except OSError as error:  # a TimeoutError is one
            return error

    async def answering(self, addresses: Sequence[Address], port: int) -> Address:
        """One of these that takes connections, where there is a choice; the first one where none does."""
        if len(addresses) == 1:
            return addresses[0]
        key = tuple(addresses), port
        until, found = self._answered.get(key, (0.0, addresses[0]))
        if time.monotonic() < until:
            return found
        try:
            found, sock = await self.dial_any(addresses, port)
        except OSError:
            return addresses[0]
        sock.close()
        if len(self._answered) >= _KNOWN:
            self._answered.clear()
        self._answered[key] = (time.monotonic() + _ANSWERING, found)
        return found

    def _fresh(self, name: str) -> list[Address]:
        until, found = self._known.get(name, (0.0, []))
        return found if time.monotonic() < until else []

    async def _looked_up(self, name: str, ended: Callable[[], None]) -> list[Address]:
        if self._server is not None:
            try:
                return await self._ask(name, self._server)
            finally:
                ended()
        loop = asyncio.get_running_loop()

        def tell(_looking: object) -> None:
            with suppress(RuntimeError):  # the loop is no more
                loop.call_soon_threadsafe(ended)

        # The system's lookup goes on in its thread when nobody waits for it any more
        looking = self._pool.submit(_ask_system, name)
        looking.add_done_callback(tell)
        try:
            return await asyncio.wrap_future(looking)
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


def _ask_system(name: str) -> list[Address]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [address_of(str(entry[4][0])) for entry in found]


def _drop(task: asyncio.Task[socket.socket | OSError]) -> None:
    # Two answered at once
    if not task.cancelled() and isinstance(result := task.result(), socket.socket):
        result.close()


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
