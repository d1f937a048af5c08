"""One guest's flood is bounded, told of, and leaves the others working."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.vm.egress.world import World, echo

FLOOD = 10_000


@pytest.fixture
async def other() -> AsyncIterator[World]:
    """Another guest's gate on the same event loop."""
    made = World()
    made.records = {"good.example": "127.0.0.1"}
    await made.start()
    yield made
    made.close()


async def test_ten_thousand_connections_of_one_guest_while_another_works(world: World, other: World) -> None:
    """It has so many and no more, is told why the next is reset, and another guest's connections are served."""
    held: list[asyncio.StreamWriter] = []
    reset = 0

    async def one() -> None:
        nonlocal reset
        try:
            reader, writer = await world.connect("good.example", 22)
            held.append(writer)
            writer.write(b"x")
            await reader.readexactly(1)
        except (OSError, asyncio.IncompleteReadError):
            reset += 1

    async def flood() -> None:
        for _ in range(FLOOD // 50):
            await asyncio.gather(*(one() for _ in range(50)))

    async with world.serving(22, echo), other.serving(22, echo):
        assert await other.exchange("good.example", 22, b"before") == b"before"
        flooding = asyncio.ensure_future(flood())
        slowest = 0.0
        while not flooding.done():
            began = time.monotonic()
            assert await other.exchange("good.example", 22, b"meanwhile") == b"meanwhile"
            slowest = max(slowest, time.monotonic() - began)
        await flooding
        assert (world.gate.connections, reset) == (world.limit, FLOOD - world.limit)
        assert {passage.rule for passage in world.passages} == {"connection limit"}
        assert len(world.passages) < 200  # told once a second
        assert slowest < 3
        assert await other.exchange("good.example", 22, b"after") == b"after"
        for writer in held:
            writer.transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                while world.gate.connections:
                    await asyncio.sleep(0.02)
        assert world.gate.connections == 0
        assert await world.exchange("good.example", 22, b"again") == b"again"
