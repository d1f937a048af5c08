"""Each request of a plain HTTP connection is read, and only the first bytes of a body are ever looked at."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.egress.world import LIST, World, echo, get
from vm.api import Secret
from vm.egress.connection import Connection
from vm.egress.journal import Kind, Verdict
from vm.egress.judge import Judge
from vm.egress.peek import Claim, Unreadable
from vm.egress.policy import Policy
from vm.egress.requests import SLICE, Requests
from vm.egress.turns import Share, Turns

HEAD = b"POST / HTTP/1.1\r\nHost: good.example\r\n"
POST = HEAD + b"Content-Length: 5\r\n\r\nGET /"
CHUNKS = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nGET /\r\n00c\r\nhello\r\n\r\nyou\r\n0\r\nSome: trailer\r\n\r\n"
)


def feed_all(data: bytes) -> bytes:
    """What passes of it, in as many looks as it takes."""
    requests = Requests(lambda claim, head: None)
    passed = requests.feed(data)
    while requests.behind:
        passed += requests.feed(b"")
    return passed


@given(st.lists(st.sampled_from([get("good.example"), POST, CHUNKS]), max_size=6), st.lists(st.integers(1, 60)))
def test_requests_are_counted_however_they_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    """All of them pass as they are, and each is told of once."""
    claims: list[Claim] = []
    requests, data, passed = Requests(lambda claim, head: claims.append(claim)), b"".join(sent), b""
    while data:
        cut = cuts.pop() if cuts else len(data)
        passed += data[:cut] if requests.let_by(len(data[:cut])) else requests.feed(data[:cut])
        data = data[cut:]
        while requests.behind:
            passed += requests.feed(b"")
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
        feed_all(data)


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


def upgrade(length: int = 0) -> bytes:
    """The head of a request for another protocol, with a body of that length."""
    return get("good.example").replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % length)


@pytest.mark.parametrize(
    ("answers", "then"),
    [
        ([b"HTTP/1.1 401 No\r\n\r\n"], get("good.example")),
        ([b"HTTP/1.1 101 Switching\r\n\r\n"], b"another protocol"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"], b"another protocol"),
        ([b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 401 No\r\n\r\n"], get("good.example")),
    ],
)
async def test_an_answer_may_come_before_the_end_of_what_it_answers(
    world: World, answers: list[bytes], then: bytes
) -> None:
    """What follows a body arrives, whatever the server had said before the end of it: that it switches, or not."""
    size = 100
    got = asyncio.get_running_loop().create_future()

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[0])
        await reader.readexactly(size)
        for answer in answers[1:]:
            writer.write(answer)
        got.set_result(await reader.readexactly(len(then)))
        writer.close()

    async with world.serving(80, answering), asyncio.timeout(5):
        reader, writer = await world.connect("good.example", 80)
        with ExitStack() as leaving:
            leaving.callback(writer.close)
            leaving.callback(world.gate.close)
            writer.write(upgrade(size))
            assert await reader.readexactly(len(answers[0])) == answers[0]
            writer.write(bytes(size))
            for answer in answers[1:]:
                assert await reader.readexactly(len(answer)) == answer
            writer.write(then)
            assert await got == then


async def test_the_end_of_a_client_comes_after_all_that_it_said(world: World) -> None:
    """Also where that waits for an answer."""
    got = asyncio.get_running_loop().create_future()

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        got.set_result(await reader.read(-1))
        writer.close()

    async with world.serving(80, answering):
        said = await world.exchange("good.example", 80, upgrade() + get("good.example"))
        assert said == b"HTTP/1.1 200 OK\r\n\r\n"
        assert await got == get("good.example")
        assert (await world.last()).verdict is Verdict.ALLOWED


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_connection_ends_whose_server_ends_without_an_answer(world: World, first: str) -> None:
    """With what waited for one, whoever ended first."""
    client_ended = asyncio.Event()

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if first == "client":
            await client_ended.wait()
        writer.write_eof()
        assert await reader.read(-1) == b""
        writer.close()

    async with world.serving(80, answering):
        reader, writer = await world.connect("good.example", 80)
        with ExitStack() as leaving:
            leaving.callback(writer.close)
            leaving.callback(world.gate.close)
            writer.write(upgrade() + get("good.example"))
            if first == "server":
                assert await reader.read(-1) == b""
            writer.write_eof()
            await asyncio.sleep(0.1)
            client_ended.set()
            assert (await world.last()).verdict is Verdict.ALLOWED


async def test_a_large_body_passes_whole(world: World) -> None:
    size = 20_000_000
    head = f"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: {size}\r\n\r\n".encode()
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with world.serving(80, echo):
        assert await world.exchange("good.example", 80, head + body + get("good.example")) == head + body + get(
            "good.example"
        )


FLOODS = {
    "requests": get("good.example") * 10_000,
    "other hosts each time": b"".join(get(f"h{number}.example") for number in range(300)),
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n",
    "line ends": get("good.example") + b"\r\n" * 60_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_what_is_looked_at_lets_the_loop_turn(
    world: World, flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little of a flood is looked at in each turn of the loop, which is others' too; all of it arrives, in order."""
    steps = turn = most = 0
    step = Requests._step

    def counting(requests: Requests) -> int:
        nonlocal steps
        before = requests.steps
        passed = step(requests)
        steps += 1 + requests.steps - before
        return passed

    async def turning() -> None:
        nonlocal turn, most
        while True:
            most, turn = max(most, steps - turn), steps
            await asyncio.sleep(0)

    async def taking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(-1) == flood
        writer.write(b"all")
        writer.close()

    monkeypatch.setattr(Requests, "_step", counting)
    world.gate.change(Policy(["*.example", "127.0.0.1"]))
    host = "127.0.0.1" if b"h1.example" in flood else "good.example"
    async with world.serving(80, taking):
        turns = asyncio.ensure_future(turning())
        assert await world.exchange(host, 80, flood) == b"all"
        turns.cancel()
    # One look begins with what may be beyond it: a head of another host
    assert 0 < most < 4 * SLICE < steps


