"""What two ends of a connection hold while they pass bytes on."""

from __future__ import annotations

import asyncio

import pytest

from tests.vm.egress.world import World
from vm.egress import splice
from vm.egress.splice import Side

CONNECTIONS = 16


async def test_what_nobody_takes_is_bounded_over_all_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that read nothing have little kept for them; all of it arrives once they read."""
    monkeypatch.setattr(splice, "_MUCH", 2**20)
    size = 16 * 2**20

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        await writer.drain()
        writer.close()

    before = Side.kept
    async with world.serving(22, pour):
        guests = [await world.connect("good.example", 22) for _ in range(CONNECTIONS)]
        try:
            for _reader, writer in guests:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            most, same = 0, 0
            async with asyncio.timeout(30):
                while same < 20:
                    await asyncio.sleep(0.05)
                    kept = Side.kept - before
                    same = same + 1 if kept and kept == most else 0
                    most = max(most, kept)
            assert 0 < most <= splice._MUCH + splice._ROOM + CONNECTIONS * splice._SMALL
            for reader, writer in guests:
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                async with asyncio.timeout(30):
                    assert len(await reader.read(-1)) == size
        finally:
            for _reader, writer in guests:
                writer.transport.abort()
        async with asyncio.timeout(10):
            while world.gate.connections:
                await asyncio.sleep(0.02)
    assert Side.kept == before
