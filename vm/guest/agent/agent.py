"""Puts the agent together: its state, its methods, its link."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.deno import Deno
from vm.guest.agent.errors import Refusal
from vm.guest.agent.files import Files
from vm.guest.agent.handles import Handles
from vm.guest.agent.link import Link
from vm.guest.agent.machine import Machine
from vm.guest.agent.mounts import Mounts
from vm.guest.agent.network import Network
from vm.guest.agent.processes import Processes, read_ready, umask_now
from vm.guest.agent.settings import Settings
from vm.guest.agent.spawner import Spawner
from vm.guest.agent.terminals import Terminals
from vm.guest.agent.watch import Watches
from vm.guest.agent.workers import Workers

_KEPT = 8 * 2**20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's numbers

_WALK = {
    "maxDepth": "number?",
    "includeFiles": "boolean?",
    "includeDirs": "boolean?",
    "includeSymlinks": "boolean?",
    "followSymlinks": "boolean?",
    "canonicalize": "boolean?",
    "exts": "strings?",
    "match": "patterns?",
    "skip": "patterns?",
}
_GLOB = {
    "root": "string?",
    "exclude": "strings?",
    "includeDirs": "boolean?",
    "followSymlinks": "boolean?",
    "canonicalize": "boolean?",
    "extended": "boolean?",
    "globstar": "boolean?",
    "caseInsensitive": "boolean?",
}


def say(line: str) -> None:
    """One line of log; inside a machine this is the kernel's bounded ring."""
    print(f"atoll-agent: {line}", file=sys.stderr, flush=True)


def serve(fd: int, settings: Settings, *, reopen: bool, restarted: bool = False) -> None:
    """Answer calls over `fd` until it closes (for ever where `reopen`, but for the loss of the spawner)."""
    os.set_inheritable(fd, False)
    agent = Agent(settings)
    _reuse_memory()
    asyncio.run(agent.run(fd, reopen=reopen, restarted=restarted))


def _reuse_memory() -> None:
    """Have buffers that are done with used again: given back to the kernel, each page of the next one is a fault."""
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_THRESHOLD, _KEPT), (_M_TRIM_THRESHOLD, _KEPT), (_M_ARENA_MAX, 1)):
        libc.mallopt(option, value)


class Agent:
    """One agent: everything it keeps lives as long as its process, links come and go.

    Made before the event loop runs: the spawner is forked here.
    """

    def __init__(self, settings: Settings) -> None:
        self._spawner = Spawner(settings)
        environment = settings.environment()
        self._workers = Workers(settings)
        self._processes = Processes(settings, self._spawner, environment)
        self._terminals = Terminals(settings, self._spawner, self._processes)
        files = Files(settings, self._workers)
        self.methods = Methods()
        Mounts(settings).declare(self.methods)
        Machine(settings, environment).declare(self.methods)
        files.declare(self.methods)
        Handles(files, self._workers).declare(self.methods)
        self._processes.declare(self.methods)
        self._terminals.declare(self.methods)
        Watches(files, self._workers).declare(self.methods)
        Network(settings, self._workers).declare(self.methods)
        Deno(self._processes, self._spawner, self._workers).declare(self.methods)
        self.methods.add("walk", self._task("walk"), path="string", **_WALK)
        self.methods.add("expandGlob", self._task("expandGlob"), glob="string", **_GLOB)

    def _task(self, name: str) -> Callable[..., Any]:
        """A call whose whole answer, records and all, is written by a process of its own."""

        async def handler(call: Call, **params: Any) -> None:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            loop = asyncio.get_running_loop()
            starting = loop.create_task(self._start_task(name, params, writer))
            try:
                _, ended = await asyncio.shield(starting)
                while data := await read_ready(reader):
                    call.replied = True
                    await call.stream.write(data)
                status = await ended
                if os.WIFSIGNALED(status):
                    raise Refusal("Interrupted", f"{name} was killed", "EINTR")
                if code := os.WEXITSTATUS(status):
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(reader)
                # A search may go on for ever without writing anything: nobody wants it any more
                starting.add_done_callback(self._end_task)

        return handler

    async def _start_task(self, name: str, params: dict[str, Any], writer: int) -> tuple[int, asyncio.Future[int]]:
        try:
            return await self._spawner.task(name, params, umask_now(), writer)
        finally:
            os.close(writer)

    def _end_task(self, started: asyncio.Task[tuple[int, asyncio.Future[int]]]) -> None:
        if started.exception() is None:
            pid, ended = started.result()
            if not ended.done():
                self._killing = asyncio.get_running_loop().create_task(self._spawner.kill(pid, signal.SIGKILL))

    def _exited(self, pid: int, status: int) -> None:
        self._processes.exited(pid, status)
        self._terminals.exited(pid, status)

    async def run(self, fd: int, *, reopen: bool, restarted: bool) -> None:
        """Serve until the descriptor closes, or the spawner is lost (then everything has to start anew)."""
        self._spawner.attach(self._exited)
        self._processes.attach()
        link = Link(fd, self.methods.serve, reopen=reopen, said=say)
        if restarted:
            link.confuse()
        lost = self._spawner.lost
        assert lost is not None  # noqa: S101 (for the type checker)
        try:
            await asyncio.wait([link.closed, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                say("the spawner has ended")
        finally:
            link.close()
            self._workers.close()
            self._spawner.close()
