"""Threads that do the file work, with the user's rights: what a call may read or write is what the user may."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures.thread import ThreadPoolExecutor

from vm.guest.agent.settings import Settings

_THREADS = 32
# The numbers of x86-64. The C library's own functions would switch every thread of the process.
_SETGROUPS, _SETFSUID, _SETFSGID = 116, 122, 123

_libc = ctypes.CDLL(None, use_errno=True)


class Workers:
    """Runs blocking functions beside the event loop as the user of the machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(_THREADS, "files", self._become_user)

    def _become_user(self) -> None:
        if not self._settings.real:
            return
        groups = (ctypes.c_uint32 * len(self._settings.groups))(*self._settings.groups)
        if _libc.syscall(_SETGROUPS, len(groups), groups) != 0:
            raise OSError(ctypes.get_errno(), "setgroups")
        # These two report the id before the call; leaving root takes the thread's rights over foreign files with it
        _libc.syscall(_SETFSGID, self._settings.gid)
        _libc.syscall(_SETFSUID, self._settings.uid)

    async def run[T, *Ts](self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """The result of `work(*args)`. Cancellation waits for the thread, so that what it uses can be closed then."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(BaseException):
                await asyncio.wait([future])
            raise

    async def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """A file descriptor that does not block on FIFOs: waits for a FIFO's reader without holding a thread."""
        while True:
            future = asyncio.get_running_loop().run_in_executor(self._pool, _open, path, flags, mode)
            try:
                fd = await asyncio.shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(_close_result)
                raise
            if fd >= 0:
                return fd
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Let idle threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _open(path: str, flags: int, mode: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    except OSError as error:
        # A FIFO that nobody reads (and a socket, which nobody will ever open)
        if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode) and flags & os.O_ACCMODE == os.O_WRONLY:
            return -1
        raise


def _close_result(future: asyncio.Future[int]) -> None:
    if not future.cancelled() and future.exception() is None and future.result() >= 0:
        os.close(future.result())
