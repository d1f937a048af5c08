"""Whole files, directories, metadata and links."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal
from vm.guest.agent.settings import Settings
from vm.guest.agent.workers import Workers

_PIECE = 1_048_576
_VECTOR = 512  # pieces of one system call: half of what the kernel takes
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _STATX_BTIME = -100, 0x100, 0x1000, 0x800
_COPY_PIECE = 16 * 2**20

_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """The calls that name a path; relative ones start at the home directory."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self._home = settings.home
        self._workers = workers

    def path(self, path: str) -> str:
        """A path as the kernel needs it."""
        if not path:
            raise FileNotFoundError(2, os.strerror(2), path)
        return os.path.join(self._home, path)

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        write = {"append": "boolean?", "create": "boolean?", "createNew": "boolean?", "mode": "integer?"}
        for name in ("readFile", "readTextFile"):
            methods.add(name, self.read_file, path="string")
        for name in ("writeFile", "writeTextFile"):
            methods.add(name, self.write_file, path="string", options=write)
        on = self._on_paths
        methods.add("copyFile", on(_copy, "fromPath", "toPath"), fromPath="string", toPath="string")
        methods.add("truncate", on(_truncate, "name"), name="string", length="integer?")
        methods.add("readDir", on(_read_dir, "path"), path="string")
        methods.add("mkdir", on(_mkdir, "path"), path="string", options={"recursive": "boolean?", "mode": "integer?"})
        methods.add("remove", on(_remove, "path"), path="string", options={"recursive": "boolean?"})
        methods.add("rename", on(os.rename, "oldPath", "newPath"), oldPath="string", newPath="string")
        methods.add("stat", on(lambda path: info(path, follow=True), "path"), path="string")
        methods.add("lstat", on(lambda path: info(path, follow=False), "path"), path="string")
        methods.add("chmod", on(_chmod, "path"), path="string", mode="integer")
        methods.add("chown", on(_chown, "path"), path="string", uid="integer?", gid="integer?")
        methods.add("link", on(os.link, "target", "path"), target="string", path="string")
        methods.add(
            "symlink",
            on(lambda target, path, options: os.symlink(target, path), "path"),
            target="string",
            path="string",
            options={"type": "string?"},
        )
        methods.add("readLink", on(os.readlink, "path"), path="string")
        methods.add("realPath", on(lambda path: os.path.realpath(path, strict=True), "path"), path="string")
        temp = {"dir": "string?", "prefix": "string?", "suffix": "string?"}
        methods.add("makeTempDir", self.make_temp_dir, options=temp)
        methods.add("makeTempFile", self.make_temp_file, options=temp)
        methods.add("umask", self.umask, mask="integer?")
        methods.add("utime", on(_utime, "path"), path="string", atime="time", mtime="time")

    def _on_paths(self, work: Callable[..., Any], *names: str) -> Callable[..., Any]:
        """A handler that resolves the named parameters and does `work` in a thread, parameters in their order."""

        async def handler(call: Call, **params: Any) -> Any:
            for name in names:
                params[name] = self.path(params[name])
            return await self._workers.run(work, *params.values())

        return handler

    async def read_file(self, call: Call, path: str) -> None:
        """The size it had when it was opened, then the content."""
        fd = await self._workers.open(self.path(path), os.O_RDONLY)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(21, os.strerror(21), path)
            piece = await read_some(self._workers, fd, _PIECE)
            await call.reply({"size": found.st_size})
            while piece:
                ahead = asyncio.get_running_loop().create_task(read_some(self._workers, fd, _PIECE))
                try:
                    await call.stream.write(piece)
                finally:
                    piece = await ahead
        finally:
            os.close(fd)

    async def write_file(self, call: Call, path: str, options: dict[str, Any]) -> None:
        """Write the input as it comes; the reply comes after all of it."""
        flags = os.O_WRONLY | (os.O_APPEND if options["append"] else os.O_TRUNC)
        if options["createNew"]:
            flags |= os.O_CREAT | os.O_EXCL
        elif options["create"] is not False:
            flags |= os.O_CREAT
        mode = options["mode"]
        fd = await self._workers.open(self.path(path), flags, 0o666 if mode is None else mode & 0o7777)
        try:
            if mode is not None:
                await self._workers.run(os.fchmod, fd, mode & 0o7777)
            while pieces := await call.stream.read_many(_PIECE):
                await write_whole(self._workers, fd, pieces)
        finally:
            os.close(fd)

    async def make_temp_dir(self, call: Call, options: dict[str, Any]) -> str:
        """A new directory of mode 0700."""
        return await self._make_temp(options, lambda path: os.mkdir(path, 0o700))

    async def make_temp_file(self, call: Call, options: dict[str, Any]) -> str:
        """A new empty file of mode 0600."""
        return await self._make_temp(
            options, lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        )

    async def _make_temp(self, options: dict[str, Any], make: Callable[[str], None]) -> str:
        folder = self.path(options["dir"]) if options["dir"] else "/tmp"  # noqa: S108 (the protocol's default)
        for part in ("prefix", "suffix"):
            if "/" in (options[part] or ""):
                raise Refusal("TypeError", f"{part}: no path separator allowed", "EINVAL")

        def attempt() -> str:
            for _ in range(100):
                path = os.path.join(folder, f"{options['prefix'] or ''}{os.urandom(5).hex()}{options['suffix'] or ''}")
                try:
                    make(path)
                except FileExistsError:
                    continue
                return path
            raise FileExistsError(17, os.strerror(17), folder)

        return await self._workers.run(attempt)

    async def umask(self, call: Call, mask: int | None) -> int:
        """The mask before; set for every file and process from now on where `mask` is given."""
        before = os.umask(0o022 if mask is None else mask & 0o777)
        if mask is None:
            os.umask(before)
        return before


