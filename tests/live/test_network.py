"""A whole installation with a real guest: denied, told, allowed over REST, reached, forbidden again, and journalled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from deno_sandbox import DenoDeploy

from tests.installation import Installation, processes, reachable_directory
from tests.live.upstreams import Upstreams

# The SDK leaves its socket open when the server is killed under it
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def upstreams() -> Iterator[Upstreams]:
    made = Upstreams()
    yield made
    made.close()


@pytest.fixture(scope="module")
def installation(upstreams: Upstreams) -> Iterator[Installation]:
    settings = {
        "ATOLL_CLONES": "false",
        "ATOLL_EGRESS_INTERNAL_ALLOW": "127.0.0.1",
        "ATOLL_EGRESS_DNS": upstreams.resolver,
    }
    with reachable_directory() as place:
        running = Installation(place / "data", settings=settings)
        running.start()
        yield running
        running.stop()


@pytest.fixture(scope="module")
def sandbox(installation: Installation) -> Iterator[Any]:
    """A sandbox that may reach one host; the tests of this module use it in their order."""
    before = dict(os.environ)
    os.environ.update(installation.client_environment())
    held = DenoDeploy().sandbox.create(timeout="20m", allow_net=["good.example"])
    yield held.__enter__()
    with suppress(Exception):
        held.__exit__(None, None, None)
    os.environ.clear()
    os.environ.update(before)


class Rest:
    """The network of one sandbox over REST."""

    def __init__(self, installation: Installation, sandbox: str) -> None:
        self._headers = {"Authorization": f"Bearer {installation.token}"}
        self._network = f"{installation.url}/api/v1/sandboxes/{sandbox}/network"

    def _ask(self, method: str, path: str = "", **what: Any) -> Any:
        answer = httpx.request(method, self._network + path, headers=self._headers, timeout=20, **what)
        return answer.raise_for_status().json()

    def get(self, path: str = "", **query: Any) -> Any:
        return self._ask("GET", path, params=query)

    def put(self, allow: list[str], *, ask: bool = False) -> Any:
        return self._ask("PUT", json={"allow_net": allow, "ask_net": ask})

    def allow(self, *patterns: str) -> Any:
        return self._ask("POST", "/allow", json={"patterns": patterns})

    def hosts(self) -> list[str]:
        """Of every connection, oldest first."""
        return [one["host"] for one in reversed(self.get("/connections", limit=500))]


def until(condition: Callable[[], bool], what: str, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not after {patience:.0f} s: {what}"
        time.sleep(0.1)


def fetch(sandbox: Any, url: str) -> str:
    """The status that curl saw in the guest."""
    script = f"curl -s -m 20 -o /dev/null -w '%{{http_code}}' {url} > /tmp/status || true"
    sandbox.spawn("sh", args=["-c", script], stdout="null", stderr="null").wait()
    return str(sandbox.fs.read_text_file("/tmp/status"))


def test_denied_told_allowed_and_reached(installation: Installation, sandbox: Any, upstreams: Upstreams) -> None:
    """The denial says what would help; when the answer to that comes, the guest gets through at once."""
    rest = Rest(installation, sandbox.id)
    url = f"http://other.example:{upstreams.web}/"
    assert fetch(sandbox, url) == "403"
    until(lambda: bool(rest.get()["denials"]), "it was told", 15)
    (denial,) = rest.get()["denials"]
    assert (denial["host"], denial["remedy"]) == ("other.example", "allow")
    assert "other.example" not in upstreams.asked
    assert rest.allow(denial["pattern"])["applied"] is True
    assert fetch(sandbox, url) == "200"
    until(lambda: rest.hosts()[-2:] == ["other.example"] * 2, "both are journalled", 15)
    last = rest.get("/connections", limit=1)[0]
    assert (last["verdict"], last["rule"], last["port"]) == ("allowed", denial["pattern"], upstreams.web)
    assert last["received"] > 50


def test_a_rule_less_closes_what_is_open(installation: Installation, sandbox: Any, upstreams: Upstreams) -> None:
    """A connection that was held is reset within a second of the answer, and journalled as cut off."""
    rest = Rest(installation, sandbox.id)
    held = (
        "import socket, time\n"
        f"held = socket.create_connection(('good.example', {upstreams.greeter})); held.recv(8)\n"
        "open('/tmp/ready', 'w').close()\n"
        "try: held.recv(1); said = 'end'\n"
        "except OSError as error: said = type(error).__name__\n"
        "open('/tmp/said', 'w').write(said)\n"
    )
    sandbox.spawn("python3", args=["-c", held], stdout="null", stderr="null")

    def there(path: str) -> bool:
        with suppress(Exception):
            sandbox.fs.stat(path)
            return True
        return False

    until(lambda: there("/tmp/ready"), "the connection is open")
    assert rest.put([f"other.example:{upstreams.web}"])["applied"] is True
    until(lambda: there("/tmp/said"), "it is closed", 1.5)
    assert sandbox.fs.read_text_file("/tmp/said") == "ConnectionResetError"
    until(lambda: rest.get("/connections", limit=1)[0]["verdict"] == "cut", "it is journalled", 15)
    rest.put(["good.example"])


def test_a_person_is_asked_while_the_connection_waits(
    installation: Installation, sandbox: Any, upstreams: Upstreams
) -> None:
    """Nobody looks the host up before; with the answer curl in the guest gets its page."""
    rest = Rest(installation, sandbox.id)
    rest.put([], ask=True)
    script = (
        f"curl -s -m 50 -o /dev/null -w '%{{http_code}}' http://asked.example:{upstreams.web}/ > /tmp/asked || true"
    )
    waiting = sandbox.spawn("sh", args=["-c", script], stdout="null", stderr="null")
    until(lambda: bool(rest.get()["denials"]) and rest.get()["denials"][0]["host"] == "asked.example", "asked", 15)
    asked = rest.get()["denials"][0]
    assert asked["waits_until"] is not None
    assert "asked.example" not in upstreams.asked
    assert rest.allow(asked["pattern"])["applied"] is True
    waiting.wait()
    assert sandbox.fs.read_text_file("/tmp/asked") == "200"
    until(lambda: rest.hosts()[-1] == "asked.example", "it is journalled", 15)
    rest.put(["good.example"])


def kill(installation: Installation, word: str) -> None:
    until(lambda: bool(processes(installation.data, word)), f"{word} runs")
    for pid in processes(installation.data, word):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_no_death_loses_or_doubles_a_connection(installation: Installation, sandbox: Any, upstreams: Upstreams) -> None:
    """The worker is killed again and again while the guest connects, and then the node: all is there, once."""
    rest = Rest(installation, sandbox.id)
    before = len(rest.hosts())
    script = (
        "import urllib.request\n"
        "for n in range(60):\n"
        f"    urllib.request.urlopen('http://good.example:{upstreams.web}/', timeout=20).read()\n"
        "open('/tmp/done', 'w').close()\n"
    )
    process = sandbox.spawn("python3", args=["-c", script], stdout="null", stderr="null")
    for _ in range(3):
        time.sleep(2)
        kill(installation, "manage.py worker")
    process.wait()
    sandbox.fs.stat("/tmp/done")
    time.sleep(0.6)  # what a kill of the node may lose
    kill(installation, "manage.py node")
    until(lambda: len(rest.hosts()) >= before + 60, "all are journalled", 120)
    time.sleep(4)
    found = rest.get("/connections", limit=500)
    assert len(found) == before + 60
    assert len({one["number"] for one in found}) == len(found)
