"""What a guest does to itself stays in it: its neighbours, its node and its own end are not affected."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from deno_sandbox import DenoDeploy

from tests import fork_bomb, hostile
from tests.sdk.conftest import Server

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HARM = {
    "fork bomb": ["python3", "-c", fork_bomb.PROGRAM],
    "rm -rf /": ["sudo", "rm", "-rf", "--no-preserve-root", "/"],
    # The shell's own: to procps' `kill` the last word is a second signal
    "kill of every process": ["sudo", "sh", "-c", "kill -9 -1"],
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


def happened(sandbox: Any, harm: str, bystander: int) -> bool:
    """Whether the sandbox has suffered it; one that does not answer just now may be about to."""
    if harm == "fork bomb":
        return fork_bomb.refused(sandbox.fs.read_text_file(fork_bomb.COUNTER)) > 0
    try:
        sandbox.fs.stat("/usr/bin/sudo" if harm == "rm -rf /" else f"/proc/{bystander}")
    except Exception as error:
        return "ENOENT" in str(error)
    return False


def test_a_full_disk_is_an_error_like_any_other(deploy: DenoDeploy) -> None:
    """A guest that has filled its own disk is told so by each call that needs room, and goes on when there is some."""
    with deploy.sandbox.create() as sandbox:
        # Room that is taken without being written: the host has less than a guest's 10 GB, maybe
        fill = "sudo fallocate -l $(df --output=avail -B1 / | tail -1) /full; sudo dd if=/dev/zero of=/rest bs=4k"
        sandbox.spawn("bash", args=["-c", f"{fill}; true"], stdout="null", stderr="null").wait()
        with pytest.raises(Exception, match="ENOSPC"):
            sandbox.fs.write_text_file("more.txt", "x" * 1_000_000)
        sandbox.spawn("sudo", args=["rm", "/full", "/rest"], stdout="null", stderr="null").wait()
        sandbox.fs.write_text_file("more.txt", "x" * 1_000_000)


@pytest.mark.parametrize("harm", HARM)
def test_harm_stays_inside(real_server: Server, deploy: DenoDeploy, harm: str) -> None:
    """The neighbour answers while it happens, and the harmed sandbox can be ended and says by whom."""
    with deploy.sandbox.create() as neighbour:
        harmed = deploy.sandbox.create(timeout="10m", memory_mb=fork_bomb.MEMORY_MIB)
        with harmed as sandbox:
            identifier = sandbox.id
            bystander = sandbox.spawn("sleep", args=["1000"]).pid
            command, *args = HARM[harm]
            sandbox.spawn(command, args=args, stdout="null", stderr="null")
            deadline = time.monotonic() + 240
            while not happened(sandbox, harm, bystander):
                assert time.monotonic() < deadline
                assert says(neighbour, harm)
                time.sleep(0.2)
            assert says(neighbour, harm)
            with real_server.rest() as rest:
                assert rest.delete(f"/api/v3/sandbox/{identifier}").status_code == 204
                deadline = time.monotonic() + 60
                while (row := rest.get(f"/api/v1/sandboxes/{identifier}").json())["state"] != "stopped":
                    assert time.monotonic() < deadline, row
                    time.sleep(0.2)
        assert (row["stop_reason"], row["stopped_by"]) == ("requested", row["creator"])
        assert says(neighbour, "alive")


@pytest.mark.parametrize("program", [hostile.FLOODER, hostile.CLOSER], ids=["floods", "closes"])
def test_a_broken_channel_is_the_guest_s_own_loss(real_server: Server, deploy: DenoDeploy, program: str) -> None:
    """Its row says that it does not answer, a call that its machine gave it up; the neighbour is well, and it can be
    stopped."""
    with deploy.sandbox.create() as neighbour, real_server.rest() as rest:

        def until(key: str, value: object) -> dict[str, Any]:
            deadline = time.monotonic() + 120
            while (row := rest.get(f"/api/v1/sandboxes/{sandbox.id}").json())[key] != value:
                assert time.monotonic() < deadline, row
                assert says(neighbour, "meanwhile")
                time.sleep(0.2)
            found: dict[str, Any] = row
            return found

        with deploy.sandbox.create(timeout="10m") as sandbox:
            sandbox.spawn("sudo", args=["python3", "-c", program], stdout="null", stderr="null")
            until("unresponsive", True)
            with pytest.raises(Exception, match=r"Isolate internal error: the machine's agent|sandbox's machine"):
                sandbox.fs.read_text_file("/etc/hostname")
            assert says(neighbour, "still")
            assert rest.delete(f"/api/v3/sandbox/{sandbox.id}").status_code == 204
            row = until("state", "stopped")
        assert (row["stop_reason"], row["stopped_by"]) == ("requested", row["creator"])
        assert says(neighbour, "alive")
