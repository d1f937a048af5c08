"""Whole files and trees: their content is raw bytes on the agent's side, base64 or text on the client's."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

from ide.budget import Budget
from ide.rpc import envelope
from ide.rpc import params as check
from ide.rpc.connection import PY_MESSAGE, Connection, Method, Raw, new_stream_id, too_large
from ide.rpc.envelope import InvalidParams, OperationFailed
from ide.rpc.handshake import Dialect
from sandboxes.services.streams import GuestCall

MAX_FILE = 64 * 2**20
"""A file read in one message; larger ones are read through handles."""
LARGE = 4 * 2**20

LARGE_TOGETHER = 2 * MAX_FILE
"""Content of large files in memory, of all connections together; each is held three times over for a moment."""
PATIENCE = 15.0
PACE = 2**20
"""Seconds and bytes a second that a guest has for a large file: what it holds up is other sandboxes' reading."""

_large = Budget(LARGE_TOGETHER)
# One large file of each sandbox at a time, until it is sent: many would be before everybody else's in the line, and
# those that a client does not take would be in memory together.
_turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()


async def read_file(connection: Connection, params: dict[str, Any]) -> Any:
    """The content as base64."""
    return await _read(connection, "readFile", params)


async def read_text_file(connection: Connection, params: dict[str, Any]) -> Any:
    """The content as text; what is not UTF-8 is replaced."""
    return await _read(connection, "readTextFile", params)


