"""Each request of a plain HTTP connection is read, and only the first bytes of a body are ever looked at."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.egress.world import World, echo, get
from vm.egress.journal import Verdict
from vm.egress.peek import Claim, Unreadable
from vm.egress.policy import Policy
from vm.egress.requests import Requests

HEAD = b"POST / HTTP/1.1\r\nHost: good.example\r\n"
POST = HEAD + b"Content-Length: 5\r\n\r\nGET /"
CHUNKS = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nGET /\r\n00c\r\nhello\r\n\r\nyou\r\n0\r\nSome: trailer\r\n\r\n"
)


@given(st.lists(st.sampled_from([get("good.example"), POST, CHUNKS]), max_size=6), st.lists(st.integers(1, 60)))
def test_requests_are_counted_however_they_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    """All of them pass as they are, and each is told of once."""
    claims: list[Claim] = []
    requests, data, passed = Requests(claims.append), b"".join(sent), b""
    while data:
        cut = cuts.pop() if cuts else len(data)
        passed += data[:cut] if requests.let_by(len(data[:cut])) else requests.feed(data[:cut])
        data = data[cut:]
    assert passed == b"".join(sent)
    assert claims == [Claim("good.example")] * len(sent)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Content-Length: 5, 5\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nSome: trailer\n\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"5" * 5000,
        HEAD + b"\r\n\n",
        HEAD + b"\r\n\rGET",
        HEAD + b"\r\n" + b"G" * 40_000,
        HEAD + b"Upgrade: h2c\r\n\r\n" + bytes(40_000),
    ],
    ids=lambda data: repr(data[len(HEAD) :][:50]),
)
def test_what_could_be_read_in_two_ways_ends_it(data: bytes) -> None:
    with pytest.raises(Unreadable):
        Requests(lambda claim: None).feed(data)


@pytest.mark.parametrize("first", [get("good.example"), POST, CHUNKS], ids=["GET", "POST", "chunks"])
async def test_a_later_request_for_another_host_ends_the_connection(world: World, first: bytes) -> None:
    """On a kept-alive plain connection each request is read: at once, cut anywhere, or after answers."""
    world.gate.change(Policy(["good.example"]))
    other = get("other.example")
    async with world.serving(80, echo):
        assert await world.exchange("good.example", 80, first * 3) == first * 3
        await world.last()
        for cut in (0, 1, 20, len(other) - 1):
            reader, writer = await world.connect("good.example", 80)
            for piece in (first, first + other[:cut]):
                writer.write(piece)
                assert await reader.readexactly(len(first)) == first
            writer.write(other[cut:])
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            writer.close()
            passage = await world.last()
            assert (passage.verdict, passage.rule) == (Verdict.DENIED, "host mismatch")
        with pytest.raises(ConnectionError):
            await world.exchange("good.example", 80, first + other, end=False)


@pytest.mark.parametrize(("answer", "passes"), [(b"HTTP/1.1 101 Switching", True), (b"HTTP/1.1 200 OK", False)])
async def test_another_protocol_passes_once_the_server_agrees(world: World, answer: bytes, passes: bool) -> None:
    """What follows a request for it waits for the answer, and is another request where that is no."""
    got = bytearray()

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer + b"\r\n\r\n")
        with suppress(ConnectionError):
            while data := await reader.read(100):
                got.extend(data)
                writer.write(data)
        writer.close()

    asked = get("good.example").replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n")
    async with world.serving(80, answering):
        reader, writer = await world.connect("good.example", 80)
        writer.write(asked + get("other.example"))
        with nullcontext() if passes else pytest.raises(ConnectionError):
            assert await reader.readexactly(len(answer) + 4) == answer + b"\r\n\r\n"
            assert await reader.readexactly(len(get("other.example"))) == get("other.example")
        writer.close()
    assert bool(got) is passes


async def test_a_large_body_passes_whole(world: World) -> None:
    size = 20_000_000
    head = f"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: {size}\r\n\r\n".encode()
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with world.serving(80, echo):
        assert await world.exchange("good.example", 80, head + body + get("good.example")) == head + body + get(
            "good.example"
        )
