"""Processes that calls start, their pipes, and how they ended; with the environment that they are born with."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import time
from collections import OrderedDict, deque
from typing import Any

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal, from_os_error, gone
from vm.guest.agent.settings import Settings
from vm.guest.agent.spawner import Spawner, Start, StartFailed

EXITED_KEPT = 4096
_PIPE_BYTES = 262_144
_PIECE = 262_144
_KMSG = re.compile(rb"Killed process (\d+)")


def umask_now() -> int:
    """The mask of this process; what is born gets the same."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class Process:
    """One process and our ends of its pipes; a pipe is -1 where there is none, or none any more."""

    def __init__(self, pid: int, command: str, args: list[str], *, asked_at: float) -> None:
        self.pid = pid
        self.command = command
        self.args = args
        self.started = time.time()
        self.started_at = time.monotonic()
        self.asked_at = asked_at
        self.seconds: float | None = None
        self.exited = asyncio.Event()
        self.status: dict[str, object] | None = None
        self.pipes = {"stdin": -1, "stdout": -1, "stderr": -1}
        self.busy: set[str] = set()
        self.control: socket.socket | None = None  # our end of its descriptor 3

    def close_pipe(self, name: str) -> None:
        """Close our end. Repeatable."""
        fd, self.pipes[name] = self.pipes[name], -1
        if fd >= 0:
            os.close(fd)

    def end_control(self) -> None:
        """Let go of its descriptor 3; whoever still reads from our end is told that nothing follows. Repeatable."""
        control, self.control = self.control, None
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            # Closed at once, the event loop would never wake its reader
            asyncio.get_running_loop().call_later(1, control.close)


class OutOfMemory:
    """Knows which processes the kernel killed for want of memory: it reads the kernel's log."""

    def __init__(self, *, real: bool) -> None:
        self._killed: deque[tuple[int, float]] = deque(maxlen=256)
        self._fd = -1
        if real:
            with contextlib.suppress(OSError):
                self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._fd, 0, os.SEEK_END)

    def verdict(self, pid: int, since: float) -> str | None:
        """How sure it is that a process killed since then was killed so; `since` is its start, monotonic clock."""
        self._read()
        kills = [victim for victim, when in self._killed if when >= since]
        if pid in kills:
            return "high-confidence"
        return "low-confidence" if kills else None

    def _read(self) -> None:
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:
                continue  # the ring went round
            except OSError:
                return
            if found := _KMSG.search(record):
                # "priority,sequence,microseconds since boot,flags;text"
                self._killed.append((int(found[1]), int(record.split(b",", 3)[2]) / 1e6))


