"""Terminals: shells on pseudo-terminals that outlive their viewers, with the last of their output kept."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
import time

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal, bad_resource
from vm.guest.agent.processes import Processes, refused, signal_number, umask_now, write_ready
from vm.guest.agent.settings import Settings
from vm.guest.agent.spawner import Spawner, Start, StartFailed
from vm.guest.frames import MAX_PAYLOAD

LIMIT = 64
KEPT = 1_048_576
BEHIND = 524_288  # bytes a viewer may be behind before the terminal waits for it
PATIENCE = 10.0  # seconds the terminal waits
_SLACK = 262_144  # the ring is cut in steps of this size
_PIECE = 4 * MAX_PAYLOAD
_TTY_PIECE = 4096
_READS = 64
_WAITS = 16
_BULK = 0.004  # seconds between two pieces of what counts as much output
_TTY_GROUP = 5
_LARGEST = 1000


class Terminal:
    """One terminal: its process, what it said, who looks at it."""

    def __init__(self, number: str, pid: int, master: int, title: str, cols: int, rows: int) -> None:
        self.number = number
        self.pid = pid
        self.title = title
        self.cols = cols
        self.rows = rows
        self.started = time.time()
        self.exit: int | None = None
        self.ended = asyncio.Event()
        self.typing = asyncio.Lock()
        self.viewers: set[_Viewer] = set()
        self._master = master
        self._kept = bytearray()
        self._start = 0
        self._loop = asyncio.get_running_loop()
        self._held: asyncio.TimerHandle | None = None
        self._reading = True
        self._last_output = 0.0
        self._loop.add_reader(master, self._readable)

    @property
    def start(self) -> int:
        """The offset of the oldest byte that is kept."""
        return self._start

    @property
    def end(self) -> int:
        """The offset behind the newest byte."""
        return self._start + len(self._kept)

    def piece(self, offset: int) -> bytes:
        """What is kept from `offset` on, at most one piece of it."""
        at = offset - self._start
        with memoryview(self._kept) as view:
            return bytes(view[at : at + _PIECE])

    def _readable(self) -> None:
        # Several reads a turn: a terminal gives 4 KiB at a time, and all else here costs more than a read
        pieces: list[bytes] = []
        over = False
        waits = 0
        # Much output comes in pieces of a line or so: then a moment's wait for more is cheaper than going round the
        # event loop for each of them. What comes after a pause, as the echo of a key, does not wait.
        bulk = time.monotonic() - self._last_output < _BULK
        while len(pieces) < _READS and not over:
            try:
                pieces.append(os.read(self._master, _TTY_PIECE))
                over = not pieces[-1]
            except BlockingIOError:
                if not bulk or waits == _WAITS:
                    break
                waits += 1
                time.sleep(0.0001)
            except OSError:
                over = True  # EIO: nobody has it open any more
        self._last_output = time.monotonic()
        self._kept += b"".join(pieces)
        drop = len(self._kept) - KEPT
        if drop > _SLACK:
            del self._kept[:drop]
            self._start += drop
        if over:
            self._stop_reading()
        elif self.viewers and self._slow():
            self._stop_reading()
            self._held = self._loop.call_later(PATIENCE, self._give_up)
        for viewer in self.viewers:
            viewer.wake()

    def _slow(self) -> list[_Viewer]:
        return [viewer for viewer in self.viewers if self.end - viewer.offset > BEHIND]

    def moved(self) -> None:
        """A viewer has come on, or gone: perhaps the terminal may go on."""
        if self._held is not None and not self._slow():
            self._held.cancel()
            self._held = None
            if self._master >= 0 and not self.ended.is_set():
                self._reading = True
                self._loop.add_reader(self._master, self._readable)

    def _give_up(self) -> None:
        for viewer in self._slow():
            viewer.lost = True
            viewer.call.stream.reset("too slow: attach again with the offset reached")
            self.viewers.discard(viewer)
        self.moved()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._master)

    def finish(self, status: int) -> None:
        """The process has ended: take what it left, then close."""
        self.exit = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if self._held is not None:
            self._held.cancel()
            self._held = None
        self._stop_reading()
        # At most what the kernel holds for a terminal; other processes may go on writing for ever
        for _ in range(64):
            try:
                data = os.read(self._master, _TTY_PIECE)
            except OSError:
                break
            if not data:
                break
            self._kept += data
        master, self._master = self._master, -1
        os.close(master)
        self.ended.set()
        for viewer in self.viewers:
            viewer.wake()

    def resize(self, cols: int, rows: int) -> None:
        """Tell the terminal its size; a finished one keeps its last."""
        for size in (cols, rows):
            if not 1 <= size <= _LARGEST:
                raise Refusal("RangeError", f"cols and rows: 1 to {_LARGEST}", "EINVAL")
        if self._master >= 0 and (cols, rows) != (self.cols, self.rows):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            self.cols, self.rows = cols, rows

    def foreground(self, number: int) -> bool:
        """Send a signal to the foreground's processes; False where there are none."""
        try:
            group = os.tcgetpgrp(self._master)
            # 0 and less would be other processes, ours among them
            if group > 1:
                os.killpg(group, number)
            return group > 1
        except (OSError, ValueError):
            return False

    async def type(self, data: bytes) -> None:
        """Write what somebody typed; lost where the terminal has ended."""
        async with self.typing:
            if self._master >= 0:
                with contextlib.suppress(OSError):
                    await write_ready(self._master, data)

    def as_json(self) -> dict[str, object]:
        """As `terminal.list` tells it."""
        return {
            "id": self.number,
            "title": self.title,
            "cols": self.cols,
            "rows": self.rows,
            "started": self.started,
            "running": not self.ended.is_set(),
            "exit": self.exit,
        }