async def read_some(workers: Workers, fd: int, limit: int) -> bytes:
    """Up to `limit` bytes; waits, without holding a thread, for a FIFO or device that has none yet."""
    while True:
        try:
            return await workers.run(os.read, fd, limit)
        except BlockingIOError:
            await asyncio.sleep(0.02)


async def write_whole(workers: Workers, fd: int, pieces: list[bytes]) -> None:
    """All of `pieces` in their order, however slow the file is."""
    views = deque(memoryview(piece) for piece in pieces)
    while views:
        try:
            count = await workers.run(os.writev, fd, list(islice(views, _VECTOR)))
        except BlockingIOError:
            await asyncio.sleep(0.02)
            continue
        while views and len(views[0]) <= count:
            count -= len(views.popleft())
        if count:
            views[0] = views[0][count:]


# -- blocking work -----------------------------------------------------------------------------------------------------


def _copy(source: str, target: str) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(reader)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(21 if stat.S_ISDIR(found.st_mode) else 22, "the source is no regular file", source)
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, stat.S_IMODE(found.st_mode))
        try:
            there = os.fstat(writer)
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                return
            os.ftruncate(writer, 0)
            os.fchmod(writer, stat.S_IMODE(found.st_mode))
            while os.sendfile(writer, reader, None, _COPY_PIECE):
                pass
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _read_dir(path: str) -> list[dict[str, object]]:
    with os.scandir(path) as entries:
        return [
            {
                "name": entry.name,
                "isFile": entry.is_file(follow_symlinks=False),
                "isDirectory": entry.is_dir(follow_symlinks=False),
                "isSymlink": entry.is_symlink(),
            }
            for entry in entries
        ]


def _mkdir(path: str, options: dict[str, Any]) -> None:
    mode = 0o777 if options["mode"] is None else options["mode"] & 0o7777
    if not options["recursive"]:
        os.mkdir(path, mode)
        return
    missing = []
    at = os.path.normpath(path)
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise


