"""What a guest does to itself stays in it: its neighbours, its node and its own end are not affected."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from deno_sandbox import DenoDeploy

from tests.sdk.conftest import Server

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HARM = {
    "fork bomb": "bomb() { bomb | bomb & }; bomb",
    "rm -rf /": "sudo rm -rf --no-preserve-root / 2>/dev/null",
    "filling the disk": "head -c 20G /dev/zero > /home/app/full",
    "killed init": "sudo kill -9 -1",
}


@pytest.fixture(scope="module")
def deploy(real_server: Server) -> Iterator[DenoDeploy]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in real_server.client_environment().items():
            patch.setenv(name, value)
        yield DenoDeploy()


def says(sandbox: Any, word: str) -> bool:
    process = sandbox.spawn("echo", args=[word], stdout="piped")
    answered: bool = process.stdout.read() == f"{word}\n".encode()
    process.wait()
    return answered


@pytest.mark.parametrize("harm", HARM)
def test_harm_stays_inside(real_server: Server, deploy: DenoDeploy, harm: str) -> None:
    """The neighbour answers while it happens, and the harmed sandbox can be ended and says by whom."""
    with deploy.sandbox.create() as neighbour:
        harmed = deploy.sandbox.create(timeout="10m")
        with harmed as sandbox:
            identifier = sandbox.id
            sandbox.spawn("bash", args=["-c", HARM[harm]], stdout="null", stderr="null")
            time.sleep(5)
            assert says(neighbour, harm)
            with real_server.rest() as rest:
                assert rest.delete(f"/api/v3/sandbox/{identifier}").status_code == 204
                deadline = time.monotonic() + 60
                while (row := rest.get(f"/api/v1/sandboxes/{identifier}").json())["state"] != "stopped":
                    assert time.monotonic() < deadline, row
                    time.sleep(0.2)
        assert row["stop_reason"] in ("requested", "guest_crashed", "guest_shutdown"), row
        assert says(neighbour, "alive")
