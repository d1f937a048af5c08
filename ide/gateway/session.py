"""What runs in an SSH channel: a shell or command on a terminal, a command on pipes, or SFTP, in the guest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import asyncssh
import structlog
from asyncssh import EXTENDED_DATA_STDERR

from ide.gateway.channel import PIECE, ChannelClosed, Pipe
from ide.gateway.tasks import beside, ended
from sandboxes import background
from sandboxes.errors import DomainError, Unavailable
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid

log = structlog.get_logger("atoll.gateway")

SHELL = "/bin/bash"
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
FAILED = 255
"""What SSH itself exits with, rather than the command."""
ACCEPTED = ("LANG", "LC_", "TZ", "COLORTERM", "TERM_PROGRAM", "GIT_PROTOCOL")
"""Beginnings of the names of variables that a client may set."""
LARGEST = 1000


class Guest(Protocol):
    """The sandbox that somebody logged in to."""

    async def call(self, method: str, params: Mapping[str, Any] | None = None, *, more: bool = False) -> GuestCall:
        """Begin a call; DomainError."""

    async def ask(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """The value of a call without input and output; DomainError, GuestFailed, GuestInvalid."""

    async def agent_socket(self) -> str:
        """Where programs in the guest find the client's agent; empty if it was not forwarded."""

    def used(self) -> None:
        """Somebody does something there."""