def _remove(path: str, options: dict[str, Any]) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif options["recursive"]:
        _remove_tree(path)
    else:
        os.rmdir(path)


def _remove_tree(top: str) -> None:
    # By directory handles and without recursion: names may change meanwhile, and trees may be deep
    for _, folders, files, handle in os.fwalk(top, topdown=False, onerror=_raise):
        for name in files:
            _unlink(name, handle)
        for name in folders:
            try:
                os.rmdir(name, dir_fd=handle)
            except NotADirectoryError:
                _unlink(name, handle)  # a symbolic link to a directory
            except FileNotFoundError:
                pass
    os.rmdir(top)


def _unlink(name: str, handle: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=handle)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _truncate(path: str, length: int | None) -> None:
    os.truncate(path, length or 0)


def _chmod(path: str, mode: int) -> None:
    os.chmod(path, mode & 0o7777)


def _chown(path: str, uid: int | None, gid: int | None) -> None:
    os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)


def _utime(path: str, atime: str | float, mtime: str | float) -> None:
    os.utime(path, ns=(nanoseconds(atime), nanoseconds(mtime)))


def nanoseconds(moment: str | float) -> int:
    """Epoch nanoseconds of an ISO-8601 string or of epoch seconds. Refusal if it is neither."""
    if not isinstance(moment, str):
        return round(moment * 1e9)
    try:
        read = datetime.fromisoformat(moment)
        read = read if read.tzinfo else read.replace(tzinfo=UTC)
        return round(read.timestamp() * 1000) * 1_000_000
    except (ValueError, OverflowError) as error:
        raise Refusal("TypeError", f"not a time: {moment!r}", "EINVAL") from error


# -- file information --------------------------------------------------------------------------------------------------


def info(file: str | int, *, follow: bool = True) -> dict[str, object]:
    """The SDK's file info of a path or descriptor."""
    found = os.fstat(file) if isinstance(file, int) else os.stat(file, follow_symlinks=follow)
    mode = found.st_mode
    return {
        "isFile": stat.S_ISREG(mode),
        "isDirectory": stat.S_ISDIR(mode),
        "isSymlink": stat.S_ISLNK(mode),
        "isBlockDevice": stat.S_ISBLK(mode),
        "isCharDevice": stat.S_ISCHR(mode),
        "isFifo": stat.S_ISFIFO(mode),
        "isSocket": stat.S_ISSOCK(mode),
        "size": found.st_size,
        "mode": mode,
        "dev": found.st_dev,
        "ino": found.st_ino,
        "nlink": found.st_nlink,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "rdev": found.st_rdev,
        "blksize": found.st_blksize,
        "blocks": found.st_blocks,
        "mtime": _iso(found.st_mtime_ns),
        "atime": _iso(found.st_atime_ns),
        "ctime": _iso(found.st_ctime_ns),
        "birthtime": _iso(_birth(file, follow=follow) or min(found.st_mtime_ns, found.st_ctime_ns)),
    }


def _birth(file: str | int, *, follow: bool) -> int:
    buffer = ctypes.create_string_buffer(256)
    if isinstance(file, int):
        done = _libc.statx(file, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer)
    else:
        done = _libc.statx(_AT_FDCWD, os.fsencode(file), 0 if follow else _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer)
    raw = buffer.raw
    if done != 0 or not int.from_bytes(raw[0:4], "little") & _STATX_BTIME:
        return 0
    # struct statx: stx_btime lies at 0x50, s64 seconds and u32 nanoseconds
    seconds = int.from_bytes(raw[0x50:0x58], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(raw[0x58:0x5C], "little")


def _iso(moment: int) -> str:
    seconds, rest = divmod(moment, 1_000_000_000)
    try:
        at = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        return "1970-01-01T00:00:00.000Z"
    if not 0 <= at.tm_year <= 9999:
        return "1970-01-01T00:00:00.000Z"
    return (
        f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d}"
        f"T{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}.{rest // 1_000_000:03d}Z"
    )
