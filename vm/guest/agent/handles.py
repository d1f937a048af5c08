"""Open files that a connection holds, with their locks: they go when the connection's session ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass, field
from typing import Any

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal, bad_resource
from vm.guest.agent.files import Files, info, nanoseconds, read_some, write_whole
from vm.guest.agent.workers import Workers

LIMIT = 4096
_READ_LIMIT = 1_048_576
_PIECE = 1_048_576


@dataclass(slots=True)
class _Handle:
    fd: int
    session: str | None
    users: int = 0
    closed: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __enter__(self) -> int:
        self.users += 1
        return self.fd

    def __exit__(self, *error: object) -> None:
        self.users -= 1
        self.release()

    def release(self) -> None:
        """Close the descriptor once it was asked for and nobody is using it."""
        if self.closed and not self.users and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Handles:
    """The calls about open files. A handle is known only to the session that opened it."""

    def __init__(self, files: Files, workers: Workers) -> None:
        self._files = files
        self._workers = workers
        self._handles: dict[int, _Handle] = {}
        self._next = 1

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        options = {name: "boolean?" for name in ("read", "write", "append", "truncate", "create", "createNew")}
        handle = {"fileHandleId": "integer"}
        methods.add("open", self.open, path="string", options={**options, "mode": "integer?"})
        methods.add("create", self.create, path="string")
        methods.add("fileRead", self.read, **handle, length="integer")
        methods.add("fileWrite", self.write, **handle)
        methods.add("fileSeek", self.seek, **handle, offset="offset", whence="integer")
        methods.add("fileStat", self.stat, **handle)
        methods.add("fileSync", self.sync, **handle)
        methods.add("fileSyncData", self.sync_data, **handle)
        methods.add("fileTruncate", self.truncate, **handle, size="integer?", len="integer?")
        methods.add("fileUtime", self.utime, **handle, atime="time", mtime="time")
        methods.add("fileLock", self.lock, **handle, exclusive="boolean?")
        methods.add("fileUnlock", self.unlock, **handle)
        methods.add("fileClose", self.close, **handle)
        methods.add("session", self.session)

    async def session(self, call: Call) -> None:
        """Stay open as long as the connection does; release what it held then."""
        try:
            await call.reply()
            while await call.stream.read():
                pass
        finally:
            for number, handle in list(self._handles.items()):
                if handle.session == call.session:
                    self._close(number)

    def _close(self, number: int) -> None:
        handle = self._handles.pop(number)
        handle.closed = True
        handle.release()

    def _find(self, call: Call, number: int) -> _Handle:
        handle = self._handles.get(number)
        if handle is None or handle.session != call.session:
            raise bad_resource(f"No open file has the handle {number}")
        return handle

    async def open(self, call: Call, path: str, options: dict[str, Any]) -> object:
        """A new handle."""
        writing = options["write"] or options["append"]
        if not writing and (options["truncate"] or options["create"] or options["createNew"]):
            raise Refusal("TypeError", "truncate, create and createNew need write or append", "EINVAL")
        if options["truncate"] and options["append"]:
            raise Refusal("TypeError", "truncate and append exclude each other", "EINVAL")
        reading = options["read"] or not writing
        flags = (os.O_RDWR if reading else os.O_WRONLY) if writing else os.O_RDONLY
        flags |= os.O_APPEND if options["append"] else 0
        flags |= os.O_TRUNC if options["truncate"] else 0
        flags |= os.O_CREAT if options["create"] else 0
        flags |= os.O_CREAT | os.O_EXCL if options["createNew"] else 0
        mode = 0o666 if options["mode"] is None else options["mode"] & 0o7777
        return await self._open(call, path, flags, mode)

    async def create(self, call: Call, path: str) -> object:
        """A new handle to read and write an emptied file."""
        return await self._open(call, path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)

    async def _open(self, call: Call, path: str, flags: int, mode: int) -> object:
        if len(self._handles) >= LIMIT:
            raise Refusal("Busy", f"{LIMIT} files are open: close some first", "EMFILE")
        fd = await self._workers.open(self._files.path(path), flags, mode)
        number = self._next
        self._next += 1
        self._handles[number] = _Handle(fd, call.session)
        return {"fileHandleId": number}

    async def read(self, call: Call, fileHandleId: int, length: int) -> None:
        """What one read gives, as the call's output."""
        if length < 0:
            raise Refusal("RangeError", "length: not negative", "EINVAL")
        handle = self._find(call, fileHandleId)
        with handle as fd:
            async with handle.turn:
                data = await read_some(self._workers, fd, min(length, _READ_LIMIT))
        await call.reply({"size": len(data)})
        await call.stream.write(data)

    async def write(self, call: Call, fileHandleId: int) -> object:
        """Write the input as it comes."""
        handle = self._find(call, fileHandleId)
        written = 0
        with handle as fd:
            async with handle.turn:
                while pieces := await call.stream.read_many(_PIECE):
                    await write_whole(self._workers, fd, pieces)
                    written += sum(map(len, pieces))
        return {"bytesWritten": written}

    async def seek(self, call: Call, fileHandleId: int, offset: int, whence: int) -> object:
        """Where the handle is afterwards."""
        if whence not in (0, 1, 2):
            raise Refusal("TypeError", "whence: 0, 1 or 2", "EINVAL")
        with self._find(call, fileHandleId) as fd:
            return {"position": os.lseek(fd, offset, whence)}

    async def stat(self, call: Call, fileHandleId: int) -> object:
        """File info."""
        with self._find(call, fileHandleId) as fd:
            return await self._workers.run(info, fd)

    async def sync(self, call: Call, fileHandleId: int) -> None:
        """Flush content and metadata."""
        with self._find(call, fileHandleId) as fd:
            await self._workers.run(os.fsync, fd)

    async def sync_data(self, call: Call, fileHandleId: int) -> None:
        """Flush the content."""
        with self._find(call, fileHandleId) as fd:
            await self._workers.run(os.fdatasync, fd)

    async def truncate(self, call: Call, fileHandleId: int, size: int | None, len: int | None) -> None:
        """Cut or extend; to nothing where no size is given."""
        with self._find(call, fileHandleId) as fd:
            await self._workers.run(os.ftruncate, fd, size if size is not None else len or 0)

    async def utime(self, call: Call, fileHandleId: int, atime: str | float, mtime: str | float) -> None:
        """Set access and modification time."""
        with self._find(call, fileHandleId) as fd:
            os.utime(fd, ns=(nanoseconds(atime), nanoseconds(mtime)))

    async def lock(self, call: Call, fileHandleId: int, exclusive: bool | None) -> None:
        """Take the advisory lock, waiting until it is free; no thread is held meanwhile."""
        handle = self._find(call, fileHandleId)
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        pause = 0.002
        while True:
            if handle.closed:
                raise bad_resource("The file was closed while it waited for its lock")
            try:
                fcntl.flock(handle.fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.05)
            else:
                return

    async def unlock(self, call: Call, fileHandleId: int) -> None:
        """Give the lock back."""
        with self._find(call, fileHandleId) as fd:
            fcntl.flock(fd, fcntl.LOCK_UN)

    async def close(self, call: Call, fileHandleId: int) -> None:
        """Close the handle, with its lock."""
        self._find(call, fileHandleId)
        self._close(fileHandleId)
