"""Methods that go to the agent as they are and come back as they are."""

from __future__ import annotations

from typing import Any

from ide.rpc.connection import Connection, Method
from sandboxes.database import in_thread
from sandboxes.selectors.secrets import has_placeholder

NAMES = [
    "chmod",
    "chown",
    "copyFile",
    "envDelete",
    "envGet",
    "envToObject",
    "link",
    "lstat",
    "makeTempDir",
    "makeTempFile",
    "mkdir",
    "readDir",
    "readLink",
    "realPath",
    "remove",
    "rename",
    "stat",
    "symlink",
    "truncate",
    "umask",
    "utime",
]


def _plain(name: str) -> Method:
    async def method(connection: Connection, params: dict[str, Any]) -> Any:
        return await connection.ask(name, params)

    return method


async def env_set(connection: Connection, params: dict[str, Any]) -> Any:
    """Set a variable. That of a secret stays what stands for its value: JavaScript sets what `env` says after a create,
    and where both name it the secret goes first.
    """
    if await in_thread(has_placeholder, connection.sandbox, params.get("key")):
        return None
    return await connection.ask("envSet", params)


METHODS: dict[str, Method] = {**{name: _plain(name) for name in NAMES}, "envSet": env_set}
