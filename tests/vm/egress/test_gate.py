"""The gate passes on what is allowed, untouched, and nothing else; over real sockets, to servers of our own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from tests.vm.egress.test_peek import bare_hello, extension, hello, server_name, split, with_names
from tests.vm.egress.world import LIST, World, echo, get
from vm.egress.journal import Verdict
from vm.egress.policy import Policy
from vm.egress.upstream import NotFound, Upstream


async def test_tls_to_an_allowed_host_passes_untouched(world: World) -> None:
    """The very bytes of the client, split over segments and records, arrive; the journal says what passed."""
    world.gate.change(Policy(["good.example:443"]))
    data = split(hello("good.example"), 50) + b"the rest"
    async with world.serving(443, echo):
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
    async with world.serving(80, echo):
        assert await world.exchange("good.example", 80, get("good.example")) == get("good.example")
        assert (await world.last()).verdict is Verdict.ALLOWED
    said = await world.exchange("bad.example", 80, get("bad.example"), end=False)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"bad.example:80" in said
    assert b"allow_net" in said
    assert (await world.last()).verdict is Verdict.DENIED
    assert "bad.example" not in world.asked
    on_another_port = await world.exchange("bad.example", 8000, get("bad.example"), end=False)
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
    async with world.serving(443, echo):
        assert await world.exchange("good.example", 443, hello("good.example"))


async def test_what_is_always_refused_is_so_under_any_policy(world: World) -> None:
    for host in ("169.254.169.254", "10.0.0.1", "metadata.google.internal"):
        said = await world.exchange(host, 80, get(host), end=False)
        assert said.startswith(b"HTTP/1.1 403 ")
        assert b"administrator" in said
    said = await world.exchange("inside.example", 80, get("inside.example"), end=False)
    assert b"10.0.0.7" in said
    assert world.upstream.dialled == []


async def test_what_was_opened_is_open_to_whoever_has_a_list(world: World) -> None:
    """Not to everybody who may reach the internet: neither a name that resolves there, nor the address itself."""
    async with world.serving(80, echo):
        for host in ("good.example", "127.0.0.1"):
            for policy in (Policy(None), Policy(None, ["bad.example"])):
                world.gate.change(policy)
                said = await world.exchange(host, 80, get(host), end=False)
                assert said.startswith(b"HTTP/1.1 403 ")
                assert b"a list of what they may reach" in said
                assert b"ATOLL_EGRESS_INTERNAL_ALLOW" in said
                assert (await world.last()).rule == "always refused"
            world.gate.change(Policy([host]))
            assert await world.exchange(host, 80, get(host)) == get(host)
            await world.last()
    assert len(world.upstream.dialled) == 2


async def test_a_denial_says_what_would_help(world: World) -> None:
    """A pattern that denies is to be removed, and a list to be added to; neither helps against what no list changes."""
    world.gate.change(Policy(["good.example"], ["bad.example"]))
    for host, asked, advice in (
        ("bad.example", "bad.example", b'remove the rule "bad.example" from the sandbox\'s deny_net'),
        ("new.example", "new.example", b'add "new.example:80" to the sandbox\'s allow_net'),
        ("good.example", "other.example", b""),
    ):
        said = await world.exchange(host, 80, get(asked), end=False)
        assert advice in said
        assert (b"_net" in said.partition(b"Rule:")[2]) is bool(advice)


async def comes_through(world: World, data: bytes, passes: bool) -> None:
    """Whether a client that begins like that reaches good.example; else nobody is dialled."""
    async with world.serving(443, echo):
        if passes:
            assert await world.exchange("good.example", 443, data) == data
            return
        with pytest.raises(ConnectionError):
            await world.exchange("good.example", 443, data)
        assert world.upstream.dialled == []


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        (b"GOOD.example", True),
        (b"127.00.00.01", False),
        (b"good.exampl.", False),
        (b"evil.example", False),
    ],
)
async def test_the_server_name_is_the_dialled_one_however_it_is_spelled(
    world: World, name: bytes, passes: bool
) -> None:
    """In capitals it is; an address, or a name that is another, is none."""
    world.gate.change(Policy(["good.example"]))
    data = with_names(hello("good.example"), b"good.example", name)
    await comes_through(world, data, passes)


async def test_a_dot_behind_a_server_name_changes_nothing(world: World) -> None:
    world.gate.change(Policy(["good.example"]))
    data = with_names(hello("good.examplex"), b"good.examplex", b"good.example.")
    async with world.serving(443, echo):
        assert await world.exchange("good.example", 443, data) == data


@pytest.mark.parametrize(
    ("names", "encrypted", "passes"),
    [
        ([b"good.example"], False, True),
        ([b"good.example"], True, True),
        ([b"evil.example"], True, False),
        ([], True, False),
        ([b"good.example", b"good.example"], False, False),
        ([b"good.example", b"evil.example"], False, False),
    ],
)
async def test_what_is_encrypted_in_a_hello_opens_nothing(
    world: World, names: list[bytes], encrypted: bool, passes: bool
) -> None:
    """Its outer name decides, also with an encrypted one beside it; two names, each in its extension, are refused."""
    world.gate.change(Policy(["good.example"]))
    extensions = b"".join(extension(0, server_name(one)) for one in names)
    if encrypted:
        extensions += extension(0xFE0D, b"\x00\x00\x01\x00\x01" + bytes(200))
    data = bare_hello(extensions)
    await comes_through(world, data, passes)


async def test_a_name_that_is_rebound_is_judged_by_each_answer(world: World) -> None:
    """Once for each connection it is looked up, and that answer is checked and dialled: an inner one is refused."""
    async with world.serving(22, echo):
        assert await world.exchange("good.example", 22, b"x") == b"x"
        await world.last()
        assert sorted(world.asked) == ["good.example"] * 2  # A and AAAA
        world.upstream._known.clear()  # its answer was for no time at all
        world.records["good.example"] = "10.0.0.7"
        with pytest.raises(ConnectionError):
            await world.exchange("good.example", 22, b"x")
        assert (await world.last()).rule == "always refused"
    assert world.upstream.dialled == ["127.0.0.1:22"]


async def test_a_redirect_leads_nowhere_that_is_not_allowed(world: World) -> None:
    """It passes as it is, and whoever follows it is denied as anybody."""
    world.gate.change(Policy(["good.example"]))

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with world.serving(80, redirect):
        assert b"Location: http://other.example/" in await world.exchange("good.example", 80, get("good.example"))
        assert b" 403 " in await world.exchange("other.example", 80, get("other.example"), end=False)
    assert world.upstream.dialled == ["127.0.0.1:80"]


async def test_http_that_asks_for_another_host_is_denied(world: World) -> None:
    for asked in (get("other.example"), b"GET http://other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n"):
        said = await world.exchange("good.example", 80, asked, end=False)
        assert said.startswith(b"HTTP/1.1 403 ")
    assert world.upstream.dialled == []


async def test_a_silent_client_on_a_web_port_never_falls_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vm.egress.gate.PEEKING", 0.1)
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
    async with world.serving(443, echo):
        reader, writer = await world.connect("127.0.0.1", 443)
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()


async def test_a_change_of_policy_cuts_what_it_forbids(world: World) -> None:
    """An open connection is reset at once when its host is allowed no more; others go on."""
    async with world.serving(22, echo):
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
    async with world.serving(22, echo):
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
    said = await world.exchange("nowhere.example", 80, get("nowhere.example"), end=False)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert b"X-Atoll-Egress: failed\r\n" in said
    assert (await world.last()).verdict is Verdict.FAILED
    said = await world.exchange("good.example", 80, get("good.example"), end=False)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert (await world.last()).rule == "unreachable"


async def test_the_checked_address_is_the_dialled_one(world: World) -> None:
    """A deny rule for a range holds for a name that resolves there; what was resolved once is what is dialled."""
    world.gate.change(Policy(LIST, ["127.0.0.1"]))
    with pytest.raises(ConnectionError):
        await world.exchange("good.example", 22, b"")
    assert (await world.last()).rule == "127.0.0.1"
    world.gate.change(Policy(LIST))
    async with world.serving(22, echo):
        assert await world.exchange("good.example", 22, b"x") == b"x"
    assert world.upstream.dialled == ["127.0.0.1:22"]


async def test_another_address_of_a_host_is_tried_where_one_says_nothing(world: World) -> None:
    """One that refuses and one that lets clients wait hold nobody up; the journal's address is judged like any."""
    world.records["many.example"] = "127.0.0.9 127.0.0.8 127.0.0.1"
    async with world.serving(22, echo):
        with socket.socket() as silent, ExitStack() as waiting:
            silent.bind(("127.0.0.9", world.ports[22]))
            silent.listen(0)
            for _ in range(3):  # its queue is full: it answers nobody any more
                sock = waiting.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(silent.getsockname())
            began = time.monotonic()
            assert await world.exchange("many.example", 22, b"x") == b"x"
            assert time.monotonic() - began < 3
    assert world.upstream.dialled == ["127.0.0.9:22", "127.0.0.8:22", "127.0.0.1:22"]


