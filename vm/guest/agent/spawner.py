"""A process beside the agent that starts the user's processes and reaps them.

It has one thread and little memory, so forking it is quick and safe, and it lives in the control group of the user's
processes: what it starts is born with the user's limits. Each child becomes the user, and an ordinary candidate of the
out-of-memory killer, before it runs anything that is not ours. A fork costs as much as many a command, so one child is
always made in advance and waits to be told what to run.

The agent asks over a stream socket, in records of u32 length and JSON; descriptors come with a request's first byte.
Requests: {"id", "fds", "argv" | "task", ...} and {"id", "kill": pid, "signal": n}; answers: {"id", "pid"} or
{"id", "errno", "about"}; notices of an exit: {"exit": pid, "status": wait status}.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from vm.guest.agent import tree
from vm.guest.agent.settings import Settings

MAX_REQUEST = 4 * 2**20
_MAX_FDS = 4
_HEARD = b"heard "  # what a child says first: one that was killed while it waited says nothing
_SPARE_AFTER = 0.03  # seconds without a request after which a child is made in advance: what was started goes first
_SPARE_AGAIN = 1.0  # ... and after a fork that failed, or a child that was killed while it waited
IGNORED_BY_AGENT = (
    *(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD),
)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_CGROUP = "/sys/fs/cgroup/user/cgroup.procs"


@dataclass(frozen=True, slots=True)
class Start:
    """A program to start, told that its name is `argv0`; `terminal` makes descriptor 0 its controlling terminal."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    umask: int
    argv0: str | None = None
    terminal: bool = False


class StartFailed(OSError):
    """The program could not be started; `about` is "cwd" or "command"."""

    def __init__(self, number: int, about: str, name: str) -> None:
        super().__init__(number, os.strerror(number), name)
        self.about = about


# -- the agent's side --------------------------------------------------------------------------------------------------