async def test_a_flood_of_requests_leaves_neighbours_working(world: World) -> None:
    """Of two guests that take turns, one that floods the node with small requests costs the other's none of its own."""
    other, turns, events = World(), Turns(), list[str]()
    other.records = {"good.example": "127.0.0.1"}
    other.turns = turns
    world.gate._share = Share(turns)
    await other.start()

    async def taking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            events.append("flood")
        writer.close()

    async with world.serving(80, taking), other.serving(22, echo):
        other_reader, other_writer = await other.connect("good.example", 22)
        flooding = asyncio.ensure_future(world.exchange("good.example", 80, get("good.example") * 20_000))
        while not flooding.done():
            other_writer.write(b"x")
            assert await other_reader.readexactly(1) == b"x"
            events.append("other")
        assert await flooding == b""
        other_writer.close()
    while other.gate.connections:
        await asyncio.sleep(0)
    other.close()
    during = events[events.index("flood") : len(events) - events[::-1].index("flood")]
    assert during.count("other") > 50


async def test_whom_a_client_may_ask_for_is_looked_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there is another policy: by that it is looked up again."""
    asked: list[Claim] = []
    require = Judge.require_agreement

    def counting(judge: Judge, connection: Connection, claim: Claim, *, nameless: bool) -> None:
        asked.append(claim)
        require(judge, connection, claim, nameless=nameless)

    monkeypatch.setattr(Judge, "require_agreement", counting)
    world.gate.change(Policy(["127.0.0.1"]))
    one, two = get("one.example"), get("two.example")
    async with world.serving(80, echo):
        reader, writer = await world.connect("127.0.0.1", 80)
        with ExitStack() as leaving:
            leaving.callback(writer.close)
            leaving.callback(world.gate.close)
            writer.write(said := (one + two) * 100)
            assert await reader.readexactly(len(said)) == said
            assert asked == [
                Claim(host) for host in ("one.example", "one.example", "two.example")
            ]  # the first is read twice
            world.gate.change(Policy(["127.0.0.1"], ["one.example"]))
            writer.write(two)
            assert await reader.readexactly(len(two)) == two
            writer.write(one)
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
    assert (await world.last()).rule == "one.example"


async def test_a_placeholder_in_any_plain_request_is_told_of(world: World) -> None:
    """In the first one and in each later one, whose secret it is; once for each secret and connection."""
    secrets = [
        Secret(name, "DENO_SECRET_PLACEHOLDER_" + digit * 32, "value", ("bound.example",))
        for name, digit in (("ONE", "1"), ("TWO", "2"), ("THREE", "3"))
    ]
    world.gate.change(Policy(LIST), secrets)

    def asking(placeholder: str) -> bytes:
        return get("good.example").replace(b"\r\n\r\n", f"\r\nX: {placeholder}\r\n\r\n".encode())

    one, two, three = (asking(secret.placeholder) for secret in secrets)
    unknown = asking("DENO_SECRET_PLACEHOLDER_" + "9" * 32)
    async with world.serving(80, echo):
        for _ in range(2):
            reader, writer = await world.connect("good.example", 80)
            for piece in (one, get("good.example"), two, one + two, three[:-10], three[-10:] + unknown):
                writer.write(piece)
                await asyncio.sleep(0.02)
            writer.write_eof()
            assert await reader.read(-1) == one + get("good.example") + two + one + two + three + unknown
            writer.close()
    while world.gate.connections:
        await asyncio.sleep(0.01)
    alerts = [passage for passage in world.passages if passage.kind is Kind.ALERT]
    told = [alert.detail.partition(" was sent")[0].removeprefix("The placeholder of ") for alert in alerts]
    assert told == ["ONE", "TWO", "THREE", "A placeholder that is none of this sandbox's"] * 2
    assert all("in plain text" in alert.detail and alert.host == "good.example" for alert in alerts)
