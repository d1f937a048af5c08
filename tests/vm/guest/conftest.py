from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.vm.guest.host import Host

ROOT = Path(__file__).resolve().parents[3]


class RunningAgent:
    """An agent process on this host, and our end of its socket."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.connection, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "vm.guest.agent", "--fd", str(theirs.fileno()), "--home", str(home)]
        self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()

    def stop(self) -> None:
        self.connection.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    running = RunningAgent(tmp_path_factory.mktemp("home"))
    yield running
    running.stop()


@pytest.fixture
async def host(agent: RunningAgent) -> AsyncIterator[Host]:
    """A new link to the module's agent: every test begins with a resynchronisation."""
    linked = await Host(agent.connection).linked()
    yield linked
    await linked.close()


@pytest.fixture
def home(agent: RunningAgent, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own inside the agent's home."""
    place: Path = agent.home / request.node.name.replace("/", "_")[:80]
    place.mkdir()
    return place
