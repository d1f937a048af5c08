"""Saving what was edited: a full disk, or an end of ours on the way, leaves the file with its old content."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ide.rpc import params as check
from ide.rpc.connection import Connection, Method
from ide.rpc.envelope import OperationFailed
from ide.rpc.methods.files import send_input, write_text_file
from sandboxes.services.streams import GuestFailed


class _Changed(Exception):
    """The file is another one than was expected."""


@dataclass(frozen=True, slots=True)
class _File:
    """What the guest says of a file."""

    atime: str
    mtime: str
    size: int
    mode: int
    uid: int
    gid: int
    alone: bool
    """It is a regular file with one name, so that another file with that name is as good."""

    @property
    def version(self) -> dict[str, Any]:
        return {"mtime": self.mtime, "size": self.size}


async def save(connection: Connection, params: dict[str, Any]) -> dict[str, Any] | None:
    """Write the content and say which version it is; null, and nothing is written, if the file is not as `expected`."""
    path, content, expected = check.string(params, "path"), check.string(params, "content"), params.get("expected")
    try:
        await _expect(connection, path, expected)
        await _write(connection, path, content, expected)
    except _Changed:
        return None
    return (await _look(connection, path)).version


async def _write(connection: Connection, path: str, content: str, expected: Any) -> None:
    try:
        # Also where another file will take its place: who may not write this one must not replace it
        handle = await connection.ask("open", {"path": path, "options": {"write": True}}, session=True)
    except GuestFailed as error:
        if error.error.get("code") != "ENOENT":
            raise
        return await write_text_file(connection, {"path": path, "content": content})
    try:
        there = _file(await connection.ask("fileStat", handle, session=True))
        if not (there.alone and await _replace(connection, path, content, there, expected)):
            await _expect(connection, path, expected)
            there = _file(await connection.ask("fileStat", handle, session=True))
            await _write_over(connection, handle, content.encode("utf-8", "replace"), there)
    finally:
        await connection.ask("fileClose", handle, session=True)


async def _replace(connection: Connection, path: str, content: str, there: _File, expected: Any) -> bool:
    """Whether a new file of that owner and mode took its name; false where there is no room, or no right, for one."""
    try:
        target = await connection.ask("realPath", {"path": path})
        # A short name of its own: one made of the file's could be longer than a name may be
        part = os.path.join(os.path.dirname(target), f".{secrets.token_hex(5)}.save")
        try:
            options = {"createNew": True, "mode": 0o600}
            await write_text_file(connection, {"path": part, "content": content, "options": options})
            await connection.ask("chown", {"path": part, "uid": there.uid, "gid": there.gid})
            await connection.ask("chmod", {"path": part, "mode": there.mode})
            await _expect(connection, path, expected)
            await connection.ask("rename", {"oldPath": part, "newPath": target})
        except BaseException:
            with contextlib.suppress(GuestFailed):
                await connection.ask("remove", {"path": part})
            raise
    except GuestFailed:
        return False
    return True


async def _write_over(connection: Connection, handle: dict[str, Any], data: bytes, there: _File) -> None:
    """Over what is there; what goes beyond it first, because that alone needs room on the disk."""
    try:
        await _write_at(connection, handle, there.size, data[there.size :])
    except GuestFailed:
        await connection.ask("fileTruncate", {**handle, "size": there.size}, session=True)
        # By its time the next save would take the file for one that somebody else has changed; only its owner may
        with contextlib.suppress(GuestFailed):
            await connection.ask("fileUtime", {**handle, "atime": there.atime, "mtime": there.mtime}, session=True)
        raise
    await _write_at(connection, handle, 0, data[: there.size])
    await connection.ask("fileTruncate", {**handle, "size": len(data)}, session=True)


async def _write_at(connection: Connection, handle: dict[str, Any], offset: int, data: bytes) -> None:
    await connection.ask("fileSeek", {**handle, "offset": offset, "whence": os.SEEK_SET}, session=True)
    async with connection.running:
        await send_input(connection, "fileWrite", handle, _whole(data), session=True)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _expect(connection: Connection, path: str, expected: Any) -> None:
    if expected is None:
        return
    try:
        now = await _look(connection, path)
    except GuestFailed as error:
        if error.error.get("code") != "ENOENT":
            raise
        raise _Changed from error
    if now.version != expected:
        raise _Changed


async def _look(connection: Connection, path: str) -> _File:
    return _file(await connection.ask("stat", {"path": path}))


def _file(said: Any) -> _File:
    try:
        return _File(
            said["atime"],
            said["mtime"],
            int(said["size"]),
            stat.S_IMODE(said["mode"]),
            said["uid"],
            said["gid"],
            alone=said["isFile"] is True and said["nlink"] == 1,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        message = "The machine does not say what kind of file this is"
        raise OperationFailed({"constructorName": "Error", "message": message}) from error


METHODS: dict[str, Method] = {"file.save": save}
