"""Secrets on a whole installation: no file of it has a value, and what dies gets them back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from deno_sandbox import DenoDeploy

from tests.installation import Installation, processes, reachable_directory
from tests.live.test_secrets import API, OTHER, Web
from tests.live.upstreams import Upstreams
from vm.api import MachineInfo
from vm.node.client import NodeClient

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
VALUE = "v4lue-that-no-file-has"
PLACEHOLDER = re.compile(rb"DENO_SECRET_PLACEHOLDER_[0-9a-f]{32,}")


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with reachable_directory() as place:
        running = Installation(place / "data")
        running.start()
        yield running
        running.stop()


@contextmanager
def browser(installation: Installation) -> Iterator[httpx.Client]:
    """The administrator's: the token that is printed may not change what is the organization's."""
    with httpx.Client(timeout=60) as client:
        link = installation.command("login-link").strip()
        client.get(link)
        client.post(link, data={"csrfmiddlewaretoken": client.cookies["atoll_csrf"]})
        client.headers["X-CSRFToken"] = client.cookies["atoll_csrf"]
        client.base_url = httpx.URL(f"{installation.url}/api/v1")
        yield client


@pytest.fixture(scope="module")
def rest(installation: Installation) -> Iterator[httpx.Client]:
    with browser(installation) as client:
        yield client


@pytest.fixture
def sdk(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> DenoDeploy:
    for name, value in installation.client_environment().items():
        monkeypatch.setenv(name, value)
    return DenoDeploy()


def until(condition: Callable[[], bool], what: str, patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not after {patience:.0f} s: {what}"
        time.sleep(0.2)


def machines(installation: Installation) -> list[MachineInfo]:
    client = NodeClient(installation.data / "run" / "node.sock", installation.data / "keys" / "node.key")
    return asyncio.run(client.machine_list())


def files_with(place: Path, what: bytes) -> list[str]:
    """Files below that hold the bytes, however large they are."""
    found = []
    for file in place.rglob("*"):
        if not file.is_file() or file.is_symlink():
            continue
        kept = b""
        with file.open("rb") as reader:
            while piece := reader.read(2**20):
                if what in kept + piece:
                    found.append(str(file.relative_to(place)))
                    break
                kept = piece[-len(what) :]
    return found


def workspace(rest: httpx.Client, name: str, **wanted: Any) -> str:
    made: str = rest.post("/sandboxes", json={"name": name, **wanted}).raise_for_status().json()["id"]
    becomes(rest, made, "running")
    return made


def becomes(rest: httpx.Client, sandbox: str, wanted: str) -> None:
    until(lambda: state(rest, sandbox) == wanted, f"it is not {wanted}")


def state(rest: httpx.Client, sandbox: str) -> Any:
    return rest.get(f"/sandboxes/{sandbox}").json()["state"]


def in_guest(sdk: DenoDeploy, sandbox: str, command: str) -> str:
    with sdk.sandbox.connect(sandbox) as there:
        process = there.spawn("sh", args=["-c", command], stdout="piped")
        out = process.stdout
        assert out is not None
        said = out.read().decode()
        process.wait()
        return str(said)


def test_no_file_has_the_value(installation: Installation, rest: httpx.Client, sdk: DenoDeploy) -> None:
    """Database, logs, records, disks and the saved memory of a suspended machine, which does have the placeholder."""
    body = {"name": "SHARED_KEY", "value": VALUE, "hosts": ["api.example.com"]}
    shared = rest.post("/secrets", json=body).raise_for_status().json()
    here = workspace(rest, "holds")
    placeholder = in_guest(sdk, here, "printf %s $SHARED_KEY")
    assert PLACEHOLDER.fullmatch(placeholder.encode())
    # Made while it runs: what starts after that has it, and a program that runs on has the old one's placeholder still.
    own = {"name": "OWN_KEY", "value": f"{VALUE}-own", "hosts": ["b.example"]}
    made = rest.post(f"/sandboxes/{here}/secrets", json=own).raise_for_status().json()
    assert in_guest(sdk, here, "printf %s $OWN_KEY") == made["placeholder"] != placeholder
    rotated = rest.post(f"/secrets/{shared['id']}/rotate", json={"value": f"{VALUE}-again"}).raise_for_status().json()
    assert (rotated["version"], rotated["pending"]) == (2, 0)
    fork = rest.post(f"/sandboxes/{here}/fork", json={}).raise_for_status().json()["id"]
    until(lambda: state(rest, fork) == "running", "the fork does not run")
    assert in_guest(sdk, fork, "printf %s,%s $SHARED_KEY $OWN_KEY") == f"{placeholder},{made['placeholder']}"
    assert rest.post(f"/sandboxes/{here}/suspend").status_code == 202
    until(lambda: state(rest, here) == "suspended", "it is not suspended")
    kept = files_with(installation.data, placeholder.encode())
    assert [name for name in kept if name.endswith("memory.save")]
    assert [name for name in kept if name.startswith("db/")]
    assert files_with(installation.data, VALUE.encode()) == []
    rest.post(f"/sandboxes/{here}/resume").raise_for_status()
    until(lambda: state(rest, here) == "running", "it does not run again")
    assert in_guest(sdk, here, "printf %s $SHARED_KEY") == placeholder
    assert rest.delete(f"/secrets/{made['id']}").status_code == 204
    assert in_guest(sdk, here, "printf %s ${OWN_KEY-none}") == "none"
    assert rest.delete(f"/sandboxes/{fork}").status_code == 204
    assert rest.delete(f"/sandboxes/{here}").status_code == 204
    assert rest.delete(f"/secrets/{shared['id']}").status_code == 204


def test_a_killed_node_is_told_again(installation: Installation, rest: httpx.Client, sdk: DenoDeploy) -> None:
    """The machines run on; the node that comes wants their secrets and has them within seconds."""
    secrets: Any = {"API_KEY": {"hosts": ["api.example.com"], "value": VALUE}}
    with sdk.sandbox.create(secrets=secrets, timeout="10m") as sandbox:
        placeholder = sandbox.env.get("API_KEY")
        for pid in processes(installation.data, "manage.py node"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: _told(installation), "the node still wants secrets")
        assert in_guest(sdk, sandbox.id, "printf %s $API_KEY") == placeholder
        sandbox.kill()


def test_another_key_while_all_goes_on(installation: Installation, rest: httpx.Client) -> None:
    """Root writes the key file, the service user the database, whose files stay his; web takes the new key at once."""
    key = installation.data / "keys" / "secrets.key"
    before, mode = key.read_text(), key.stat()
    assert (mode.st_uid, mode.st_mode & 0o777) == (0, 0o640)
    body = {"name": "KEPT", "value": VALUE, "hosts": ["api.example.com"]}
    made = rest.post("/secrets", json=body).raise_for_status().json()
    # That of a sandbox that is just ending may be there too.
    assert re.fullmatch(r"secrets sealed with the new key: [12]\n", installation.command("rotate-secrets-key"))
    after = key.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (mode.st_uid, mode.st_gid, mode.st_mode)
    assert before not in key.read_text()
    assert {file.owner() for file in (installation.data / "db").iterdir()} == {"atoll"}
    assert rest.post(f"/secrets/{made['id']}/rotate", json={"value": f"{VALUE}2"}).status_code == 200
    assert rest.delete(f"/secrets/{made['id']}").status_code == 204


@pytest.mark.parametrize("process", ["manage.py web", "manage.py worker", "manage.py node"])
def test_what_holds_values_writes_no_core(installation: Installation, process: str) -> None:
    """Neither to a file nor to a program; and no other process of its user reads its memory."""
    pids = [pid for pid in processes(installation.data, process) if "confine" not in _command(pid)]
    assert pids
    for pid in pids:
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0\s", limits)
        # The kernel gives what must not be dumped to root
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    assert json.loads((installation.data / "run" / "up.json").read_text())["pid"] not in pids


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with reachable_directory() as place:
        made = Web(place)
        made.authority.certificate.chmod(0o644)
        yield made
        made.close()


@pytest.fixture(scope="module")
def outside(web: Web) -> Iterator[Installation]:
    """An installation whose sandboxes reach servers of ours."""
    upstreams = Upstreams()
    settings = {
        "ATOLL_EGRESS_INTERNAL_ALLOW": "127.0.0.1",
        "ATOLL_EGRESS_DNS": upstreams.resolver,
        "ATOLL_EGRESS_CA_FILE": str(web.authority.certificate),
    }
    with reachable_directory() as place:
        running = Installation(place / "data", settings=settings)
        running.start()
        yield running
        running.stop()
    upstreams.close()


def test_the_whole_way(outside: Installation, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's secret arrives at its host and nowhere else, comes back as it left, and changes and ends at once."""
    for name, value in outside.client_environment().items():
        monkeypatch.setenv(name, value)
    secrets: Any = {"TOKEN": {"hosts": [API], "value": VALUE}}
    headers = {"Authorization": f"Bearer {outside.token}"}
    with (
        httpx.Client(base_url=f"{outside.url}/api/v1", headers=headers, timeout=60) as rest,
        DenoDeploy().sandbox.create(secrets=secrets, allow_net=[API, OTHER]) as sandbox,
    ):
        placeholder = sandbox.env.get("TOKEN")

        def say(host: str, *, key: str = "$TOKEN", own: str = "") -> tuple[str, str]:
            """What the guest read, and what the server got; `own` where it shows a certificate that no guest knows."""
            command = f'curl -sS {own} -m 60 -H "X-Key: {key}" https://{host}:{web.port}/'
            process = sandbox.spawn("sh", args=["-c", command], stdout="piped")
            assert process.stdout is not None
            said = process.stdout.read().decode().strip()
            assert process.wait()["success"], said
            return said, web.keys[-1][1]

        assert say(API) == (f"you said {placeholder}", VALUE)
        assert say(OTHER, own="--insecure") == (f"you said {placeholder}", placeholder)
        [secret] = rest.get(f"/sandboxes/{sandbox.id}/secrets").json()
        rest.post(f"/secrets/{secret['id']}/rotate", json={"value": f"{VALUE}-again"}).raise_for_status()
        assert say(API) == (f"you said {placeholder}", f"{VALUE}-again")
        for pid in processes(outside.data, "manage.py node"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: _told(outside), "the node still wants secrets")
        assert say(API) == (f"you said {placeholder}", f"{VALUE}-again")
        rest.delete(f"/secrets/{secret['id']}").raise_for_status()
        # A program that holds the placeholder still sends just that; one that starts now has no such variable.
        assert say(API, key=placeholder, own="--insecure") == (f"you said {placeholder}", placeholder)
        assert say(API, own="--insecure") == ("you said", "")
    assert files_with(outside.data, VALUE.encode()) == []