async def test_no_address_of_a_host_is_tried_that_is_denied(world: World) -> None:
    world.records["many.example"] = "10.0.0.7 127.0.0.1"
    async with world.serving(22, echo):
        assert await world.exchange("many.example", 22, b"x") == b"x"
    assert world.upstream.dialled == ["127.0.0.1:22"]


async def test_the_address_that_answered_is_remembered(world: World) -> None:
    """Who only wants to know which one does asks once; with one address there is nothing to ask."""
    several = [IPv4Address("127.0.0.8"), IPv4Address("127.0.0.1")]
    async with world.serving(22, echo):
        for _ in range(2):
            assert str(await world.upstream.answering(several, 22)) == "127.0.0.1"
    assert await world.upstream.answering(several[:1], 22) == several[0]
    assert len(world.upstream.dialled) == 2
    assert await world.upstream.answering(several, 23) == several[0]


@pytest.mark.parametrize("port", [53, 443, 853])
async def test_a_resolver_over_tcp_is_a_host_like_any_other(world: World, port: int) -> None:
    """Lookups over TCP, TLS or HTTPS go to resolvers that are allowed, and to no other, by name or by address."""
    data = hello("dns.example")
    world.records["dns.example"] = "127.0.0.1"
    world.gate.change(Policy(["good.example"]))
    async with world.serving(port, echo):
        for host in ("dns.example", "192.0.2.53"):
            with pytest.raises(ConnectionError):
                await world.exchange(host, port, data)
            assert (await world.last()).verdict is Verdict.DENIED
        assert (world.upstream.dialled, world.asked) == ([], [])
        world.gate.change(Policy([f"dns.example:{port}"]))
        assert await world.exchange("dns.example", port, data) == data
        assert (await world.last()).rule == f"dns.example:{port}"