class _Viewer:
    def __init__(self, call: Call, offset: int) -> None:
        self.call = call
        self.offset = offset
        self.lost = False
        self._more = asyncio.Event()

    def wake(self) -> None:
        self._more.set()

    async def more(self) -> None:
        await self._more.wait()
        self._more.clear()


class Terminals:
    """The calls about terminals."""

    def __init__(self, settings: Settings, spawner: Spawner, processes: Processes) -> None:
        self._settings = settings
        self._spawner = spawner
        self._processes = processes
        self._table: dict[str, Terminal] = {}
        self._by_pid: dict[int, Terminal] = {}
        self._early: dict[int, int] = {}
        self._opening = 0

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        size = {"cols": "integer", "rows": "integer"}
        methods.add(
            "terminal.open", self.open, **size, command="strings?", cwd="string?", env="record?", title="string?"
        )
        methods.add("terminal.list", self.listing)
        methods.add("terminal.attach", self.attach, id="string", offset="integer?", cols="integer?", rows="integer?")
        methods.add("terminal.resize", self.resize, id="string", **size)
        methods.add("terminal.kill", self.kill, id="string", signal="string")
        methods.add("terminal.close", self.close, id="string")

    def exited(self, pid: int, status: int) -> None:
        """A process has ended; called for every child of the spawner."""
        terminal = self._by_pid.pop(pid, None)
        if terminal is not None:
            terminal.finish(status)
        elif self._opening:
            self._early[pid] = status

    def _find(self, number: str) -> Terminal:
        terminal = self._table.get(number)
        if terminal is None:
            raise bad_resource(f"There is no terminal {number}")
        return terminal

    async def open(
        self,
        call: Call,
        cols: int,
        rows: int,
        command: list[str] | None,
        cwd: str | None,
        env: dict[str, str] | None,
        title: str | None,
    ) -> object:
        """A new terminal with the user's login shell, or another program."""
        for size in (cols, rows):
            if not 1 <= size <= _LARGEST:
                raise Refusal("RangeError", f"cols and rows: 1 to {_LARGEST}", "EINVAL")
        if len(self._table) + self._opening >= LIMIT:
            ended = next((one.number for one in self._table.values() if one.ended.is_set() and not one.viewers), None)
            if ended is None:
                raise Refusal("Busy", f"{LIMIT} terminals are open: close some first", "EMFILE")
            del self._table[ended]
        shell = self._settings.login_shell
        environment = self._processes.environment({"TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})})
        start = Start(
            command or [shell],
            self._processes.folder(cwd),
            environment,
            umask_now(),
            argv0=None if command else f"-{os.path.basename(shell)}",
            terminal=True,
        )
        name = (title or os.path.basename((command or [shell])[0]))[:200]
        opening = asyncio.get_running_loop().create_task(self._open(start, name, cols, rows))
        return {"id": await asyncio.shield(opening)}

    async def _open(self, start: Start, title: str, cols: int, rows: int) -> str:
        master, slave = os.openpty()
        self._opening += 1
        try:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            if self._settings.real:
                os.fchown(slave, self._settings.uid, _TTY_GROUP)
                os.fchmod(slave, 0o620)
            os.set_blocking(master, False)
            pid = await self._spawner.start(start, [slave, slave, slave])
        except OSError as error:
            os.close(master)
            if isinstance(error, StartFailed):
                raise refused(error) from error
            raise
        finally:
            self._opening -= 1
            os.close(slave)
        terminal = Terminal(os.urandom(8).hex(), pid, master, title, cols, rows)
        self._table[terminal.number] = terminal
        if pid in self._early:
            terminal.finish(self._early.pop(pid))
        else:
            self._by_pid[pid] = terminal
        if not self._opening:
            self._early.clear()
        return terminal.number

    async def listing(self, call: Call) -> list[dict[str, object]]:
        """Every terminal, the ended ones included until they are closed."""
        return [terminal.as_json() for terminal in self._table.values()]

    async def attach(
        self,
        call: Call,
        id: str,
        offset: int | None,
        cols: int | None,
        rows: int | None,
    ) -> None:
        """Show the terminal's output from `offset` on as it comes, and type the input into it."""
        terminal = self._find(id)
        if cols is not None and rows is not None:
            terminal.resize(cols, rows)
        begin = terminal.start if offset is None or not terminal.start <= offset <= terminal.end else offset
        truncated = begin != offset and (terminal.start > 0 or offset is not None)
        viewer = _Viewer(call, begin)
        terminal.viewers.add(viewer)
        typing = asyncio.get_running_loop().create_task(_type(call, terminal))
        try:
            await call.reply(
                {
                    "offset": begin,
                    "end": terminal.end,
                    "cols": terminal.cols,
                    "rows": terminal.rows,
                    "truncated": truncated,
                }
            )
            while True:
                if viewer.offset < terminal.start:
                    # Only a viewer that nobody waited for can be here: it comes back with its offset
                    call.stream.reset("too slow: attach again with the offset reached")
                    return
                data = terminal.piece(viewer.offset)
                if data:
                    await call.stream.write(data)
                    viewer.offset += len(data)
                    terminal.moved()
                elif terminal.ended.is_set():
                    return
                else:
                    await viewer.more()
        finally:
            typing.cancel()
            terminal.viewers.discard(viewer)
            terminal.moved()
            with contextlib.suppress(BaseException):
                await typing

    async def resize(self, call: Call, id: str, cols: int, rows: int) -> None:
        """Another size; the program is told."""
        self._find(id).resize(cols, rows)

    async def kill(self, call: Call, id: str, signal: str) -> None:
        """Signal what runs in the foreground, or the terminal's own process where nothing else does."""
        terminal = self._find(id)
        number = signal_number(signal)
        if not terminal.foreground(number):
            await self._signal(terminal, number)

    async def close(self, call: Call, id: str) -> None:
        """Hang up; kill what is still there a second later. An ended terminal is forgotten."""
        terminal = self._find(id)
        del self._table[id]
        if not terminal.ended.is_set():
            await asyncio.shield(asyncio.get_running_loop().create_task(self._hang_up(terminal)))

    async def _hang_up(self, terminal: Terminal) -> None:
        loop = asyncio.get_running_loop()
        await self._signal(terminal, signal.SIGHUP)
        # A stopped process would hear of it only when continued
        await self._signal(terminal, signal.SIGCONT)
        self._killing = loop.create_task(self._kill_later(terminal))

    async def _kill_later(self, terminal: Terminal) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(terminal.ended.wait(), 1.0)
        if not terminal.ended.is_set():
            await self._signal(terminal, signal.SIGKILL)

    async def _signal(self, terminal: Terminal, number: int) -> None:
        with contextlib.suppress(OSError):
            await self._spawner.kill(terminal.pid, number, group=True)


async def _type(call: Call, terminal: Terminal) -> None:
    with contextlib.suppress(Exception):
        while data := await call.stream.read_all(_PIECE):
            await terminal.type(data)
