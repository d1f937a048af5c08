"""A connection that no list is about waits, where somebody wants to be asked; bounded, and never for long."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

import pytest

from tests.vm.egress.test_peek import hello
from tests.vm.egress.world import World, echo, get
from vm.egress.journal import Passage, Verdict
from vm.egress.policy import Policy


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
    async with world.serving(80, echo):
        both = [asyncio.ensure_future(world.exchange("good.example", 80, get("good.example"))) for _ in range(2)]
        (told,) = await _asked(world)
        assert (told.host, told.port, told.rule, told.seconds) == ("good.example", 80, "ask", 60.0)
        world.gate.change(Policy(["other.example"], ask=True))
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in both)
        world.gate.change(Policy(["other.example", "good.example:80"], ask=True))
        assert await asyncio.gather(*both) == [get("good.example")] * 2
        assert (await world.last()).verdict is Verdict.ALLOWED
    assert world.gate._asking._waiting == {}


@pytest.mark.parametrize(("port", "data"), [(80, get("good.example")), (22, b"x")])
async def test_a_pattern_of_ipv6_addresses_leaves_the_question(world: World, port: int, data: bytes) -> None:
    """A name is looked up for its sake; of one that has no such address somebody is asked, and it is reached or not."""
    world.gate.change(Policy(["[2001:db8::1]"], ask=True))
    async with world.serving(port, echo):
        waiting = asyncio.ensure_future(world.exchange("good.example", port, data))
        assert (await world.last()).verdict is Verdict.ASKED
        assert not waiting.done()
        world.gate.change(Policy(["[2001:db8::1]", f"good.example:{port}"], ask=True))
        assert await waiting == data
        assert (await world.last()).verdict is Verdict.ALLOWED
        world.gate._asking._patience = 0.2
        world.gate.change(Policy(["[2001:db8::1]"], ask=True))
        with suppress(ConnectionError):
            assert b"Nobody allowed it within" in await world.exchange("good.example", port, data, end=False)
    assert {(await world.last()).rule, (await world.last()).rule} == {"ask", "allow_net"}
    assert world.upstream.dialled == [f"127.0.0.1:{port}"]


async def test_a_connection_that_waits_is_denied_by_a_rule_or_by_time(world: World) -> None:
    """With what decided; and one whose sandbox asks no more is denied at once."""
    world.gate.change(Policy([], ask=True))
    waiting = asyncio.ensure_future(world.exchange("bad.example", 80, get("bad.example"), end=False))
    await _asked(world)
    world.gate.change(Policy([], ["bad.example:80"], ask=True))
    assert b"denied by the rule bad.example:80" in await waiting
    assert (await world.last()).rule == "bad.example:80"
    world.gate._asking._patience = 0.2
    world.gate.change(Policy([], ask=True))
    said = await world.exchange("late.example", 80, get("late.example"), end=False)
    assert b"Nobody allowed it within" in said
    async with asyncio.timeout(5):
        while len(world.passages) < 2:
            await asyncio.sleep(0.01)
    assert [(one.verdict, one.rule) for one in world.passages] == [
        (Verdict.ASKED, "ask"),
        (Verdict.DENIED, "allow_net"),
    ]
    world.passages.clear()
    world.gate._asking._patience = 60.0
    waiting = asyncio.ensure_future(world.exchange("more.example", 80, get("more.example"), end=False))
    await _asked(world)
    world.gate.change(Policy([]))
    assert b"403" in await waiting
    assert world.asked == []


@pytest.mark.parametrize("port", [443, 5432])
async def test_a_client_that_has_said_all_may_wait_as_well(world: World, port: int) -> None:
    """It ends its side before anybody answered: what it said and its end arrive, and the answer comes back."""
    data = hello("good.example")
    world.gate.change(Policy([], ask=True))
    async with world.serving(port, echo):
        waiting = asyncio.ensure_future(world.exchange("good.example", port, data, end=True))
        await _asked(world)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        world.gate.change(Policy([f"good.example:{port}"]))
        assert await waiting == data
        passage = await world.last()
    assert (passage.verdict, passage.sent, passage.received) == (Verdict.ALLOWED, len(data), len(data))


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
        while world.gate._asking._waiting:
            await asyncio.sleep(0.02)


async def test_who_has_closed_gives_way_to_who_has_not(world: World) -> None:
    """Clients that closed are not told from those that said all; where places are short, they go first."""
    world.gate.change(Policy([], ask=True))
    closed = [await world.connect(f"h{number}.example", 22) for number in range(2)]
    await _asked(world, 2)
    others = [await world.connect(f"o{number}.example", 22) for number in range(30)]
    await _asked(world, 30)
    for _reader, writer in closed:
        writer.close()
    async with asyncio.timeout(5):
        while sum(one.guest is not None and one.guest.ended for one in world.gate._asking._waiting) < 2:
            await asyncio.sleep(0.01)
    late = [await world.connect(f"late{number}.example", 22) for number in range(2)]
    async with asyncio.timeout(5):
        while sum(passage.verdict is Verdict.ASKED for passage in world.passages) < 2:
            await asyncio.sleep(0.01)
    waiting = {str(one.host) for one in world.gate._asking._waiting}
    assert waiting == {f"o{number}.example" for number in range(30)} | {"late0.example", "late1.example"}
    with pytest.raises(ConnectionError):
        await world.exchange("later.example", 443, b"x")
    for _reader, writer in [*others, *late]:
        writer.close()
