"""One call to a machine's agent over a byte stream, as docs/guest-protocol.md defines it."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

from vm.api import ByteStream
from vm.errors import StreamReset

_LENGTH = struct.Struct(">I")
MAX_REQUEST = 2**20
MAX_REPLY = 16 * 2**20


class GuestCall:
    """A call under way. Use it as a context manager: leaving gives up whatever has not ended by itself.

    Order on the stream: the request, then `write` and `end_input` as wanted, meanwhile `reply` once, then `read` for
    the output or `records`. Every method raises StreamReset when the call broke off.
    """

    def __init__(self, stream: ByteStream, *, longest: int = MAX_REPLY) -> None:
        self._stream = stream
        self._longest = longest

    @classmethod
    async def begin(
        cls,
        stream: ByteStream,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        session: str | None = None,
        more: bool = False,
        longest: int = MAX_REPLY,
    ) -> GuestCall:
        """Send the request on a fresh stream; `more` says that input follows, otherwise it is ended at once.

        No record of more than `longest` bytes is read.

        ValueError for a request over MAX_REQUEST. The stream is given up when the request cannot be sent.
        """
        body = json.dumps({"method": method, "params": dict(params or {}), "session": session}).encode()
        if len(body) > MAX_REQUEST:
            await stream.abort()
            raise ValueError(f"a request of {len(body)} bytes; at most {MAX_REQUEST} are taken")
        try:
            await stream.write(_LENGTH.pack(len(body)) + body)
            if not more:
                await stream.end()
        except BaseException:
            await stream.abort()
            raise
        return cls(stream, longest=longest)

    async def reply(self) -> dict[str, Any]:
        """The agent's reply record: {"ok"}, {"error"}, {"unknown"} or {"invalid"}."""
        record = await self._record()
        if record is None:
            raise StreamReset("the agent ended the call without a reply")
        if not isinstance(record, dict) or not record.keys() & {"ok", "error", "unknown", "invalid"}:
            raise StreamReset("the agent's reply is none")
        return record

    async def read(self, limit: int = 65_536) -> bytes:
        """Up to `limit` bytes of the call's output; empty at its end."""
        return await self._stream.read(limit)

    async def records(self) -> AsyncIterator[Any]:
        """The records that follow the reply, up to the call's end."""
        while (record := await self._record()) is not None:
            yield record

    async def write(self, data: bytes) -> None:
        """Send a part of the call's input, waiting while the agent has no room."""
        await self._stream.write(data)

    async def end_input(self) -> None:
        """Nothing more follows. Repeatable."""
        await self._stream.end()

    async def abort(self) -> None:
        """Give the call up. Repeatable; never raises; harmless after its end."""
        await self._stream.abort()

    async def __aenter__(self) -> GuestCall:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.abort()

    async def _record(self) -> Any:
        head = await self._exactly(_LENGTH.size)
        if not head:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > self._longest:
            raise StreamReset(f"the agent sent a record of {length} bytes")
        try:
            return json.loads(await self._exactly(length))
        except (ValueError, RecursionError) as error:
            raise StreamReset("the agent sent a record that is no JSON, or nested too deeply") from error

    async def _exactly(self, count: int) -> bytes:
        pieces = []
        missing = count
        while missing:
            piece = await self._stream.read(min(missing, 65_536))
            if not piece:
                if missing == count:
                    return b""
                raise StreamReset("the agent ended the call inside a record")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


async def call(
    stream: ByteStream,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    session: str | None = None,
    longest: int = MAX_REPLY,
) -> dict[str, Any]:
    """The reply to a call without input or output. StreamReset for one of more than `longest` bytes."""
    async with await GuestCall.begin(stream, method, params, session=session, longest=longest) as under_way:
        return await under_way.reply()
