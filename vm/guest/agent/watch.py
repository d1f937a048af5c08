"""Tells which files and directory entries change, through the kernel's inotify."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal
from vm.guest.agent.files import Files
from vm.guest.agent.workers import Workers

PATHS = 256
CALLS = 64
INTERVAL = 0.1
_PENDING = 4096

_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000
_ATTRIB, _MODIFY, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x4, 0x2, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF, _OVERFLOW, _IGNORED = 0x100, 0x200, 0x400, 0x800, 0x4000, 0x8000
_WANTED = _ATTRIB | _MODIFY | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_HEADER = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Watches:
    """The call `watch`."""

    def __init__(self, files: Files, workers: Workers) -> None:
        self._files = files
        self._workers = workers
        self._open = 0

    def declare(self, methods: Methods) -> None:
        """Add the call."""
        methods.add("watch", self.watch, paths="strings")

    async def watch(self, call: Call, paths: list[str]) -> None:
        """A record for each change of these files, or of these directories' entries, until the call ends."""
        if len(paths) > PATHS:
            raise Refusal("RangeError", f"paths: at most {PATHS}", "EINVAL")
        if self._open >= CALLS:
            raise Refusal("Busy", f"{CALLS} watches are open", "EMFILE")
        self._open += 1
        fd = -1
        try:
            fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
            if fd < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            watched: dict[int, str] = {}
            for path in paths:
                number = await self._workers.run(_add, fd, self._files.path(path))
                watched[number] = path
            await call.reply()
            await self._report(call, fd, watched)
        finally:
            self._open -= 1
            if fd >= 0:
                os.close(fd)

    async def _report(self, call: Call, fd: int, watched: dict[int, str]) -> None:
        loop = asyncio.get_running_loop()
        pending: dict[str, str] = {}
        something = asyncio.Event()

        def readable() -> None:
            try:
                data = os.read(fd, 65_536)
            except BlockingIOError:
                return
            _note(data, watched, pending)
            something.set()

        loop.add_reader(fd, readable)
        input_ended = loop.create_task(_drain(call))
        try:
            while True:
                wait = loop.create_task(something.wait())
                await asyncio.wait([wait, input_ended], return_when=asyncio.FIRST_COMPLETED)
                if not wait.done():
                    wait.cancel()
                    return
                await asyncio.sleep(INTERVAL)
                something.clear()
                changes = dict(pending)
                pending.clear()
                for path, kind in changes.items():
                    await call.record({"path": path, "kind": kind})
        finally:
            loop.remove_reader(fd)
            input_ended.cancel()


async def _drain(call: Call) -> None:
    while await call.stream.read():
        pass
    await asyncio.Event().wait()  # an input that ended says nothing: the caller resets when he has had enough


def _add(fd: int, path: str) -> int:
    number = _libc.inotify_add_watch(fd, os.fsencode(path), _WANTED)
    if number < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return int(number)


def _note(data: bytes, watched: dict[int, str], pending: dict[str, str]) -> None:
    at = 0
    while at + _HEADER.size <= len(data):
        number, mask, _, length = _HEADER.unpack_from(data, at)
        name = os.fsdecode(data[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0"))
        at += _HEADER.size + length
        if mask & _OVERFLOW:
            pending.update({path: "changed" for path in watched.values()})
            continue
        folder = watched.get(number)
        if folder is None:
            continue
        if mask & _IGNORED:
            del watched[number]
            continue
        path = os.path.join(folder, name) if name else folder
        if path not in pending and len(pending) >= _PENDING:
            path, kind = folder, "changed"
        else:
            kind = _kind(mask, pending.get(path))
        pending[path] = kind


def _kind(mask: int, before: str | None) -> str:
    if mask & (_DELETE | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF):
        return "removed"
    if mask & (_CREATE | _MOVED_TO):
        # Gone and there again: what a program does that saves by renaming
        return "changed" if before in ("removed", "changed") else "created"
    return "created" if before == "created" else "changed"
