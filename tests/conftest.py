"""Fixtures every test may use: the database that was asked for, a node in memory, people and their organization."""

from __future__ import annotations

import gc
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import factories


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--database=postgres` runs the same tests on a PostgreSQL server started for them."""
    parser.addoption("--database", choices=("sqlite", "postgres"), default="sqlite", help="which database to test on")
    parser.addoption("--soak", type=float, default=60.0, metavar="SECONDS", help="how long soak tests go on")
    parser.addoption("--seed", type=int, default=None, help="what soak tests do in which order; default: never twice")


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """How long a soak test should go on."""
    return float(request.config.getoption("--soak"))


@pytest.fixture
def soak_seed(request: pytest.FixtureRequest) -> int:
    """What a soak test's random operations begin from; printed, so that one can be gone through again."""
    given = request.config.getoption("--seed")
    seed = random.randrange(2**32) if given is None else int(given)
    print(f"--seed={seed}")
    return seed


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, Any]]:
    """A PostgreSQL server of our own on a unix socket, run by an unprivileged user; Django's settings for it."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.fail("PostgreSQL is not installed here: make test installs it")
    folder = Path(tempfile.mkdtemp(prefix="atoll-pg-"))
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(folder, user)
        folder.chmod(0o755)  # an installation's own user comes to its socket

    def run(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(binaries / command[0]), *command[1:]],
            cwd=folder,
            user=user if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert run("initdb", "-D", f"{folder}/data", "-U", "atoll", "-A", "trust", "-N", "-E", "UTF8").wait() == 0
    server = run("postgres", "-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off")
    try:
        until = time.monotonic() + 30
        while run("pg_isready", "-h", str(folder), "-U", "atoll").wait() != 0:
            assert time.monotonic() < until, "PostgreSQL did not start"
            time.sleep(0.1)
        yield {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "atoll", "HOST": str(folder)}
    finally:
        server.send_signal(signal.SIGINT)  # a "fast" shutdown: it waits for no client
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    request: pytest.FixtureRequest, django_db_modify_db_settings_parallel_suffix: None
) -> None:
    """Put the database that was asked for in place before pytest-django makes it."""
    if request.config.getoption("--database") == "postgres":
        from django.db import connections

        wanted = request.getfixturevalue("postgres")
        connections.close_all()
        connections.__dict__.pop("settings", None)
        connections._settings = {"default": wanted}  # type: ignore[attr-defined]
        if hasattr(connections._connections, "default"):  # type: ignore[attr-defined]
            del connections["default"]


@pytest.fixture
def node() -> Iterator[Any]:
    """A node in memory, which the domain uses during the test; its agents are real programs."""
    from sandboxes import runtime
    from vm.fake import FakeNode

    made = FakeNode()
    runtime.use(lambda: made)
    yield made
    runtime.use(None)
    made.close()


@pytest.fixture
def quiet_database(transactional_db: None) -> Iterator[None]:
    """Waits, before its tables are emptied, for what a test left going on: a query in a thread cannot be cancelled."""
    yield
    from sandboxes import database

    everybody = threading.Barrier(database.THREADS + 1)
    for _ in range(database.THREADS):
        database.executor.submit(everybody.wait, 30)
    everybody.wait(30)


@pytest.fixture
def home(quiet_database: None) -> factories.Team:
    """An organization with an owner, an administrator, a member and a viewer."""
    return factories.team("home")


@pytest.fixture
def other(quiet_database: None) -> factories.Team:
    """Another organization."""
    return factories.team("other")


@pytest.fixture(autouse=True, scope="module")
def _sdk_leaves_sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """The Python SDK leaves its loop's transports to the garbage collector; that is no fault of what is tested here."""
    yield
    if request.path.parent.name in ("sdk", "live", "soak"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