async def test_a_guest_that_goes_away_leaves_nothing(world: World) -> None:
    async with world.serving(22, echo):
        for _ in range(20):
            _reader, writer = await world.connect("good.example", 22)
            writer.transport.abort()
        async with asyncio.timeout(5):
            while world.gate.connections or len(world.passages) < 20:
                await asyncio.sleep(0.01)


async def test_closing_the_gate_ends_everything(world: World) -> None:
    async with world.serving(22, echo):
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
        await world.gate.wait_closed()
        assert [passage.port for passage in world.passages] == [22]


async def test_the_system_resolver_is_asked_where_none_is_named() -> None:
    upstream = Upstream()
    assert "127.0.0.1" in [str(address) for address in await upstream.resolve("localhost", asyncio.Semaphore())]
    with pytest.raises(NotFound):
        await upstream.resolve("does-not-exist.invalid", asyncio.Semaphore())
    upstream.close()


async def test_a_lookup_that_nobody_waits_for_any_more_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it ends: so one guest's names that nobody answers take a few threads and no more, and others' are found."""
    answering, asked = threading.Event(), []

    def look(name: str) -> list[IPv4Address]:
        asked.append(name)
        if name.startswith("slow"):
            answering.wait(10)
        return [IPv4Address("192.0.2.1")]

    monkeypatch.setattr("vm.egress.upstream._ask_system", look)
    monkeypatch.setattr("vm.egress.upstream._LOOKUP", 0.1)
    upstream, guest, other = Upstream(), asyncio.Semaphore(2), asyncio.Semaphore(2)
    slow = [asyncio.ensure_future(upstream.resolve(f"slow{number}.example", guest)) for number in range(8)]
    await asyncio.sleep(0.5)
    assert [one.done() for one in slow] == [True, True] + [False] * 6
    assert isinstance(slow[0].exception(), NotFound)
    assert len(asked) == 2
    assert await upstream.resolve("good.example", other) == [IPv4Address("192.0.2.1")]
    monkeypatch.setattr("vm.egress.upstream._LOOKUP", 10.0)
    answering.set()
    assert len([one for one in await asyncio.gather(*slow, return_exceptions=True) if isinstance(one, list)]) == 6
    assert not guest.locked()
    upstream.close()
