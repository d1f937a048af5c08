"""`abort`: gives up another call of the same connection."""

from __future__ import annotations

from typing import Any

from ide.rpc import params as check
from ide.rpc.connection import Connection, Method


async def abort(connection: Connection, params: dict[str, Any]) -> None:
    """Cancel the call with that abort id; it answers with the abort error. Also fine if there is none."""
    if (task := connection.aborts.get(check.integer(params, "abortId"))) is not None:
        task.cancel()


METHODS: dict[str, Method] = {"abort": abort}