class Spawner:
    """Talks to the spawner process. Made before the event loop, because it forks.

    A call of `start`, `task` or `kill` must not be cancelled: the caller shields it.
    """

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Nothing else of the agent's: its link must close when it ends
                os.closerange(3, theirs.fileno())
                os.closerange(theirs.fileno() + 1, theirs.fileno() + 1024)
                _Server(theirs, settings).run()
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[int] = set()  # numbers of the requests that are tasks
        self._task_ends: dict[int, asyncio.Future[int]] = {}
        self._next = 1
        self._turn = asyncio.Lock()
        self._exited: Callable[[int, int], None] = lambda pid, status: None
        self._buffer = bytearray()
        self.lost: asyncio.Future[None] | None = None

    def attach(self, exited: Callable[[int, int], None]) -> None:
        """Join the running event loop; `exited` hears of every process that ends, with its wait status."""
        self._exited = exited
        loop = asyncio.get_running_loop()
        self.lost = loop.create_future()
        loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            for ended in self._task_ends.values():
                if not ended.done():
                    ended.set_result(errno.EIO << 8)
            for future in self._waiting.values():
                if not future.done():
                    future.set_result({"errno": errno.EIO, "about": "command"})
            if self.lost is not None and not self.lost.done():
                self.lost.set_result(None)
            return
        self._buffer += data
        for message in map(json.loads, _take_records(self._buffer)):
            if "exit" in message:
                task_end = self._task_ends.pop(message["exit"], None)
                if task_end is None:
                    self._exited(message["exit"], message["status"])
                elif not task_end.done():
                    task_end.set_result(message["status"])
                continue
            if message["id"] in self._tasks and "pid" in message:
                # Here and not where it is awaited: the exit may be the next message
                message["ended"] = self._task_ends[message["pid"]] = asyncio.get_running_loop().create_future()
            self._tasks.discard(message["id"])
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    async def start(self, what: Start, fds: list[int]) -> int:
        """The pid of a new process with these descriptors as 0, 1, 2 and, if there are four, 3. StartFailed."""
        answer = await self._ask(asdict(what), fds)
        if "errno" in answer:
            name = what.cwd if answer["about"] == "cwd" else what.argv[0]
            raise StartFailed(answer["errno"], answer["about"], name)
        return int(answer["pid"])

    async def task(self, name: str, params: dict[str, Any], umask: int, fd: int) -> tuple[int, asyncio.Future[int]]:
        """Start a process that does one of our own tasks and writes to `fd`; its pid, and later its wait status.

        StartFailed.
        """
        self._tasks.add(self._next)
        answer = await self._ask({"task": name, "params": params, "umask": umask}, [fd])
        if "errno" in answer:
            raise StartFailed(answer["errno"], answer["about"], name)
        return answer["pid"], answer["ended"]

    async def kill(self, pid: int, number: int, *, group: bool = False) -> bool:
        """Send a signal to a process that has not been reaped, or to its group; False if it has. OSError."""
        answer = await self._ask({"kill": pid, "signal": number, "group": group}, [])
        if answer.get("errno", 0) not in (0, errno.ESRCH):
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return "errno" not in answer

    async def _ask(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        number = self._next
        self._next += 1
        text = json.dumps({"id": number, "fds": len(fds), **request}).encode()
        if len(text) > MAX_REQUEST:
            return {"errno": errno.E2BIG, "about": "command"}
        data = memoryview(len(text).to_bytes(4, "big") + text)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        return await self._exchange(data, fds, future)

    async def _exchange(
        self, data: memoryview, fds: list[int], future: asyncio.Future[dict[str, Any]]
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        ancillary = _with(fds)
        try:
            async with self._turn:
                while True:
                    try:
                        sent = self._socket.sendmsg([data], ancillary)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                await loop.sock_sendall(self._socket, data[sent:])
        except OSError as error:
            return {"errno": error.errno or errno.EIO, "about": "command"}
        return await future

    def close(self) -> None:
        """End the spawner process; what it started goes on."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _take_records(buffer: bytearray) -> list[bytes]:
    found = []
    while len(buffer) >= 4:
        end = 4 + int.from_bytes(buffer[:4], "big")
        if len(buffer) < end:
            break
        found.append(bytes(buffer[4:end]))
        del buffer[:end]
    return found


def _receive(connection: socket.socket, buffer: bytearray, fds: list[int]) -> bool:
    """Add what has come, descriptors included; False if nothing more will."""
    try:
        room = socket.CMSG_SPACE(_MAX_FDS * 4)
        data, ancillary, _, _ = connection.recvmsg(65_536, room, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return False
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"{len(packed) // 4}i", packed)
    buffer += data
    return bool(data)


def _with(fds: list[int]) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []


# -- the spawner's side ------------------------------------------------------------------------------------------------


class _Spare:
    """A child that waits to be told what to run. OSError if it cannot be made."""

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._failed, failed_there = os.pipe2(os.O_CLOEXEC)
        self._socket = ours
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self._failed)
            ours.close()
            raise
        else:
            if self.pid == 0:
                _child(theirs.detach(), failed_there, settings)
        finally:
            theirs.close()
            os.close(failed_there)

    def run(self, request: bytes, fds: list[int]) -> tuple[int, str] | None:
        """Have it run that; why it could not, as errno and "cwd" or "command". OSError if it is not there any more."""
        data = len(request).to_bytes(4, "big") + request
        sent = self._socket.sendmsg([data], _with(fds))
        if sent < len(data):  # even nothing cannot be sent to who has read all of it and gone on
            self._socket.sendall(data[sent:])
        said = b""
        while piece := os.read(self._failed, 64):
            said += piece
        if not said:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        number, _, about = said.removeprefix(_HEARD).decode().partition(" ")
        return (int(number), about) if number else None

    def close(self) -> None:
        """Let go of it; one that has not been told anything ends."""
        self._socket.close()
        os.close(self._failed)


class _Server:
    def __init__(self, connection: socket.socket, settings: Settings) -> None:
        self._socket = connection
        self._settings = settings
        self._alive: set[int] = set()
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._spare: _Spare | None = None

    def run(self) -> None:
        os.setsid()
        if self._settings.real:
            _try_write(_CGROUP, b"0")
            # Among a thousand runnable processes of the user it must still have its turn
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(wake, select.POLLIN)
        patience = _SPARE_AFTER
        while True:
            ready = {fd for fd, _ in poll.poll(None if self._spare else patience * 1000)}
            patience = _SPARE_AFTER
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                if self._reap():
                    patience = _SPARE_AGAIN
            if self._socket.fileno() in ready and not self._requests():
                return
            if not ready:
                try:
                    self._spare = _Spare(self._settings)
                except OSError:
                    patience = _SPARE_AGAIN

    def _send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        try:
            self._socket.sendall(len(text).to_bytes(4, "big") + text)
        except OSError:
            os._exit(1)  # no agent any more

    def _reap(self) -> bool:
        """Tell of all that have ended; whether the child that waits was among them."""
        lost = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return lost
            if pid == 0:
                return lost
            if self._spare is not None and pid == self._spare.pid:
                self._spare.close()
                self._spare, lost = None, True
            elif pid in self._alive:
                self._alive.discard(pid)
                self._send({"exit": pid, "status": status})

    def _requests(self) -> bool:
        if not _receive(self._socket, self._buffer, self._fds):
            return False
        # Descriptors come with the first byte of their request: in order, and never later than its text
        for text in _take_records(self._buffer):
            self._serve(json.loads(text), text)
        return True

    def _serve(self, request: dict[str, Any], text: bytes) -> None:
        if "kill" in request:
            self._kill(request)
            return
        fds, self._fds = self._fds[: request["fds"]], self._fds[request["fds"] :]
        try:
            pid, failure = self._start(text, fds)
        except OSError as error:
            pid, failure = 0, (error.errno or errno.EIO, "command")
        finally:
            for fd in fds:
                os.close(fd)
        if failure is None:
            self._send({"id": request["id"], "pid": pid})
        else:
            self._send({"id": request["id"], "errno": failure[0], "about": failure[1]})

    def _start(self, text: bytes, fds: list[int]) -> tuple[int, tuple[int, str] | None]:
        child, self._spare = self._spare, None
        if child is not None:
            try:
                return self._told(child, text, fds)
            except OSError:
                pass  # somebody has killed it while it waited
        return self._told(_Spare(self._settings), text, fds)

    def _told(self, child: _Spare, text: bytes, fds: list[int]) -> tuple[int, tuple[int, str] | None]:
        try:
            failure = child.run(text, fds)
        finally:
            child.close()
        # Its exit is told of in any case, and is nobody's where it could not start
        self._alive.add(child.pid)
        return child.pid, failure

    def _kill(self, request: dict[str, Any]) -> None:
        answer = {"id": request["id"]}
        try:
            if request["kill"] not in self._alive:
                raise ProcessLookupError(errno.ESRCH, "")
            (os.killpg if request["group"] else os.kill)(request["kill"], request["signal"])
        except OSError as error:
            answer["errno"] = error.errno
        self._send(answer)


def _try_write(path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError:
        pass  # a guest that emptied or covered /proc or /sys loses its own limits, no more


def _child(told: int, failed: int, settings: Settings) -> None:
    about = "command"
    try:
        os.setsid()
        for number in IGNORED_BY_AGENT:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        # Nothing of the spawner's may stay open here: its end could not be noticed
        for first, last in itertools.pairwise((2, *sorted((told, failed)), told + failed + 1024)):
            os.closerange(first + 1, last)
        if settings.real:
            _try_write("/proc/self/oom_score_adj", b"0")
        request, fds = _await_request(told)
        os.write(failed, _HEARD)
        if settings.real:
            os.setgroups(settings.groups)
            os.setresgid(settings.gid, settings.gid, settings.gid)
            os.setresuid(settings.uid, settings.uid, settings.uid)
        os.umask(request["umask"])
        if "task" in request:
            os.close(failed)
            _be_ordinary(settings)
            _do_task(request, fds[0], settings)
            return
        # Its own number may be one that is asked for
        failed = fcntl.fcntl(failed, fcntl.F_DUPFD_CLOEXEC, 2 * _MAX_FDS)
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 2 * _MAX_FDS) for fd in fds]
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        if request["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _be_ordinary(settings)
        about = "cwd"
        os.chdir(request["cwd"])
        about = "command"
        _execute(request["argv"], request["argv0"], request["env"])
    except OSError as error:
        os.write(failed, f"{error.errno or errno.EIO} {about}".encode())
    except BaseException:
        os.write(failed, f"{errno.EIO} {about}".encode())
    finally:
        os._exit(127)


def _await_request(told: int) -> tuple[dict[str, Any], list[int]]:
    with socket.socket(fileno=told) as connection:
        buffer, fds = bytearray(), list[int]()
        while not (found := _take_records(buffer)):
            if not _receive(connection, buffer, fds):
                os._exit(0)  # the spawner is gone
    request: dict[str, Any] = json.loads(found[0])
    return request, fds


def _be_ordinary(settings: Settings) -> None:
    if settings.real:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _execute(argv: list[str], argv0: str | None, env: dict[str, str]) -> None:
    command = argv[0]
    folders = [""] if "/" in command else env.get("PATH", os.defpath).split(":")
    shown = [argv0 or command, *argv[1:]]
    best = FileNotFoundError(errno.ENOENT, "")
    for folder in folders:
        path = f"{folder or '.'}/{command}" if "/" not in command else command
        try:
            os.execve(path, shown, env)  # noqa: S606 (no shell is wanted)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # A script without #! is the shell's, as in every execvp
                os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], env)  # noqa: S606
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                if error.errno != errno.EACCES:
                    raise
                best = error  # type: ignore[assignment]
    raise best


def _do_task(request: dict[str, Any], fd: int, settings: Settings) -> None:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    code = errno.EIO
    try:
        tree.run(request["task"], request["params"], settings.home, write)
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)
