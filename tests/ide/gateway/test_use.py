"""What is used counts as used for as long as something goes over it, not only when it began."""

from __future__ import annotations

import asyncio
from typing import Any

from ide.gateway.channel import relay
from ide.gateway.http1 import Body, Ends
from ide.gateway.relay import _carry
from ide.gateway.source import Source


class Pieces:
    """Both a pipe and a call: gives what it was given, then nothing, and keeps what comes."""

    def __init__(self, *pieces: bytes) -> None:
        self.left = list(pieces)
        self.came: list[bytes] = []

    async def read(self, most: int = 0) -> bytes:
        return self.left.pop(0) if self.left else b""

    async def write(self, data: bytes) -> None:
        self.came.append(data)

    async def end_input(self) -> None:
        pass

    def end(self) -> None:
        pass


async def test_each_piece_of_an_exchange_is_use() -> None:
    """As events of a page that is open for hours."""
    pieces, uses = Pieces(b"one", b"two", b"three"), 0

    def used() -> None:
        nonlocal uses
        uses += 1

    await _carry(Source(pieces.read), Body(Ends.CLOSE), pieces.write, used)
    assert (pieces.came, uses) == ([b"one", b"two", b"three"], 3)


async def test_chunks_are_use() -> None:
    """Up to the last one, behind which the next message may come already."""
    pieces, uses = Pieces(b"3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\nnext"), 0

    def used() -> None:
        nonlocal uses
        uses += 1

    await _carry(Source(pieces.read), Body(Ends.CHUNKED), pieces.write, used)
    assert (b"".join(pieces.came), uses) == (b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n", 2)


async def test_each_piece_over_a_forward_is_use() -> None:
    """In both directions."""
    visitor, guest = Pieces(b"in", b"in again"), Pieces(b"out")
    uses = 0

    def used() -> None:
        nonlocal uses
        uses += 1

    pipe: Any = visitor
    call: Any = guest
    async with asyncio.timeout(5):
        await relay(pipe, call, used)
    assert (guest.came, visitor.came, uses) == ([b"in", b"in again"], [b"out"], 3)