async def _read(connection: Connection, method: str, params: dict[str, Any]) -> Any:
    async with connection.running, await connection.guest(method, check.only(params, "abortId", "options")) as call:
        said = await call.reply()
        size = said.get("size") if isinstance(said, dict) else None
        limit = PY_MESSAGE if connection.dialect is Dialect.PY else MAX_FILE
        if not isinstance(size, int) or size > limit:
            raise OperationFailed(too_large(size if isinstance(size, int) else limit))
        # Files may grow while they are read, and some (those of /proc) never say their size
        most = min(limit, max(LARGE, size + size // 4))
        if most <= LARGE:
            return await _content(call, method, most)
        turn = _turns.setdefault(connection.sandbox.pk, asyncio.Lock())
        await turn.acquire()
        try:
            async with _large.of(most), asyncio.timeout(PATIENCE + most / PACE):
                content = await _content(call, method, most)
        except BaseException as error:
            turn.release()
            if isinstance(error, TimeoutError):
                raise OperationFailed(_too_slow(size)) from None
            raise
        content.sent = turn.release
        return content


def _too_slow(size: int) -> dict[str, Any]:
    return {
        "constructorName": "TimedOut",
        "name": "TimedOut",
        "message": f"The sandbox was too slow in sending the {size} bytes of this file: use open() and read()",
        "code": "ETIMEDOUT",
    }


def _too_much(limit: int) -> dict[str, Any]:
    return {
        "constructorName": "Error",
        "message": f"The file gave more than the {limit} bytes that its size allows here: use open() and read()",
        "code": "EFBIG",
    }


async def _content(call: GuestCall, method: str, limit: int) -> Raw:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = ['"']
    size = 0
    rest = b""
    while data := await call.read():
        size += len(data)
        if size > limit:
            raise OperationFailed(_too_much(limit))
        if method == "readFile":
            data = rest + data
            whole = len(data) - len(data) % 3
            pieces.append(base64.b64encode(memoryview(data)[:whole]).decode("ascii"))
            rest = data[whole:]
        else:
            pieces.append(json.dumps(decoder.decode(data), ensure_ascii=False)[1:-1])
    pieces.append(base64.b64encode(rest).decode("ascii"))
    pieces.append(json.dumps(decoder.decode(b"", final=True), ensure_ascii=False)[1:-1])
    pieces.append('"')
    return Raw("".join(pieces))


async def write_file(connection: Connection, params: dict[str, Any]) -> None:
    """Content from base64 or from a stream; answered when it is written."""
    await _write(connection, params, text=False)


async def write_text_file(connection: Connection, params: dict[str, Any]) -> None:
    """Content from text or from a stream of UTF-8."""
    await _write(connection, params, text=True)


async def _write(connection: Connection, params: dict[str, Any], *, text: bool) -> None:
    stream = check.optional_integer(params, "contentStreamId")
    if stream is None:
        content = check.string(params, "content")
        pieces = _encoded(content) if text else check.decoded(content, "content")
        async with connection.running:
            await send_input(connection, "writeFile", _sent(params), pieces)
        return
    incoming = connection.incoming.take(stream)
    if incoming is None:
        raise InvalidParams.one("contentStreamId", "number", "there is no such stream")
    try:
        await send_input(connection, "writeFile", _sent(params), _chunks(incoming.read))
    finally:
        await connection.incoming.done(stream)


def _sent(params: dict[str, Any]) -> dict[str, Any]:
    return check.only(params, "abortId", "content", "contentStreamId")


async def send_input(
    connection: Connection,
    method: str,
    params: dict[str, Any],
    pieces: AsyncIterator[bytes],
    *,
    session: bool = False,
) -> Any:
    """The agent's reply to a call whose input are the `pieces`, all of them or as many as it took."""
    async with await connection.guest(method, params, session=session, more=True) as call:
        # The agent may refuse at once, a directory for instance: then nobody reads the input, and writing would wait.
        reply = connection.beside(call.reply())
        feed = connection.beside(_feed(call, pieces))
        try:
            await asyncio.wait({reply, feed}, return_when=asyncio.FIRST_COMPLETED)
            if feed.done() and not reply.done():
                feed.result()
            return await reply
        finally:
            feed.cancel()
            reply.cancel()
            # What it raised, if anything, is less to the point than the agent's reply.
            await asyncio.gather(feed, return_exceptions=True)


async def _feed(call: GuestCall, pieces: AsyncIterator[bytes]) -> None:
    async for piece in pieces:
        await call.write(piece)
    await call.end_input()


async def _encoded(text: str) -> AsyncIterator[bytes]:
    for at in range(0, len(text), check.SLICE):
        yield text[at : at + check.SLICE].encode("utf-8", "replace")


async def _chunks(read: Any) -> AsyncIterator[bytes]:
    while chunk := await read():
        yield chunk


async def walk(connection: Connection, params: dict[str, Any]) -> Any:
    """A tree's entries: a stream for JavaScript, an array for Python."""
    return await _entries(connection, "walk", params)


async def expand_glob(connection: Connection, params: dict[str, Any]) -> Any:
    """What matches: a stream of entries for JavaScript, an array of paths for Python."""
    return await _entries(connection, "expandGlob", params)


async def _entries(connection: Connection, method: str, params: dict[str, Any]) -> Any:
    call = await connection.guest(method, check.flat(params))
    try:
        await call.reply()
        if connection.dialect is Dialect.PY:
            return await _listed(call, paths_only=method == "expandGlob")
    except BaseException:
        await call.abort()
        raise
    return await stream_records(connection, call)


async def _listed(call: GuestCall, *, paths_only: bool) -> list[Any]:
    found: list[Any] = []
    size = 0
    async with call:
        async for entry in call.records():
            found.append(entry.get("path") if paths_only and isinstance(entry, dict) else entry)
            size += len(envelope.encode(found[-1]))
            if size > PY_MESSAGE:
                raise OperationFailed(too_large(size))
    return found


async def stream_records(connection: Connection, call: GuestCall) -> dict[str, int]:
    """Send each record of the call as one chunk of JSON on a new stream."""
    stream = new_stream_id()
    await connection.send(envelope.stream_start(stream))

    async def source() -> None:
        async with call:
            async for record in call.records():
                await connection.send(envelope.stream_data(stream, envelope.encode(record).encode()))

    connection.stream_out(stream, source)
    return {"streamId": stream}


METHODS: dict[str, Method] = {
    "readFile": read_file,
    "readTextFile": read_text_file,
    "writeFile": write_file,
    "writeTextFile": write_text_file,
    "walk": walk,
    "expandGlob": expand_glob,
}
