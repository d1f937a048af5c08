"""The gate passes on what is allowed, untouched, and nothing else; over real sockets, to servers of our own."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address

import pytest

from tests.vm.egress.test_peek import hello, split
from vm.egress import dns
from vm.egress.gate import Gate
from vm.egress.journal import Passage, Verdict
from vm.egress.policy import Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VirtualNames
from vm.egress.upstream import NotFound, Upstream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class World:
    """A gate whose guest is this test: it says where each connection wanted to go."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.names = VirtualNames()
        self.records: dict[str, str] = {}
        self.asked: list[str] = []
        self.wanted: list[tuple[IPv4Address, int]] = []
        self.ports: dict[int, int] = {}
        self.policy = Policy(None)
        self.limit = 1024
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
        addresses = [IPv4Address(known)] if known and query.kind == dns.A else []
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


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.records = {"good.example": "127.0.0.1", "other.example": "127.0.0.1", "inside.example": "10.0.0.7"}
    await made.start()
    yield made
    made.close()
    await asyncio.sleep(0.02)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()


def _get(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_tls_to_an_allowed_host_passes_untouched(world: World) -> None:
    """The very bytes of the client, split over segments and records, arrive; the journal says what passed."""
    world.gate.change(Policy(["good.example:443"]))
    data = split(hello("good.example"), 50) + b"the rest"
    async with world.serving(443, _echo):
        reader, writer = await world.connect("good.example", 443)
        for place in range(0, len(data), 100):
            writer.write(data[place : place + 100])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()
        passage = await world.last()
    assert (passage.verdict, passage.rule) == (Verdict.ALLOWED, "good.example:443")
    assert (passage.host, passage.port, passage.sent, passage.received) == ("good.example", 443, len(data), len(data))


async def test_http_passes_and_a_denial_explains_itself(world: World) -> None:
    """The host on the list is reached; another is a 403 that names the rule and what to do, and nobody looked it up."""
    world.gate.change(Policy(["good.example"]))
    async with world.serving(80, _echo):
        assert await world.exchange("good.example", 80, _get("good.example")) == _get("good.example")
        assert (await world.last()).verdict is Verdict.ALLOWED
    said = await world.exchange("bad.example", 80, _get("bad.example"), end=False)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"bad.example:80" in said
    assert b"allow_net" in said
    assert (await world.last()).verdict is Verdict.DENIED
    assert "bad.example" not in world.asked
    on_another_port = await world.exchange("bad.example", 8000, _get("bad.example"), end=False)
    assert on_another_port.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("host", "port", "data"),
    [
        ("bad.example", 443, hello("bad.example")),
        ("bad.example", 22, b""),
        ("good.example", 443, hello("other.example")),
        ("good.example", 443, hello(None)),
        ("good.example", 443, b"SSH-2.0-x\r\n"),
        ("good.example", 443, hello("good.example")[:100]),
        ("203.0.113.9", 443, hello("good.example")),
        ("100.64.200.1", 443, hello("good.example")),
        ("inside.example", 443, hello("inside.example")),
        ("10.0.0.1", 22, b""),
    ],
    # a ClientHello has random numbers in it
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
async def test_whatever_else_there_is_is_reset(world: World, host: str, port: int, data: bytes) -> None:
    """Denied, another SNI, none, no TLS, half a hello, a bare or made-up or inner address: reset, never dialled."""
    world.gate.change(Policy(["good.example", "inside.example", "10.0.0.1"]))
    with pytest.raises(ConnectionError):
        await world.exchange(host, port, data)
    passage = await world.last()
    assert passage.verdict is Verdict.DENIED, passage
    assert world.upstream.dialled == []


async def test_what_is_always_refused_is_so_under_any_policy(world: World) -> None:
    for host in ("169.254.169.254", "10.0.0.1", "metadata.google.internal"):
        said = await world.exchange(host, 80, _get(host), end=False)
        assert said.startswith(b"HTTP/1.1 403 ")
        assert b"administrator" in said
    said = await world.exchange("inside.example", 80, _get("inside.example"), end=False)
    assert b"10.0.0.7" in said
    assert world.upstream.dialled == []


async def test_http_that_asks_for_another_host_is_denied(world: World) -> None:
    for asked in (_get("other.example"), b"GET http://other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n"):
        said = await world.exchange("good.example", 80, asked, end=False)
        assert said.startswith(b"HTTP/1.1 403 ")
    assert world.upstream.dialled == []


async def test_a_silent_client_on_a_web_port_never_falls_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vm.egress.gate._PEEKING", 0.1)
    with pytest.raises(ConnectionError):
        await world.exchange("good.example", 443, b"", end=False)
    assert (await world.last()).rule == "unreadable"
    assert world.upstream.dialled == []


async def test_a_server_that_speaks_first_is_heard(world: World) -> None:
    """On other ports bytes pass from either side at once, as ssh and databases need it; half-closes pass, too."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        asked = await reader.read(-1)
        writer.write(b"you said " + asked)
        writer.close()

    world.gate.change(Policy(["good.example:22"]))
    async with world.serving(22, greet):
        reader, writer = await world.connect("good.example", 22)
        assert await reader.readline() == b"hello\n"
        writer.write(b"something")
        writer.write_eof()
        assert await reader.read(-1) == b"you said something"
        writer.close()
        assert (await world.last()).verdict is Verdict.ALLOWED
    with pytest.raises(ConnectionError):
        await world.exchange("good.example", 23, b"")


async def test_an_address_rule_needs_no_name(world: World) -> None:
    """TLS to an address that a rule names may come without SNI, since clients send none; by a name it may not."""
    world.gate.change(Policy(["127.0.0.1"]))
    data = hello(None)
    async with world.serving(443, _echo):
        reader, writer = await world.connect("127.0.0.1", 443)
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()


async def test_a_change_of_policy_cuts_what_it_forbids(world: World) -> None:
    """An open connection is reset at once when its host is allowed no more; others go on."""
    async with world.serving(22, _echo):
        kept, cut = await world.connect("good.example", 22), await world.connect("other.example", 22)
        for reader, writer in (kept, cut):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        began = time.monotonic()
        world.gate.change(Policy(["good.example"]))
        with pytest.raises(ConnectionError):
            await cut[0].read(1)
        assert time.monotonic() - began < 1
        assert (await world.last()).verdict is Verdict.CUT
        kept[1].write(b"y")
        assert await kept[0].readexactly(1) == b"y"
        kept[1].close()
        cut[1].close()


async def test_back_pressure_holds_both_ways(world: World) -> None:
    """A reader that does not read stops the sender after a bounded amount, and gets every byte when it does."""
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(1000):
            writer.write(b"z" * 65_536)
            await writer.drain()
            sent += 65_536
        writer.close()

    async with world.serving(22, pour):
        reader, writer = await world.connect("good.example", 22)
        await reader.readexactly(1)
        for _ in range(50):
            before = sent
            await asyncio.sleep(0.1)
            if sent == before:
                break
        assert sent < 40_000_000
        total = 1
        while data := await reader.read(1_000_000):
            total += len(data)
        assert total == 65_536_000
        writer.close()


async def test_one_more_than_the_limit_is_reset_with_an_event(world: World) -> None:
    world.gate._limit = 2
    async with world.serving(22, _echo):
        open_ones = [await world.connect("good.example", 22) for _ in range(2)]
        for reader, writer in open_ones:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await world.exchange("good.example", 22, b"")
        assert [passage.rule for passage in world.passages] == ["connection limit"]
        for _, writer in open_ones:
            writer.close()
    async with asyncio.timeout(5):
        while world.gate.connections:
            await asyncio.sleep(0.01)


async def test_a_host_that_cannot_be_had_says_why(world: World) -> None:
    """Without an address, or without an answer: 502 over HTTP, and FAILED in the journal."""
    said = await world.exchange("nowhere.example", 80, _get("nowhere.example"), end=False)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert (await world.last()).verdict is Verdict.FAILED
    said = await world.exchange("good.example", 80, _get("good.example"), end=False)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert (await world.last()).rule == "unreachable"


async def test_the_checked_address_is_the_dialled_one(world: World) -> None:
    """A deny rule for a range holds for a name that resolves there; what was resolved once is what is dialled."""
    world.gate.change(Policy(None, ["127.0.0.1"]))
    with pytest.raises(ConnectionError):
        await world.exchange("good.example", 22, b"")
    assert (await world.last()).rule == "127.0.0.1"
    world.gate.change(Policy(None))
    async with world.serving(22, _echo):
        assert await world.exchange("good.example", 22, b"x") == b"x"
    assert world.upstream.dialled == ["127.0.0.1:22"]


async def test_a_guest_that_goes_away_leaves_nothing(world: World) -> None:
    async with world.serving(22, _echo):
        for _ in range(20):
            _reader, writer = await world.connect("good.example", 22)
            writer.transport.abort()
        async with asyncio.timeout(5):
            while world.gate.connections or len(world.passages) < 20:
                await asyncio.sleep(0.01)


async def test_closing_the_gate_ends_everything(world: World) -> None:
    async with world.serving(22, _echo):
        reader, writer = await world.connect("good.example", 22)
        writer.write(b"x")
        await reader.readexactly(1)
        world.gate.close()
        world.gate.close()
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*world.address)


async def test_the_system_resolver_is_asked_where_none_is_named() -> None:
    upstream = Upstream()
    assert "127.0.0.1" in [str(address) for address in await upstream.resolve("localhost")]
    with pytest.raises(NotFound):
        await upstream.resolve("does-not-exist.invalid")
    upstream.close()


async def _asked(world: World, many: int = 1) -> list[Passage]:
    """What waits to be allowed, once it was told; nobody has been asked about its name by then."""
    async with asyncio.timeout(5):
        while len(world.passages) < many:
            await asyncio.sleep(0.01)
    told = list(world.passages)
    world.passages.clear()
    assert {passage.verdict for passage in told} == {Verdict.ASKED}
    assert world.asked == []
    return told


async def test_a_connection_nobody_decided_about_waits_to_be_allowed(world: World) -> None:
    """Two to one host are one question; a policy that allows it lets both through, and the bytes are all there."""
    world.gate.change(Policy([], ask=True))
    async with world.serving(80, _echo):
        both = [asyncio.ensure_future(world.exchange("good.example", 80, _get("good.example"))) for _ in range(2)]
        (told,) = await _asked(world)
        assert (told.host, told.port, told.rule, told.seconds) == ("good.example", 80, "ask", 60.0)
        world.gate.change(Policy(["other.example"], ask=True))
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in both)
        world.gate.change(Policy(["other.example", "good.example:80"], ask=True))
        assert await asyncio.gather(*both) == [_get("good.example")] * 2
        assert (await world.last()).verdict is Verdict.ALLOWED
    assert world.gate._asked == set()


async def test_a_connection_that_waits_is_denied_by_a_rule_or_by_time(world: World) -> None:
    """With what decided; and one whose sandbox asks no more is denied at once."""
    world.gate.change(Policy([], ask=True))
    waiting = asyncio.ensure_future(world.exchange("bad.example", 80, _get("bad.example"), end=False))
    await _asked(world)
    world.gate.change(Policy([], ["bad.example:80"], ask=True))
    assert b"denied by the rule bad.example:80" in await waiting
    assert (await world.last()).rule == "bad.example:80"
    world.gate._patience = 0.2
    world.gate.change(Policy([], ask=True))
    said = await world.exchange("late.example", 80, _get("late.example"), end=False)
    assert b"Nobody allowed it within" in said
    async with asyncio.timeout(5):
        while len(world.passages) < 2:
            await asyncio.sleep(0.01)
    assert [(one.verdict, one.rule) for one in world.passages] == [
        (Verdict.ASKED, "ask"),
        (Verdict.DENIED, "allow_net"),
    ]
    world.passages.clear()
    world.gate._patience = 60.0
    waiting = asyncio.ensure_future(world.exchange("more.example", 80, _get("more.example"), end=False))
    await _asked(world)
    world.gate.change(Policy([]))
    assert b"403" in await waiting
    assert world.asked == []


async def test_only_what_no_rule_is_about_is_asked(world: World) -> None:
    """Deny rules and what is always refused decide by themselves; so does an allow list of everything."""
    world.gate.change(Policy([], ["bad.example"], ask=True))
    for host in ("bad.example", "10.0.0.1", "100.64.200.1"):
        with pytest.raises(ConnectionError):
            await world.exchange(host, 443, hello("bad.example"))
        assert (await world.last()).verdict is Verdict.DENIED
    assert not Policy(None, ask=True).judge("good.example", 443).ask


async def test_what_waits_is_bounded_and_let_go_of(world: World) -> None:
    """A flood of connections does not wait without end; a client that has gone is no question any more."""
    world.gate.change(Policy([], ask=True))
    clients = [await world.connect(f"h{number}.example", 22) for number in range(32)]
    await _asked(world, 32)
    with pytest.raises(ConnectionError):
        await world.exchange("h99.example", 443, b"x")
    assert "wait for an answer already" in (await world.last()).detail
    for _reader, writer in clients:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    async with asyncio.timeout(5):
        while world.gate._asked:
            await asyncio.sleep(0.02)