class Processes:
    """The calls about processes and the environment."""

    def __init__(self, settings: Settings, spawner: Spawner, environment: dict[str, str]) -> None:
        self._settings = settings
        self._spawner = spawner
        self._environment = environment
        self._table: dict[int, Process] = {}
        self._ended: OrderedDict[int, Process] = OrderedDict()
        self._early: dict[int, int] = {}
        self._starting = 0
        self._memory = OutOfMemory(real=settings.real)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # A pipe whose reader has gone is an error on our end: asked for nothing, epoll still reports that
        self._broken = select.epoll()
        self._broken_waiters: dict[int, asyncio.Event] = {}

    def attach(self) -> None:
        """Join the running event loop."""
        asyncio.get_running_loop().add_reader(self._broken.fileno(), self._pipes_broke)

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        methods.add(
            "spawn",
            self.spawn,
            command="string",
            args="strings?",
            cwd="string?",
            env="record?",
            clearEnv="boolean?",
            stdin="string?",
            stdout="string?",
            stderr="string?",
            control="boolean?",
        )
        methods.add("processWait", self.wait, pid="integer")
        methods.add("processKill", self.kill, pid="integer", signal="string?", group="boolean?")
        methods.add("process.stdin", self.stdin, pid="integer")
        methods.add("process.stdout", self._output("stdout"), pid="integer")
        methods.add("process.stderr", self._output("stderr"), pid="integer")
        methods.add("process.list", self.listing)
        methods.add("envGet", self.env_get, key="string")
        methods.add("envSet", self.env_set, key="string", value="string")
        methods.add("envToObject", self.env_to_object)
        methods.add("envDelete", self.env_delete, key="string")

    # -- environment

    async def env_get(self, call: Call, key: str) -> str | None:
        """One variable."""
        return self._environment.get(key)

    async def env_set(self, call: Call, key: str, value: str) -> None:
        """Set one variable for whatever is started from now on."""
        if not key or "=" in key:
            raise Refusal("TypeError", f"not a name of a variable: {key!r}", "EINVAL")
        self._environment[key] = value

    async def env_to_object(self, call: Call) -> dict[str, str]:
        """All variables."""
        return dict(self._environment)

    async def env_delete(self, call: Call, key: str) -> None:
        """Remove one variable. Repeatable."""
        self._environment.pop(key, None)

    def environment(self, env: dict[str, str] | None, *, clear: bool = False) -> dict[str, str]:
        """What a process is born with. Refusal where a name cannot be one."""
        for name in env or {}:
            if not name or "=" in name:
                raise Refusal("TypeError", f"not a name of a variable: {name!r}", "EINVAL")
        return {**({} if clear else self._environment), **(env or {})}

    def folder(self, cwd: str | None) -> str:
        """A working directory as the kernel needs it."""
        return os.path.join(self._settings.home, cwd or "")

    # -- life and death

    async def spawn(
        self,
        call: Call,
        command: str,
        args: list[str] | None,
        cwd: str | None,
        env: dict[str, str] | None,
        clearEnv: bool | None,
        stdin: str | None,
        stdout: str | None,
        stderr: str | None,
        control: bool | None,
    ) -> object:
        """Start a process; `control` gives it a socket as descriptor 3. Refusal NotFound without command or cwd."""
        modes = {"stdin": stdin or "null", "stdout": stdout or "null", "stderr": stderr or "null"}
        for name, mode in modes.items():
            if mode not in ("piped", "null"):
                raise Refusal("TypeError", f'{name}: "piped" or "null"', "EINVAL")
        if not command:
            raise Refusal("NotFound", "No such file or directory (os error 2): spawn ''", "ENOENT")
        environment = self.environment(env, clear=bool(clearEnv))
        if clearEnv and "PATH" not in environment:
            environment["PATH"] = self._environment.get("PATH", os.defpath)
        start = Start([command, *(args or [])], self.folder(cwd), environment, umask_now())
        # Not to be interrupted: a process that was started is in the table, whatever becomes of the call
        return await asyncio.shield(asyncio.get_running_loop().create_task(self._spawn(start, modes, bool(control))))

    async def _spawn(self, start: Start, modes: dict[str, str], control: bool) -> object:
        ours: dict[str, int] = {}
        mine: socket.socket | None = None
        theirs: list[int] = []
        theirs_alone: list[int] = []
        try:
            for name, mode in modes.items():
                if mode == "null":
                    theirs.append(self._null)
                    continue
                reader, writer = os.pipe2(os.O_CLOEXEC)
                ours[name], their_end = (writer, reader) if name == "stdin" else (reader, writer)
                theirs.append(their_end)
                theirs_alone.append(their_end)
                os.set_blocking(ours[name], False)
            if control:
                mine, its = socket.socketpair()
                mine.setblocking(False)
                theirs.append(its.detach())
                theirs_alone.append(theirs[-1])
            process = await self._start(start, theirs, start.argv[0], start.argv[1:])
            process.pipes.update(ours)
            process.control = mine
        except OSError as error:
            for fd in ours.values():
                os.close(fd)
            if mine is not None:
                mine.close()
            if isinstance(error, StartFailed):
                raise refused(error) from error
            raise
        finally:
            for fd in theirs_alone:
                os.close(fd)
        if process.status is not None:
            self._wake_stdin(process)
            process.end_control()
        return {"pid": process.pid}

    async def _start(self, start: Start, fds: list[int], command: str, args: list[str]) -> Process:
        self._starting += 1
        asked_at = time.monotonic()
        try:
            pid = await self._spawner.start(start, fds)
        finally:
            self._starting -= 1
        process = Process(pid, command, args, asked_at=asked_at)
        old = self._table.pop(pid, None)
        if old is not None:
            self._ended.pop(pid, None)
            self._forget(old)
        self._table[pid] = process
        if pid in self._early:
            self.exited(pid, self._early.pop(pid))
        if not self._starting:
            self._early.clear()
        return process

    def exited(self, pid: int, status: int) -> None:
        """A process has ended; called for every child of the spawner."""
        process = self._table.get(pid)
        if process is None or process.status is not None:
            if self._starting:
                self._early[pid] = status  # its start has not been told yet
            return
        process.status = self._verdict(process, status)
        process.seconds = time.monotonic() - process.asked_at
        process.exited.set()
        process.end_control()
        self._wake_stdin(process)
        self._ended[pid] = process
        while len(self._ended) > EXITED_KEPT:
            oldest, other = self._ended.popitem(last=False)
            del self._table[oldest]
            self._forget(other)

    def _forget(self, process: Process) -> None:
        self._wake_stdin(process)
        for name in process.pipes:
            if name not in process.busy:
                process.close_pipe(name)

    def _verdict(self, process: Process, status: int) -> dict[str, object]:
        signalled = os.WIFSIGNALED(status)
        code = 128 + os.WTERMSIG(status) if signalled else os.WEXITSTATUS(status)
        oom = self._memory.verdict(process.pid, process.started_at) if code == 137 else None
        return {
            "success": code == 0,
            "code": code,
            "signal": _signal_name(os.WTERMSIG(status)) if signalled else None,
            "oom": oom,
        }

    def find(self, pid: int) -> Process:
        """The process, which may have ended. Refusal for one that is not known."""
        process = self._table.get(pid)
        if process is None:
            raise gone(pid)
        return process

    async def wait(self, call: Call, pid: int) -> object:
        """How it ended, once it has; any number of times."""
        process = self.find(pid)
        await process.exited.wait()
        return process.status

    async def kill(self, call: Call, pid: int, signal: str | None, group: bool | None) -> None:
        """Signal the process itself; with `group` also what it started and did not put into a group of its own."""
        process = self.find(pid)
        number = signal_number(signal or "SIGTERM")
        if process.status is not None or not await self._spawner.kill(pid, number, group=bool(group)):
            raise gone(pid)

    async def listing(self, call: Call) -> list[dict[str, object]]:
        """What was started, the running and the ended that are still known."""
        return [
            {
                "pid": process.pid,
                "command": process.command,
                "args": process.args,
                "started": process.started,
                "running": process.status is None,
                "seconds": process.seconds,
            }
            for process in self._table.values()
        ]

    # -- pipes

    def _claim(self, pid: int, name: str) -> Process:
        process = self.find(pid)
        if name in process.busy:
            raise Refusal("Busy", f"Somebody else has the {name} of process {pid}", "EBUSY")
        if process.pipes[name] < 0:
            raise Refusal("BadResource", f"The {name} of process {pid} is not open", "EBADF")
        process.busy.add(name)
        return process

    def _output(self, name: str) -> Any:
        async def handler(call: Call, pid: int) -> None:
            process = self._claim(pid, name)
            fd = process.pipes[name]
            try:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                await call.reply()
                while data := await read_ready(fd):
                    await call.stream.write(data)
                process.close_pipe(name)
            finally:
                process.busy.discard(name)
                if self._table.get(pid) is not process:
                    process.close_pipe(name)

        return handler

    async def stdin(self, call: Call, pid: int) -> None:
        """Feed the input to the process; its end, or the end of the call, closes the pipe."""
        if self.find(pid).status is not None:
            await call.reply()  # nobody is left to read it
            return
        process = self._claim(pid, "stdin")
        fd = process.pipes["stdin"]
        broken = asyncio.Event()
        self._broken_waiters[fd] = broken
        self._broken.register(fd, 0)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        loop = asyncio.get_running_loop()
        feeding = loop.create_task(_feed(call, fd))
        closing = loop.create_task(broken.wait())
        try:
            await call.reply()
            await asyncio.wait([feeding, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            feeding.cancel()
            closing.cancel()
            await asyncio.wait([feeding, closing])
            if not feeding.cancelled():
                feeding.exception()
            self._unregister(fd)
            process.close_pipe("stdin")
            process.busy.discard("stdin")

    def _unregister(self, fd: int) -> None:
        if self._broken_waiters.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._broken.unregister(fd)

    def _wake_stdin(self, process: Process) -> None:
        waiter = self._broken_waiters.get(process.pipes["stdin"])
        if waiter is not None:
            waiter.set()
        elif "stdin" not in process.busy:
            process.close_pipe("stdin")

    def _pipes_broke(self) -> None:
        for fd, _ in self._broken.poll(0):
            waiter = self._broken_waiters.get(fd)
            if waiter is not None:
                waiter.set()
            self._unregister(fd)


async def _feed(call: Call, fd: int) -> None:
    while data := await call.stream.read_all(_PIECE):
        try:
            await write_ready(fd, data)
        except BrokenPipeError:
            return


def refused(error: StartFailed) -> Refusal:
    """The answer about a process that could not be started."""
    return from_os_error(error, "spawn" if error.about == "command" else "cwd")


def signal_number(name: str) -> int:
    """The number of a signal by its name. Refusal."""
    try:
        return signal.Signals[name].value
    except KeyError:
        raise Refusal("TypeError", f"Invalid signal: {name}", "EINVAL") from None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRT{number}"


# -- non-blocking descriptors ------------------------------------------------------------------------------------------


async def read_ready(fd: int, limit: int = _PIECE) -> bytes:
    """What a non-blocking descriptor has, waiting until it has something; empty at its end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, limit)
        except BlockingIOError:
            ready = loop.create_future()
            loop.add_reader(fd, _set, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
        except OSError as error:
            if error.errno == 5:
                return b""  # EIO: a terminal that nobody has open any more
            raise


async def write_ready(fd: int, data: bytes) -> None:
    """All of `data` to a non-blocking descriptor. BrokenPipeError where nobody will read it."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready = loop.create_future()
            loop.add_writer(fd, _set, ready)
            try:
                await ready
            finally:
                loop.remove_writer(fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
