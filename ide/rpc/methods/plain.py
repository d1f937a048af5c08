"""Methods that go to the agent as they are and come back as they are."""

from __future__ import annotations

from typing import Any

from ide.rpc.connection import Connection, Method

NAMES = [
    "chmod",
    "chown",
    "copyFile",
    "envDelete",
    "envGet",
    "envSet",
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


METHODS: dict[str, Method] = {name: _plain(name) for name in NAMES}
