"""How client and node talk on one connection: JSON records, then chunks of bytes in both directions.

A record is a big-endian u32 length and that much JSON. A chunk is a u32 length and that many bytes; length 0 says that
nothing more follows from this side, and a connection that closes without it was reset.
"""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from typing import Any, BinaryIO

from vm.errors import StreamReset

VERSION = 1
MAX_RECORD = 24 * 2**20
"""A machine's policy must fit: three full lists of patterns, each letter escaped to 12 bytes, make 18 MiB of one."""
LISTED = 200
"""Machines in one answer: the longest explanation, each letter escaped to 12 bytes, makes 17 KiB of one."""
LENGTH = struct.Struct(">I")
END = LENGTH.pack(0)
PIECE = 131_072
HIGH_WATER = 262_144


async def read_record(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next record. asyncio.IncompleteReadError at the end; ValueError if it is none or too long."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > MAX_RECORD:
        raise ValueError(f"a record of {length} bytes")
    record = json.loads(await reader.readexactly(length))
    if not isinstance(record, dict):
        raise ValueError("a record must be an object")
    return record


def read_record_of(stream: BinaryIO) -> dict[str, Any] | None:
    """The next record of a blocking stream; None at its end. ValueError if it is none or too long."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if length > MAX_RECORD:
        raise ValueError(f"a record of {length} bytes")
    found = json.loads(stream.read(length))
    if not isinstance(found, dict):
        raise ValueError("a record must be an object")
    return found


def record(data: dict[str, Any]) -> bytes:
    """A record's bytes."""
    body = json.dumps(data, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


class ChunkStream:
    """A ByteStream (vm.api) in chunks on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left = 0  # of the chunk that is being read
        self._got_end = False
        self._sent_end = False
        self._aborted = False
        writer.transport.set_write_buffer_limits(high=HIGH_WATER)

    async def read(self, limit: int = 65_536) -> bytes:
        """Up to `limit` bytes; empty at the peer's end. StreamReset if it broke off."""
        if self._got_end:
            return b""
        try:
            if self._left == 0:
                (self._left,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                if self._left == 0:
                    self._got_end = True
                    self._close_if_done()
                    return b""
            data = await self._reader.read(min(limit, self._left))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise StreamReset("the stream broke off") from error
        if not data:
            raise StreamReset("the stream broke off")
        self._left -= len(data)
        return data

    async def gone(self) -> None:
        """Return once the peer has hung up; only after its end was read."""
        with suppress(OSError):
            await self._reader.read(1)

    async def write(self, data: bytes) -> None:
        """Send, waiting while the peer has no room. StreamReset if it broke off."""
        if self._sent_end:
            raise ValueError("written after its end")
        view = memoryview(data)
        try:
            while view:
                if self._aborted or self._writer.transport.is_closing():
                    raise StreamReset("the stream broke off")
                piece, view = view[:PIECE], view[PIECE:]
                # Not `writelines`: CPython 3.13 does not pause a writer for it, and all would be kept here
                self._writer.write(LENGTH.pack(len(piece)))
                self._writer.write(piece)
                await self._writer.drain()
        except OSError as error:
            raise StreamReset("the stream broke off") from error

    async def end(self) -> None:
        """Send nothing more; reading goes on. Repeatable."""
        if self._sent_end or self._aborted:
            return
        self._sent_end = True
        if not self._writer.transport.is_closing():
            self._writer.write(END)
        self._close_if_done()

    async def abort(self) -> None:
        """Give the stream up in both directions. Repeatable; never raises."""
        self._aborted = True
        if self._got_end and self._sent_end:
            self._writer.close()
        else:
            self._writer.transport.abort()

    def _close_if_done(self) -> None:
        if self._got_end and self._sent_end:
            self._writer.close()