class Session(Pipe, asyncssh.SSHServerSession[bytes]):
    """One channel for a shell, a command or a subsystem."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self._guest = guest
        self._command: str | None = None
        self._subsystem = ""
        self._pty: tuple[str, int, int] | None = None
        self._running: asyncio.Task[None] | None = None
        self._pid = 0
        self._terminal = ""

    # -- what the client asks for

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Any) -> bool:
        """A terminal of that type and size."""
        self._pty = (term_type, *_size(term_size[0], term_size[1]))
        return True

    def shell_requested(self) -> bool:
        """The user's login shell."""
        return True

    def exec_requested(self, command: str) -> bool:
        """A command, as the user's shell understands it."""
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Only SFTP."""
        self._subsystem = subsystem
        return subsystem == "sftp"

    def session_started(self) -> None:
        """All is known: begin."""
        self._running = background.spawn(self._run(), name="ssh session")

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """The client's window has another size."""
        if self._terminal:
            cols, rows = _size(width, height)
            resize = {"id": self._terminal, "cols": cols, "rows": rows}
            background.spawn(self._try("terminal.resize", resize), name="ssh resize")

    def signal_received(self, signal: str) -> None:
        """A signal for what runs, and for what it started."""
        if self._pid:
            kill = {"pid": self._pid, "signal": f"SIG{signal}", "group": True}
            background.spawn(self._try("processKill", kill), name="ssh signal")
        elif self._terminal:
            kill = {"id": self._terminal, "signal": f"SIG{signal}"}
            background.spawn(self._try("terminal.kill", kill), name="ssh signal")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: so is what it ran."""
        super().connection_lost(exc)
        if self._running is not None:
            self._running.cancel()

    async def _try(self, method: str, params: dict[str, Any]) -> None:
        # What it is about may have ended at this moment
        with contextlib.suppress(DomainError, GuestFailed, GuestInvalid):
            await self._guest.ask(method, params)

    # -- running it

    async def _run(self) -> None:
        try:
            if self._pty is not None and not self._subsystem:
                await self._on_terminal(*self._pty)
            else:
                await self._on_pipes()
        except ChannelClosed:
            pass
        except (DomainError, GuestFailed, GuestInvalid) as error:
            with contextlib.suppress(ChannelClosed):
                await self.write(f"atoll: {error}\r\n".encode(), EXTENDED_DATA_STDERR)
                self._exit({"code": FAILED})
        except OSError:
            pass  # the channel was closed while its exit status was told

    async def _environment(self) -> dict[str, str]:
        sent = self._chan.get_environment()
        wanted = {name: value for name, value in sent.items() if name.startswith(ACCEPTED) and "\0" not in value}
        if path := await self._guest.agent_socket():
            wanted["SSH_AUTH_SOCK"] = path
        peer, here = (self._chan.get_extra_info(name) or ("", 0) for name in ("peername", "sockname"))
        wanted["SSH_CONNECTION"] = f"{peer[0]} {peer[1]} {here[0]} {here[1]}"
        return wanted

    async def _on_pipes(self) -> None:
        if self._subsystem:
            argv = [SFTP_SERVER]
        elif self._command is None:
            argv = [SHELL, "-l"]
        else:
            argv = [SHELL, "-c", self._command]
        spawn = {"command": argv[0], "args": argv[1:], "env": await self._environment()}
        piped = dict.fromkeys(("stdin", "stdout", "stderr"), "piped")
        self._pid = pid = int((await self._guest.ask("spawn", {**spawn, **piped}))["pid"])
        feeding = beside(self._feed(pid))
        reading = [beside(self._carry(pid, "stdout", None)), beside(self._carry(pid, "stderr", EXTENDED_DATA_STDERR))]
        # At once, so that its answer is there when the output has ended
        waiting = beside(self._guest.ask("processWait", {"pid": pid}))
        try:
            await asyncio.gather(*reading)
            status = await waiting
            self._pid = 0
            self._exit(status if isinstance(status, dict) else {})
        finally:
            await ended(feeding, waiting, *reading)
            if self._pid:
                # Nobody reads its output any more
                self._pid = 0
                hang_up = {"pid": pid, "signal": "SIGHUP", "group": True}
                background.spawn(self._try("processKill", hang_up), name="ssh hang-up")

    async def _feed(self, pid: int) -> None:
        async with await self._guest.call("process.stdin", {"pid": pid}, more=True) as call:
            await call.reply()
            # Where it has closed its input, what comes is dropped
            with contextlib.suppress(Unavailable):
                while data := await self.read():
                    self._guest.used()
                    await call.write(data)
                await call.end_input()
                await call.read()

    async def _carry(self, pid: int, name: str, datatype: int | None) -> None:
        async with await self._guest.call(f"process.{name}", {"pid": pid}) as call:
            await call.reply()
            while data := await call.read(PIECE):
                self._guest.used()
                await self.write(data, datatype)

    async def _on_terminal(self, kind: str, cols: int, rows: int) -> None:
        environment = {**await self._environment(), "TERM": kind or "xterm"}
        command = [SHELL, "-c", self._command] if self._command is not None else None
        wanted = {"cols": cols, "rows": rows, "command": command, "env": environment, "title": "ssh"}
        self._terminal = terminal = str((await self._guest.ask("terminal.open", wanted))["id"])
        try:
            await self._show(terminal)
            known = {one["id"]: one for one in await self._guest.ask("terminal.list")}
            self._exit({"code": known.get(terminal, {}).get("exit")})
        finally:
            self._terminal = ""
            background.spawn(self._try("terminal.close", {"id": terminal}), name="ssh hang-up")

    async def _show(self, terminal: str) -> None:
        """Until its process has ended. Where the client did not read for long the guest lets go, and we come back."""
        offset = 0
        typing: asyncio.Task[None] | None = None
        try:
            while True:
                attach = {"id": terminal, "offset": offset}
                async with await self._guest.call("terminal.attach", attach, more=True) as call:
                    offset = int((await call.reply())["offset"])
                    typing = beside(self._type(call))
                    with contextlib.suppress(Unavailable):
                        while data := await call.read(PIECE):
                            await self.write(data)
                            offset += len(data)
                        return
                    await ended(typing)
        finally:
            if typing is not None:
                await ended(typing)

    async def _type(self, call: GuestCall) -> None:
        while data := await self.read():
            self._guest.used()
            await call.write(data)

    def _exit(self, status: Mapping[str, Any]) -> None:
        """Tell how it ended, and close the channel once everything was sent."""
        signal, code = status.get("signal"), status.get("code")
        if isinstance(signal, str) and signal.startswith("SIG"):
            self._chan.exit_with_signal(signal[3:][:20])
        else:
            self._chan.exit(code if isinstance(code, int) else FAILED)


def _size(cols: int, rows: int) -> tuple[int, int]:
    """A size that a terminal can have; clients without a window of their own say 0."""
    return min(cols or 80, LARGEST), min(rows or 24, LARGEST)
