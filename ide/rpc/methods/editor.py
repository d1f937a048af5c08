"""What only our own pages may call: watching files, usage, lists of processes and terminals."""

from __future__ import annotations

from typing import Any

from ide.rpc.connection import Connection, Method
from ide.rpc.methods.files import stream_records

NAMES = ["usage", "process.list", "terminal.list", "terminal.open", "terminal.resize", "terminal.close"]


def _plain(name: str) -> Method:
    async def method(connection: Connection, params: dict[str, Any]) -> Any:
        return await connection.ask(name, params)

    return method


async def watch(connection: Connection, params: dict[str, Any]) -> dict[str, int]:
    """Changes below the paths, as a stream of JSON chunks, until it is cancelled."""
    call = await connection.guest("watch", params)
    try:
        await call.reply()
    except BaseException:
        await call.abort()
        raise
    return await stream_records(connection, call)


METHODS: dict[str, Method] = {**{name: _plain(name) for name in NAMES}, "watch": watch}