def test_secrets_go_with_a_workspace_through_all_that_becomes_of_it(
    outside: Installation, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspend, a fork, a stop, snapshots with memory and without, and a host that goes down: each time its host gets
    the value, the guest has a placeholder, and no image or file holds more."""
    for name, value in outside.client_environment().items():
        monkeypatch.setenv(name, value)
    sdk = DenoDeploy()

    def arrives(sandbox: str, placeholder: str = "") -> str:
        """Ask with what the guest has now; that, which is `placeholder` if one is named."""
        command = f'printf %s "$LASTING," && curl -sS -m 60 -H "X-Key: $LASTING" https://{API}:{web.port}/'
        held, _, said = in_guest(sdk, sandbox, command).strip().partition(",")
        assert PLACEHOLDER.fullmatch(held.encode())
        assert (said, web.keys[-1]) == (f"you said {held}", (API, VALUE))
        assert not placeholder or held == placeholder
        return held

    with browser(outside) as rest:
        body = {"name": "LASTING", "value": VALUE, "hosts": [API]}
        secret = rest.post("/secrets", json=body).raise_for_status().json()["id"]
        here = workspace(rest, "lasting", allow_net=[API])
        held = arrives(here)

        rest.post(f"/sandboxes/{here}/suspend").raise_for_status()
        becomes(rest, here, "suspended")
        rest.post(f"/sandboxes/{here}/resume").raise_for_status()
        becomes(rest, here, "running")
        arrives(here, held)

        fork = rest.post(f"/sandboxes/{here}/fork", json={}).raise_for_status().json()["id"]
        becomes(rest, fork, "running")
        arrives(fork, held)
        rest.delete(f"/sandboxes/{fork}").raise_for_status()

        for slug, memory in (("lasting-disk", False), ("lasting-memory", True)):
            rest.post(f"/sandboxes/{here}/snapshot", json={"slug": slug, "memory": memory}).raise_for_status()
            booted = workspace(rest, slug, root=slug, allow_net=[API])
            arrives(booted)
            assert in_guest(sdk, here, "printf %s $LASTING") == held
            rest.delete(f"/sandboxes/{booted}").raise_for_status()

        rest.post(f"/sandboxes/{here}/stop").raise_for_status()
        becomes(rest, here, "stopped")
        rest.post(f"/sandboxes/{here}/start").raise_for_status()
        becomes(rest, here, "running")
        arrives(here)

        outside.stop()
        assert "1 sandbox suspended" in outside.output
        outside.start()
        rest.post(f"/sandboxes/{here}/resume").raise_for_status()
        becomes(rest, here, "running")
        arrives(here)

        assert files_with(outside.data, VALUE.encode()) == []
        rest.delete(f"/sandboxes/{here}").raise_for_status()
        rest.delete(f"/secrets/{secret}").raise_for_status()


def _told(installation: Installation) -> bool:
    try:
        found = machines(installation)
    except Exception:
        return False  # it is not back yet
    return bool(found) and not any(info.policy_wanted for info in found)
