"""Streams between whoever asked the node and a guest: none outlives the one it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vm.node import wire
from vm.node.server import relay


class Guest:
    """A stream that says what it was told to, and then nothing, or its end."""

    def __init__(self, says: bytes = b"", *, ends: bool = False) -> None:
        self.heard = bytearray()
        self.ended, self.aborted = asyncio.Event(), asyncio.Event()
        self._says = says
        self._ends = ends

    async def read(self, limit: int = 65_536) -> bytes:
        """What it says."""
        said, self._says = self._says, b""
        if not said and not self._ends:
            await asyncio.Event().wait()
        return said

    async def write(self, data: bytes) -> None:
        """What it is told."""
        self.heard += data

    async def end(self) -> None:
        """It is told nothing more."""
        self.ended.set()

    async def abort(self) -> None:
        """Given up."""
        self.aborted.set()


@asynccontextmanager
async def relayed(place: Path, guest: Guest) -> AsyncIterator[wire.ChunkStream]:
    """The client's end of a relay to that guest."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relay(wire.ChunkStream(reader, writer), guest)

    async with await asyncio.start_unix_server(serve, place / "socket"):
        client = wire.ChunkStream(*await asyncio.open_unix_connection(place / "socket"))
        try:
            yield client
        finally:
            await client.abort()


@pytest.mark.parametrize("ended", [True, False], ids=["after its end", "before"])
async def test_a_client_that_leaves_is_noticed_while_the_guest_is_silent(tmp_path: Path, ended: bool) -> None:
    """Who waits for a process that says nothing for days has sent its end at once; its stream goes with it."""
    guest = Guest()
    async with relayed(tmp_path, guest) as client:
        await client.write(b"wait")
        if ended:
            await client.end()
            await asyncio.wait_for(guest.ended.wait(), 10)
        assert not guest.aborted.is_set()
        await client.abort()
        await asyncio.wait_for(guest.aborted.wait(), 10)
    assert guest.heard == b"wait"


async def test_a_whole_exchange(tmp_path: Path) -> None:
    """All that either says arrives, whoever ends first."""
    guest = Guest(b"answer", ends=True)
    async with relayed(tmp_path, guest) as client:
        assert (await client.read(), await client.read()) == (b"answer", b"")
        await client.write(b"later")
        await client.end()
        await asyncio.wait_for(guest.ended.wait(), 10)
    assert guest.heard == b"later"
