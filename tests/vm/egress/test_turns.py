"""Guests share what a node can pass on: a flood of one's takes no more than its turn."""

from __future__ import annotations

import asyncio

from tests.vm.egress.world import World
from vm.egress.turns import QUANTUM, Share, Turns

FLOOD = 16
SIZE = 4 * 2**20


class _Reader:
    def __init__(self) -> None:
        self.reads = True

    def park(self) -> None:
        self.reads = False

    def unpark(self) -> None:
        self.reads = True


async def test_who_is_alone_is_never_held_up() -> None:
    """Whatever he passes."""
    share, reader = Share(Turns()), _Reader()
    for _ in range(5):
        share.spend(reader, 3 * QUANTUM)
        assert reader.reads
        await asyncio.sleep(0)


async def test_who_has_had_his_turn_waits_while_others_have_theirs() -> None:
    """What was passed beyond a turn counts in the next ones, and nobody waits for nothing."""
    turns = Turns()
    greedy, modest = Share(turns), Share(turns)
    readers, other = [_Reader() for _ in range(20)], _Reader()
    modest.spend(other, 100)
    for reader in readers:
        greedy.spend(reader, QUANTUM // 8)
    assert [reader.reads for reader in readers] == [True] * 6 + [False] * 14
    for _ in range(10):
        modest.spend(other, 100)
        await asyncio.sleep(0)
        assert not readers[-1].reads
        assert other.reads
    async with asyncio.timeout(5):
        while not all(reader.reads for reader in readers):
            await asyncio.sleep(0)


async def test_who_passes_something_now_and_then_keeps_his_turn() -> None:
    """Where the loop looks several times until a task passes on what came, the turn is not over in between."""
    turns = Turns(3)
    greedy, modest = Share(turns), Share(turns)
    readers, other = [_Reader() for _ in range(20)], _Reader()
    modest.spend(other, 100)
    for reader in readers:
        greedy.spend(reader, QUANTUM // 8)
    for _ in range(10):
        modest.spend(other, 100)
        for _ in range(2):
            await asyncio.sleep(0)
            assert not readers[-1].reads
    async with asyncio.timeout(5):
        while not all(reader.reads for reader in readers):
            await asyncio.sleep(0)


async def test_a_reader_that_is_gone_is_not_let_go_on() -> None:
    """Its share forgets it."""
    turns = Turns()
    greedy, modest, reader = Share(turns), Share(turns), _Reader()
    modest.spend(_Reader(), 1)
    greedy.spend(reader, 2 * QUANTUM)
    greedy.leave(reader)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reader.reads


async def test_downloads_that_take_turns_arrive_whole() -> None:
    """Connections of two guests, held up again and again while the others have theirs, lose nothing and all end."""
    turns = Turns()
    worlds = [World(), World()]
    for world in worlds:
        world.records = {"good.example": "127.0.0.1"}
        world.turns = turns
        await world.start()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(bytes(SIZE))
        await writer.drain()
        writer.close()

    shares = [world.gate._share for world in worlds]
    held = 0
    try:
        async with worlds[0].serving(22, pour), worlds[1].serving(22, pour), asyncio.timeout(60):
            many = [asyncio.ensure_future(worlds[0].exchange("good.example", 22, b"x")) for _ in range(FLOOD)]
            many += [asyncio.ensure_future(worlds[1].exchange("good.example", 22, b"x", end=False)) for _ in range(2)]
            while not all(one.done() for one in many):
                held = max(held, *(len(share.parked) for share in shares if share is not None))
                await asyncio.sleep(0)
            assert {len(one.result()) for one in many} == {SIZE}
            assert held
            while any(world.gate.connections for world in worlds):
                await asyncio.sleep(0.01)
            assert not any(share.parked for share in shares if share is not None)
    finally:
        for world in worlds:
            world.close()
