"""A whole installation as a user gets it by `make up`, in a directory of its own: for tests and for the bench."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE = 900.0  # seconds: the first start on a machine builds the guest image


@contextmanager
def reachable_directory() -> Iterator[Path]:
    """A temporary directory that the service users may pass through; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="atoll-test-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


def free_port() -> int:
    """A TCP port on loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(count: int = 10) -> str:
    """A range of as many ports that nobody uses now, as ATOLL_EXPOSE_PORTS has it; below those that are handed out."""
    while True:
        first = random.randrange(11_000, 32_000)
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return f"{first}-{first + count - 1}"
        except OSError:
            continue


def processes(data: Path, word: str) -> list[int]:
    """Pids of the processes of the installation on `data` that have `word` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (path.parent / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if word in line and (str(data) in line or f"ATOLL_DATA={data}\0" in environment):
            found.append(int(path.parent.name))
    return found


class Installation:
    """Runs `manage.py up` on `data`; `settings` are further variables of docs/settings.md."""

    def __init__(self, data: Path, *, settings: dict[str, str] | None = None) -> None:
        self.data = data
        self.port = free_port()
        self.environment = {
            **os.environ,
            "ATOLL_DATA": str(data),
            "ATOLL_PORT": str(self.port),
            # tests take machines as they need them; the default quota has tests of its own
            "ATOLL_QUOTA_CONCURRENT": "50",
            "ATOLL_QUOTA_CREATES_PER_MINUTE": "0",
            # several installations share this host's ports
            "ATOLL_EXPOSE_PORTS": free_ports(),
            "ATOLL_SSH_PORT": str(free_port()),
            # and count what is left
            "ATOLL_STRAY_HOURS": "0",
            **(settings or {}),
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """What `up` has printed so far."""
        return (self.data / "up.out").read_text()

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it is ready; RuntimeError with its output if it ended instead."""
        if self._process is not None:
            self._process.wait()  # it was killed by a test
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o755)
        with (self.data / "up.out").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "manage.py", "up"],
                cwd=CHECKOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        said = self.data / "run" / "up.json"
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"up ended with {self._process.returncode}:\n{self.output}")
            try:
                found = json.loads(said.read_text())
                if found["pid"] == self._process.pid:
                    self.token = found["token"]
                    return
            except (FileNotFoundError, json.JSONDecodeError):
                pass
            if time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"up was not ready after {PATIENCE:.0f} s:\n{self.output}")
            time.sleep(0.1)

    def command(self, *arguments: str) -> str:
        """What another `manage.py` command prints for this installation."""
        return subprocess.check_output(
            [sys.executable, "manage.py", *arguments], cwd=CHECKOUT, env=self.environment, text=True
        )

    def client_environment(self) -> dict[str, str]:
        """The variables that point an official SDK here."""
        return {
            "DENO_SANDBOX_ENDPOINT": self.url,
            "DENO_DEPLOY_ENDPOINT": self.url,
            "DENO_DEPLOY_TOKEN": self.token,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def stop(self) -> None:
        """Stop as Ctrl-C does, and wait for it. Repeatable."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
