"""What a client begins with is read on every port, whoever it means is held to it, and other protocols pass at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from ipaddress import IPv4Address

import pytest

from tests.vm.egress.test_peek import hello
from tests.vm.egress.world import LIST, World, echo, get
from vm.api import Secret
from vm.egress.connection import Connection, Denied
from vm.egress.first_words import PEEKING
from vm.egress.hooks import parse_hooks
from vm.egress.journal import Verdict
from vm.egress.judge import Judge
from vm.egress.peek import Claim
from vm.egress.policy import Policy
from vm.egress.refused import Refusals

BOUND = Secret("T", "DENO_SECRET_PLACEHOLDER_" + "0" * 32, "value", ("bound.example",))
EVERYTHING = (*LIST, "127.0.0.1")
SSL2 = b"\x80\x2e\x01\x03\x03" + bytes(43)


@pytest.fixture
def heard(world: World) -> World:
    """Where bound.example has a secret, and hooked.example a hook."""
    world.records["bound.example"] = world.records["hooked.example"] = "127.0.0.1"
    world.gate._hooks = parse_hooks(["acme.review=hooked.example"])
    world.gate.change(Policy(EVERYTHING), [BOUND])
    return world


async def comes_through(world: World, host: str, port: int, *pieces: bytes) -> bool:
    """Whether all of it arrives and comes back; a host that it does not reach gets nothing that it could answer."""
    got = b""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                got += data
                writer.write(data)
        writer.close()

    async with world.serving(port, answering):
        reader, writer = await world.connect(host, port)
        with suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            writer.write_eof()
            async with asyncio.timeout(10):
                said = await reader.read(-1)
            writer.close()
            passed = (await world.last()).verdict is Verdict.ALLOWED
            assert passed == (said == b"".join(pieces))
            return passed
        assert (await world.last()).verdict is Verdict.DENIED
        assert b"\r\n\r\n" not in got
        assert got[:2] != b"\x16\x03"
        return False


@pytest.mark.parametrize("name", ["bound.example", "hooked.example"])
@pytest.mark.parametrize("port", [443, 8443, 80, 8080])
async def test_nobody_asks_for_a_host_that_is_looked_through_elsewhere(heard: World, name: str, port: int) -> None:
    """By a server name or Host at another address it would pass unread; a name without a secret or hook may."""
    said = hello if port in (443, 8443) else get
    assert not await comes_through(heard, "127.0.0.1", port, said(name))
    assert heard.upstream.dialled == ["127.0.0.1:" + str(port)] * (port > 443)
    assert await comes_through(heard, "127.0.0.1", port, said("good.example"))


async def test_a_connection_is_cut_whose_claim_is_bound_later(world: World) -> None:
    world.gate.change(Policy(EVERYTHING))
    async with world.serving(8443, echo):
        reader, writer = await world.connect("127.0.0.1", 8443)
        writer.write(data := hello("bound.example"))
        assert await reader.readexactly(len(data)) == data
        world.gate.change(Policy(EVERYTHING), [BOUND])
        with pytest.raises(ConnectionError):
            await reader.read(1)
        writer.close()
    assert (await world.last()).verdict is Verdict.CUT


async def test_silence_hides_nothing_on_a_port_of_a_host_that_is_looked_through(
    heard: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither end says a word it is reset; elsewhere, and where the server has spoken, silence may last."""
    monkeypatch.setattr("vm.egress.first_words._FIRST_WORD", 0.2)
    monkeypatch.setattr("vm.egress.gate.PEEKING", 0.2)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        await echo(reader, writer)

    for host in ("bound.example", "hooked.example"):
        async with heard.serving(8443, echo):
            with pytest.raises(ConnectionError):
                await heard.exchange(host, 8443, b"", end=False)
        passage = await heard.last()
        assert (passage.rule, "said anything" in passage.detail) == ("unreadable", True)
    for host, handler in (("bound.example", greet), ("good.example", echo)):
        async with heard.serving(8443, handler):
            reader, writer = await heard.connect(host, 8443)
            await asyncio.sleep(0.5)
            writer.write(b"\x16\x03\x01 late")
            if handler is greet:
                assert await reader.readline() == b"welcome\n"
                assert await reader.readexactly(8) == b"\x16\x03\x01 late"
            else:
                with pytest.raises(ConnectionError):
                    await reader.read(1)
            writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [b"G", b"ET / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"\r\n", get("bound.example")],
        [b"get / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"VERSION-CONTROL / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET /\r\n", b"\r\n"],
        [b"GET / HTTP/1.1\nHost: bound.example\n\n"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        [b"GET / HTTP/1.1"],
        [b"M" * 65 + b" / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"M" * 40_000, b" / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"(GET) / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET\x1c/\x1dHTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET\x85/\xa0HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET\r/\rHTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"\xa0", b"\x1e\x1fGET / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"\v\fGET / HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET /\0 HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET /\0", b" HTTP/1.1\r\nHost: bound.example\r\n\r\n"],
        [b"GET page\r\n", b"\r\n"],
        [SSL2],
    ],
    ids=lambda pieces: repr(b"|".join(pieces)[:20]),
)
async def test_no_request_passes_to_a_host_that_is_looked_through(heard: World, pieces: list[bytes]) -> None:
    """However it is cut and spelled; what cannot become one passes."""
    assert not await comes_through(heard, "bound.example", 8080, *pieces)
    assert await comes_through(heard, "bound.example", 8080, b"PING\r\n")
    assert await comes_through(heard, "bound.example", 8080, b"\x00\x00\x00\x08\x04\xd2\x16\x2f")


@pytest.mark.parametrize("port", [443, 8443])
@pytest.mark.parametrize(
    "first",
    [b"\x15\x03\x01\x00\x02\x01\x5a", b"\x14\x03\x03\x00\x01\x01", b"\x15\x02\x00\x00\x02\x01\x5a", b""],
    ids=["a warning", "a change of ciphers", "a warning of another version", "a hello of another version"],
)
async def test_no_tls_passes_unread_to_a_host_that_is_looked_through(heard: World, port: int, first: bytes) -> None:
    """Whatever record it begins with, and whatever version that claims: servers drop a warning that comes first."""
    said = hello("bound.example")
    assert not await comes_through(heard, "bound.example", port, first + (said if first else b"\x16\x02" + said[2:]))


async def test_a_plain_request_with_any_method_is_denied_on_port_80(heard: World) -> None:
    for method in ("get", "G", "VERSION-CONTROL"):
        asked = f"{method} / HTTP/1.1\r\nHost: %s\r\n\r\n"
        assert not await comes_through(heard, "bound.example", 80, (asked % "bound.example").encode())
        assert await comes_through(heard, "good.example", 80, (asked % "good.example").encode())


@pytest.mark.parametrize(("port", "said"), [(8443, hello), (8080, get)])
async def test_whom_a_client_names_on_any_port_is_whom_it_dialled(
    world: World, port: int, said: Callable[[str], bytes]
) -> None:
    """Another host is denied, in one piece or several; so is one at an address that a deny rule names."""
    world.gate.change(Policy([*EVERYTHING], ["evil.example"]))
    asked = said("other.example")
    assert not await comes_through(world, "good.example", port, asked)
    assert not await comes_through(world, "good.example", port, asked[:1], asked[1:20], asked[20:])
    assert not await comes_through(world, "127.0.0.1", port, said("evil.example"))
    asked = said("good.example")
    assert await comes_through(world, "good.example", port, asked)
    assert await comes_through(world, "good.example", port, asked[:1], asked[1:20], asked[20:])
    assert await comes_through(world, "127.0.0.1", port, asked)


async def test_a_denied_request_on_any_port_reads_why(world: World) -> None:
    async with world.serving(8080, echo):
        said = await world.exchange("good.example", 8080, get("other.example"), end=False)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"asked there for other.example" in said


async def test_tls_that_names_nobody_passes_where_it_is_sure_whom_it_means(heard: World) -> None:
    """To a name on other ports than 443, and to an address that a rule is for."""
    assert await comes_through(heard, "good.example", 6380, hello(None))
    assert not await comes_through(heard, "good.example", 443, hello(None))
    assert await comes_through(heard, "127.0.0.1", 6443, hello(None))


@pytest.mark.parametrize(
    ("deny", "nameless", "passes"), [(["192.0.2.1"], True, True), (["evil.example"], True, False), ([], False, False)]
)
def test_tls_to_any_address_names_somebody_where_names_are_told_apart(
    deny: list[str], nameless: bool, passes: bool
) -> None:
    """Under a policy that allows all: it may be the address of a name that is denied, or looked through."""
    judge = Judge(Policy(None, deny), Refusals())
    with nullcontext() if passes else pytest.raises(Denied):
        judge.require_agreement(Connection(IPv4Address("203.0.113.9"), 6443), Claim(None), nameless=nameless)


async def test_an_address_may_be_that_of_what_is_looked_through(heard: World) -> None:
    """On every port that a secret or hook is for."""
    address = Connection(IPv4Address("203.0.113.9"), 6443)
    assert not heard.gate._may_be_nameless(address)
    heard.gate.change(Policy(EVERYTHING))
    assert not heard.gate._may_be_nameless(address)
    heard.gate._hooks = parse_hooks(["acme.review=hooked.example:8443"])
    assert heard.gate._may_be_nameless(address)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"hello, who is there"],
        [b"\r\n"],
        [b"G"],
        [b"0032git-upload-pack /project.git\0host=good.example\0"],
        [b"0032git-upload-pack /project.git\0host=good.example\0", b"0009done\n"],
        [b"\x16"],
        [b"\x80\x00"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        [b"NICK somebody\r\n", b"JOIN #some\r\n"],
    ],
)
async def test_other_protocols_are_held_up_by_nothing(world: World, pieces: list[bytes]) -> None:
    """What a client sends that waits for its server arrives at once, whatever it could yet become."""
    async with world.serving(9000, echo):
        reader, writer = await world.connect("good.example", 9000)
        for piece in pieces:
            began = time.monotonic()
            writer.write(piece)
            assert await reader.readexactly(len(piece)) == piece
            assert time.monotonic() - began < PEEKING / 2
        writer.write(bytes(100_000))
        writer.write_eof()
        assert await reader.read(-1) == bytes(100_000)
        writer.close()
    assert (await world.last()).verdict is Verdict.ALLOWED


async def test_back_pressure_holds_while_a_client_is_silent(world: World) -> None:
    """A server that pours into one that does not read stops; all of it arrives, and what the client says then."""
    size = 32 * 2**20
    taken = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        await writer.drain()
        taken.set()
        assert await reader.read(-1) == b"thanks"
        writer.close()

    async with world.serving(9000, pour):
        reader, writer = await world.connect("good.example", 9000)
        await reader.readexactly(1)
        await asyncio.sleep(0.3)
        assert not taken.is_set()
        assert await reader.readexactly(size - 1) == bytes(size - 1)
        writer.write(b"thanks")
        writer.write_eof()
        assert await reader.read(-1) == b""
        writer.close()
