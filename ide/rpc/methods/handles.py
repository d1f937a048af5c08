"""Open files: their handles belong to the connection and are closed with it."""

from __future__ import annotations

import base64
from typing import Any

from ide.rpc import params as check
from ide.rpc.connection import Connection, Method
from ide.rpc.handshake import Dialect

MAX_READ = 512 * 1024
"""Bytes in one answer; reads may be short, and a Python client takes no message over 1 MiB."""

NAMES = ["open", "create", "fileSeek", "fileStat", "fileSync", "fileSyncData", "fileUtime", "fileUnlock", "fileClose"]


def _plain(name: str) -> Method:
    async def method(connection: Connection, params: dict[str, Any]) -> Any:
        return await connection.ask(name, params, session=True)

    return method


async def file_read(connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
    """Up to `length` bytes as base64; at the end null for JavaScript, whose loop needs it, and "" for Python."""
    length = min(check.integer(params, "length"), MAX_READ)
    wanted = {**params, "length": length}
    async with connection.running, await connection.guest("fileRead", wanted, session=True) as call:
        await call.reply()
        data = await call.read_all(MAX_READ) or b""
    if not data and length > 0:
        return {"data": "" if connection.dialect is Dialect.PY else None}
    return {"data": base64.b64encode(data).decode("ascii")}


async def file_write(connection: Connection, params: dict[str, Any]) -> Any:
    """Write base64 data at the handle's position; says how much was written."""
    data = check.string(params, "data")
    sent = check.only(params, "data")
    async with connection.running, await connection.guest("fileWrite", sent, session=True, more=True) as call:
        async for piece in check.decoded(data, "data"):
            await call.write(piece)
        await call.end_input()
        return await call.reply()


async def file_truncate(connection: Connection, params: dict[str, Any]) -> Any:
    """Cut or grow; JavaScript says `len`, Python `size`."""
    size = params.get("size") if params.get("size") is not None else params.get("len")
    return await connection.ask("fileTruncate", {**check.only(params, "len"), "size": size or 0}, session=True)


async def file_lock(connection: Connection, params: dict[str, Any]) -> Any:
    """Wait for the lock; not counted among the calls under way, because it may take for ever."""
    async with await connection.guest("fileLock", params, session=True) as call:
        return await call.reply()


METHODS: dict[str, Method] = {
    **{name: _plain(name) for name in NAMES},
    "fileRead": file_read,
    "fileWrite": file_write,
    "fileTruncate": file_truncate,
    "fileLock": file_lock,
}
