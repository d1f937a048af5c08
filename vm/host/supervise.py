"""Runs the processes of an installation in the foreground: starts them in order, restarts what crashes, stops in order.

It is also the reaper of the host: QEMU daemonises, and libvirt waits for its zombie to go, so the supervisor makes
itself the subreaper and collects whatever ends up with it. It does not know what its children do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
LOG_LIMIT = 20 * 2**20
BACKOFF = (1.0, 2.0, 5.0, 10.0, 30.0)
QUIET_AFTER = 60.0  # seconds of life after which an earlier crash no longer counts

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans of our children come to us instead of to PID 1, also across restarts of those children."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


@dataclass(frozen=True, slots=True)
class Service:
    """One process to keep running. `ready` is asked until it is true; `patience` and `grace` are seconds.

    `beside`: it needs nothing of the one before it, and is started while that comes up.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], bool]
    patience: float = 60.0
    grace: float = 10.0
    beside: bool = False


class NotReady(Exception):
    """A service did not come up at the first start; the message is for the person who started it."""


@dataclass(slots=True)
class _Child:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    crashes: int = 0
    due: float = 0.0
    ended: int | None = None
    announced: bool = field(default=False)


class Supervisor:
    """Keeps `services` running, each writing to `<logs>/<name>.log`; `say` prints one line to the person."""

    def __init__(
        self, services: list[Service], *, cwd: Path, logs: Path, environment: dict[str, str], say: Callable[[str], None]
    ) -> None:
        self._children = [_Child(service) for service in services]
        self._cwd = cwd
        self._logs = logs
        self._environment = environment
        self._say = say
        self._asked_to_stop: str | None = None

    def start(self) -> None:
        """Start all in order, each when those that it needs are ready. NotReady after stopping what had started."""
        become_subreaper()
        # Blocked, so that the loop takes them one by one; children get an empty mask back
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        for number, child in enumerate(self._children):
            for one in (child, *takewhile(lambda other: other.service.beside, self._children[number + 1 :])):
                if not one.began:
                    self._launch(one)
            self._await_ready(child)

    def _await_ready(self, child: _Child) -> None:
        service = child.service
        until = time.monotonic() + service.patience
        while not service.ready():
            self._wait(0.05)
            if self._asked_to_stop is not None:
                raise NotReady(f"stopped by {self._asked_to_stop} while {service.name} was starting")
            if child.process is None:
                raise NotReady(
                    f"{service.name} ended while starting ({_status(child.ended)}): {self._last_words(service)}"
                )
            if time.monotonic() > until:
                raise NotReady(
                    f"{service.name} was not ready after {service.patience:.0f} s: {self._last_words(service)}"
                )
        self._say(f"{service.name} is ready ({time.monotonic() - child.began:.1f} s)")

    def run(self) -> str:
        """Watch until a stop is asked for; returns by what ("Ctrl-C", "make down")."""
        while self._asked_to_stop is None:
            self._wait(1.0)
            now = time.monotonic()
            for child in self._children:
                if child.process is None and now >= child.due:
                    self._launch(child)
                elif child.announced and child.process is not None and child.service.ready():
                    child.announced = False
                    self._say(f"{child.service.name} is back")
            self._bound_logs()
        return self._asked_to_stop

    def stop(self, *, keep: str = "") -> None:
        """Stop all but `keep` in reverse order, by SIGTERM and after its grace by SIGKILL. Repeatable."""
        for child in reversed(self._children):
            if child.process is None or child.service.name == keep:
                continue
            began = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
            killed = False
            while child.process is not None:
                self._reap()
                if not killed and time.monotonic() - began > child.service.grace:
                    child.process.kill()
                    killed = True
                time.sleep(0.02)
            word = "was killed" if killed else "stopped"
            self._say(f"{child.service.name} {word} ({time.monotonic() - began:.1f} s)")

    def _launch(self, child: _Child) -> None:
        with open(self._logs / f"{child.service.name}.log", "ab") as log:
            child.process = subprocess.Popen(
                child.service.argv,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to spread, in order
                preexec_fn=_before_exec,
            )
        child.began = time.monotonic()
        child.ended = None

    def _wait(self, seconds: float) -> None:
        got = signal.sigtimedwait(_WATCHED, seconds)
        if got is not None and got.si_signo != signal.SIGCHLD:
            self._asked_to_stop = "Ctrl-C" if got.si_signo == signal.SIGINT else "make down"
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self._ended(child)

    def _ended(self, child: _Child) -> None:
        assert child.process is not None  # noqa: S101 (for the type checker)
        child.ended = child.process.returncode
        child.process = None
        lived = time.monotonic() - child.began
        child.crashes = 1 if lived > QUIET_AFTER else child.crashes + 1
        delay = BACKOFF[min(child.crashes, len(BACKOFF)) - 1]
        child.due = time.monotonic() + delay
        if self._asked_to_stop is None:
            child.announced = True
            self._say(
                f"{child.service.name} ended unexpectedly ({_status(child.ended)}); starting it again in {delay:.0f} s "
                f"(its log: {self._logs / (child.service.name + '.log')})"
            )

    def _last_words(self, service: Service) -> str:
        path = self._logs / f"{service.name}.log"
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it said nothing'} (its log: {path})"

    def _bound_logs(self) -> None:
        for child in self._children:
            path = self._logs / f"{child.service.name}.log"
            try:
                if path.stat().st_size > LOG_LIMIT:
                    # The process goes on writing (O_APPEND) into the emptied file; a few lines between may be lost
                    older = path.with_suffix(".log.1")
                    older.write_bytes(path.read_bytes())
                    os.truncate(path, 0)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOSPC):
                    raise


_WATCHED = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def _before_exec() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    # A supervisor that was killed must not leave half an installation behind; machines are not its children
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _status(code: int | None) -> str:
    if code is None:
        return "not started"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
