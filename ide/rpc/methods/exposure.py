"""`exposeHttp`: the second half of exposing a port, after an address was reserved over REST (ide/api/sdk_expose.py)."""

from __future__ import annotations

from typing import Any

from ide.rpc import params as check
from ide.rpc.connection import Connection, Method
from sandboxes.database import in_thread
from sandboxes.services.exposures import exposure_bind


async def expose_http(connection: Connection, params: dict[str, Any]) -> None:
    """Have a reserved address lead to a port, or to the server of a process. It need not listen yet."""
    await in_thread(
        exposure_bind,
        sandbox=connection.sandbox,
        actor=connection.actor,
        domain=check.string(params, "domain"),
        port=check.optional_integer(params, "port"),
        pid=check.optional_integer(params, "pid"),
    )


METHODS: dict[str, Method] = {"exposeHttp": expose_http}
