"""A running server for the official SDKs: on a node in memory, and, for tests marked live, a whole installation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from deno_sandbox import DenoDeploy

from tests.installation import CHECKOUT, Installation, free_port, free_ports, processes


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is, and tokens by name: `home`, and on a node in memory `other`, `home_viewer`, ..."""

    url: str
    tokens: dict[str, str]
    kind: str
    pid: int
    environment: dict[str, str] = field(default_factory=dict)
    data: Path = Path()

    @property
    def authority(self) -> Path:
        """What exposed ports have their certificate from."""
        return self.data / "keys" / "egress-ca.pem"

    def pids(self) -> list[int]:
        """The processes that what a guest sends goes through: web and node, which are one on a node in memory."""
        if self.kind == "fake":
            return [self.pid]
        return [*processes(self.data, "manage.py web"), *processes(self.data, "manage.py node")]

    def client_environment(self, who: str = "home") -> dict[str, str]:
        return {
            "DENO_SANDBOX_ENDPOINT": self.url,
            "DENO_DEPLOY_ENDPOINT": self.url,
            "DENO_DEPLOY_TOKEN": self.tokens[who],
            "NO_PROXY": "127.0.0.1,localhost",
            "NODE_EXTRA_CA_CERTS": str(self.authority),
            "DENO_CERT": str(self.authority),
        }

    def rest(self, who: str = "home") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.tokens[who]}"}, timeout=30)


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real web process on a node in memory: fast, and its guests are real agents on this host."""
    with fake_installation(tmp_path_factory.mktemp("fake"), boot_delay=0.2) as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, where a machine takes longer to boot than a handshake may take."""
    with fake_installation(tmp_path_factory.mktemp("slow"), boot_delay=12) as server:
        yield server


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, where no guest comes at all."""
    with fake_installation(tmp_path_factory.mktemp("empty"), boot_delay=60, ATOLL_TEST_NO_GUEST="yes") as server:
        yield server


@contextmanager
def fake_installation(folder: Path, *, boot_delay: float, **more: str) -> Iterator[Server]:
    """The real web process and gateway on a node in memory, in that directory."""
    data = folder / "data"
    data.mkdir()
    port = free_port()
    environment = {
        **os.environ,
        "ATOLL_DATA": str(data),
        "PYTHONPATH": str(CHECKOUT),
        # Its guests are agents on this host, and have what is in their image from the development environment
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ATOLL_TEST_BOOT_DELAY": str(boot_delay),
        "ATOLL_QUOTA_CREATES_PER_MINUTE": "0",
        "ATOLL_EXPOSE_PORTS": free_ports(),
        "ATOLL_SSH_PORT": str(free_port()),
        **more,
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    log = (data / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fake_server.py")), str(port)],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (data / "log").read_text()
        url = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            assert client.get(f"{url}/healthz").status_code == 200
        yield Server(url, json.loads(line), "fake", process.pid, environment, data)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        log.close()


@pytest.fixture(scope="session")
def real_server(postgres: dict[str, Any]) -> Iterator[Server]:
    """A whole installation with real machines, on PostgreSQL; the other modules' are on SQLite."""
    # Not below pytest's own directory, which every further pytest on this machine shuts for other users.
    folder = Path(tempfile.mkdtemp(prefix="atoll-real-"))
    folder.chmod(0o755)
    database = f"postgresql://{postgres['USER']}@/{postgres['NAME']}?host={postgres['HOST']}"
    installation = Installation(folder / "data", settings={"DATABASE_URL": database})
    installation.start()
    try:
        yield Server(installation.url, {"home": installation.token}, "real", installation.pid, data=folder / "data")
    finally:
        installation.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", params=["fake", pytest.param("real", marks=pytest.mark.live)])
def server(request: pytest.FixtureRequest) -> Server:
    """Each in turn: what is promised of machines holds on a real one, what is quick is found out on the other."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def sdk(server: Server, monkeypatch: pytest.MonkeyPatch) -> DenoDeploy:
    """The official Python SDK, pointed at the server."""
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    return DenoDeploy()
