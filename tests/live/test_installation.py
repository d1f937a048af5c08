"""A whole installation as `make up` runs it, and what happens to it when its processes are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from deno_sandbox import DenoDeploy

from tests.installation import CHECKOUT, Installation, processes, reachable_directory
from vm.host.run import run
from vm.image.build import DEFAULT_CACHE

# The SDK leaves its socket open when the server is killed under it
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    """One installation for this module's tests, in their order."""
    with reachable_directory() as place:
        # No templates and clones: what is left on the host is to be counted
        running = Installation(place / "data", settings={"ATOLL_CLONES": "false"})
        running.start()
        yield running
        running.stop()


@pytest.fixture
def sdk(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> DenoDeploy:
    """The official SDK, pointed at it."""
    for name, value in installation.client_environment().items():
        monkeypatch.setenv(name, value)
    return DenoDeploy()


def until(condition: Callable[[], bool], what: str, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not after {patience:.0f} s: {what}"
        time.sleep(0.1)


def asked(installation: Installation, method: str, path: str, **more: Any) -> Any:
    """What REST answers about sandboxes."""
    answer = httpx.request(
        method,
        f"{installation.url}/api/v1/sandboxes{path}",
        headers={"Authorization": f"Bearer {installation.token}"},
        timeout=10,
        **more,
    ).raise_for_status()
    return answer.json() if answer.content else None


def listed(installation: Installation) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = asked(installation, "GET", "")
    return rows


def up(installation: Installation) -> bool:
    try:
        return httpx.get(f"{installation.url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def kill(installation: Installation, word: str) -> None:
    pids = processes(installation.data, word)
    assert pids, f"no process of {word}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_says_how_to_get_in(installation: Installation) -> None:
    """What `up` prints has a sign-in link that works once, a token, and a snippet for the SDK."""
    link = re.search(r"http://\S+/login/\S+", installation.output)
    assert link is not None
    assert installation.token.startswith("ddo_")
    assert installation.token in installation.output
    assert "from deno_sandbox import DenoDeploy" in installation.output
    assert httpx.get(link[0], timeout=10).status_code == 200


def trusted(authorities: Path) -> list[Any]:
    """What Python takes from a file of certificates."""
    return list(ssl.create_default_context(cafile=authorities).get_ca_certs())


def test_the_environment_is_printed_for_the_running_server(installation: Installation, tmp_path: Path) -> None:
    """`make -s env` prints exports that a shell takes, and fails with what to do while no server runs."""
    lines = installation.command("client_env").splitlines()
    assert f"export DENO_SANDBOX_ENDPOINT={installation.url}" in lines
    assert f"export DENO_DEPLOY_TOKEN={installation.token}" in lines
    authorities = installation.data / "run" / "client-ca.pem"
    assert {f"export {name}={authorities}" for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")} <= set(lines)
    subjects = [dict(part[0] for part in one["subject"]) for one in trusted(authorities)]
    assert len(subjects) > 100, "the world's are there, too"
    assert any("Atoll" in subject.get("commonName", "") for subject in subjects)
    other = {**installation.environment, "ATOLL_DATA": str(tmp_path)}
    (tmp_path / "keys").mkdir()
    argv = [sys.executable, "manage.py", "client_env"]
    done = subprocess.run(argv, cwd=CHECKOUT, env=other, capture_output=True, text=True, check=False)  # noqa: TID251
    assert done.returncode != 0
    assert done.stderr.strip().endswith('start it with "make up"')


def test_a_second_start_is_refused_in_one_line(installation: Installation) -> None:
    """Two supervisors on one data root would tear at the same machines."""
    argv = [sys.executable, "manage.py", "up"]
    done = subprocess.run(  # noqa: TID251
        argv, cwd=CHECKOUT, env=installation.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "runs here already" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_clear_line(installation: Installation) -> None:
    """The message names the port and the setting that changes it."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        data = installation.data.parent / "other"
        other = {**installation.environment, "ATOLL_DATA": str(data), "ATOLL_PORT": str(port)}
        argv = [sys.executable, "manage.py", "up"]
        done = subprocess.run(argv, cwd=CHECKOUT, env=other, capture_output=True, text=True, check=False)  # noqa: TID251
    assert done.returncode != 0
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert f"ATOLL_PORT={port + 1}" in done.stderr


def test_an_unreachable_data_root_is_one_clear_line(installation: Installation, tmp_path: Path) -> None:
    """A place that the service user cannot reach is named, with what to do."""
    tmp_path.chmod(0o700)
    other = {**installation.environment, "ATOLL_DATA": str(tmp_path / "data")}
    argv = [sys.executable, "manage.py", "up"]
    done = subprocess.run(argv, cwd=CHECKOUT, env=other, capture_output=True, text=True, check=False)  # noqa: TID251
    assert done.returncode != 0
    assert "the user atoll may not pass through" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("filled", "said"), [(0, " MiB are free at "), (64, "No space left on device")])
def test_a_full_disk_is_one_clear_line(installation: Installation, filled: int, said: str) -> None:
    """What is wrong with which place, and the setting for another; also where not even a key can be written."""
    with reachable_directory() as place:
        run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place])
        try:
            with suppress(OSError), (place / "filler").open("wb") as filler:
                filler.write(bytes(filled * 2**20))
            other = {**installation.environment, "ATOLL_DATA": str(place / "data")}
            argv = [sys.executable, "manage.py", "up"]
            done = subprocess.run(argv, cwd=CHECKOUT, env=other, capture_output=True, text=True, check=False)  # noqa: TID251
        finally:
            run(["umount", place])
    assert done.returncode != 0
    [line] = done.stderr.strip().splitlines()
    assert said in line
    assert "make room, or set " in line


def owners(installation: Installation, word: str) -> set[str]:
    return {Path(f"/proc/{pid}").owner() for pid in processes(installation.data, word)}


def test_only_the_node_runs_as_root(installation: Installation, sdk: DenoDeploy) -> None:
    """web and worker run as the service user, QEMU as its own."""
    for word in ("manage.py web", "manage.py worker"):
        assert owners(installation, word) == {"atoll"}
    assert owners(installation, "manage.py node") == {"root"}
    with sdk.sandbox.create():
        # One that is just being started for the pool is root's until it has become the other's
        until(lambda: owners(installation, "qemu-system") == {"atoll-qemu"}, "all of QEMU is its own user's")


def test_kill_9_of_web_leaves_the_machines(installation: Installation, sdk: DenoDeploy) -> None:
    """A sandbox with a duration outlives the web process, and is connected to again through the next one."""
    with sdk.sandbox.create(timeout="10m") as sandbox:
        sandbox.fs.write_text_file("kept.txt", "kept")
        identity = sandbox.id
        kill(installation, "manage.py web")
        until(lambda: up(installation), "web is back")
        with sdk.sandbox.connect(identity) as again:
            assert again.fs.read_text_file("kept.txt") == "kept"
            again.kill()


def test_kill_9_of_web_ends_session_sandboxes(installation: Installation, sdk: DenoDeploy) -> None:
    """A session sandbox whose connection died with web is ended, and says so."""
    sandbox = sdk.sandbox.create().__enter__()
    kill(installation, "manage.py web")
    until(lambda: up(installation), "web is back")

    def row() -> dict[str, object]:
        return next(row for row in listed(installation) if row["id"] == sandbox.id)

    until(lambda: row()["state"] == "stopped", "the session sandbox is stopped", 180)
    assert row()["stop_reason"] == "session_ended"


def test_kill_9_of_node_leaves_the_machines(installation: Installation, sdk: DenoDeploy) -> None:
    """A machine and its processes go on without the node, and the next node adopts them."""
    with sdk.sandbox.create(timeout="10m") as sandbox:
        counting = "for i in $(seq 600); do echo $i > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done"
        process = sandbox.spawn("bash", args=["-c", counting])
        kill(installation, "manage.py node")

        def answers() -> bool:
            try:
                return int(sandbox.fs.read_text_file("/tmp/count")) > 0
            except Exception:
                return False

        until(answers, "the sandbox answers through the new node")
        first = int(sandbox.fs.read_text_file("/tmp/count"))
        until(lambda: int(sandbox.fs.read_text_file("/tmp/count").strip() or 0) > first, "its process goes on")
        assert process.pid > 0
        sandbox.kill()


def test_kill_9_of_everything_is_settled_at_the_next_start(installation: Installation, sdk: DenoDeploy) -> None:
    """After the next start nothing runs that no row names, every row says why it stopped, a workspace has its disk."""
    sandbox = sdk.sandbox.create().__enter__()
    workspace = str(asked(installation, "POST", "", json={"kind": "workspace", "name": "kept"})["id"])
    until(lambda: row_of(installation, workspace)["state"] == "running", "the workspace runs", 120)
    with sdk.sandbox.connect(workspace) as inside:
        inside.fs.write_text_file("work.txt", "not lost")
        inside.spawn("sync").wait()
    kill(installation, "manage.py up")
    for word in ("manage.py node", "manage.py web", "manage.py worker", "qemu-system"):
        for pid in processes(installation.data, word):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(installation.data, "manage.py"), "all is dead")
    installation.start()
    until(lambda: all(row["state"] == "stopped" for row in listed(installation)), "every row is settled", 180)
    assert row_of(installation, workspace)["stop_reason"] == "hypervisor_died"
    # Its connection has ended as well, and either is told first
    assert row_of(installation, sandbox.id)["stop_reason"] in ("session_ended", "hypervisor_died")
    assert all(row["state_reason"] for row in listed(installation))
    assert processes(installation.data, "qemu-system") == []
    assert left_on_the_host(installation) == []
    asked(installation, "POST", f"/{workspace}/start")
    until(lambda: row_of(installation, workspace)["state"] == "running", "the workspace runs again", 120)
    with sdk.sandbox.connect(workspace) as inside:
        assert inside.fs.read_text_file("work.txt") == "not lost"
    asked(installation, "POST", f"/{workspace}/stop")
    until(lambda: row_of(installation, workspace)["state"] == "stopped", "the workspace has stopped")


def test_kill_9_of_the_supervisor_leaves_the_machines(installation: Installation, sdk: DenoDeploy) -> None:
    """Its processes end with it, the machines run on, and the next start takes them over with all that they hold."""
    workspace = str(asked(installation, "POST", "", json={"kind": "workspace", "name": "held"})["id"])
    until(lambda: row_of(installation, workspace)["state"] == "running", "the workspace runs", 120)
    with sdk.sandbox.connect(workspace) as inside:
        inside.spawn("sh", args=["-c", "echo kept > /dev/shm/note"], stdout="null", stderr="null").wait()
    machines = processes(installation.data, "qemu-system")
    kill(installation, "manage.py up")
    until(lambda: not processes(installation.data, "manage.py"), "its processes have ended")
    assert processes(installation.data, "qemu-system") == machines
    installation.start()
    until(lambda: row_of(installation, workspace)["state"] == "running", "the workspace runs on")
    with sdk.sandbox.connect(workspace) as inside:
        assert inside.fs.read_text_file("/dev/shm/note") == "kept\n"
    assert processes(installation.data, "qemu-system") == machines
    asked(installation, "DELETE", f"/{workspace}")
    until(lambda: workspace not in {row["id"] for row in listed(installation)}, "it is deleted")


def test_a_host_that_was_restarted_without_warning(installation: Installation, sdk: DenoDeploy) -> None:
    """What ran says so and starts on its disk, as after a power cut; what was suspended has its memory still."""
    names = {}
    for name in ("ran", "rested"):
        names[name] = str(asked(installation, "POST", "", json={"kind": "workspace", "name": name})["id"])
        until(lambda name=name: row_of(installation, names[name])["state"] == "running", f"{name} runs", 120)  # type: ignore[misc]
        with sdk.sandbox.connect(names[name]) as inside:
            script = "echo kept > ~/note; sync; echo kept > /dev/shm/note"
            inside.spawn("sh", args=["-c", script], stdout="null", stderr="null").wait()
    asked(installation, "POST", f"/{names['rested']}/suspend")
    until(lambda: row_of(installation, names["rested"])["state"] == "suspended", "it is suspended")
    kill(installation, "manage.py up")
    for word in ("manage.py", "qemu-system"):
        for pid in processes(installation.data, word):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(installation.data, "manage.py"), "all is dead")
    for record in installation.data.glob("machines/*/machine.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    installation.start()
    until(lambda: row_of(installation, names["ran"])["state"] == "stopped", "its end is written down")
    found = {name: row_of(installation, public_id) for name, public_id in names.items()}
    assert (found["ran"]["stop_reason"], found["ran"]["next_step"]) == ("host_restarted", "start")
    assert (found["rested"]["state"], found["rested"]["next_step"]) == ("suspended", "resume")
    asked(installation, "POST", f"/{names['ran']}/start")
    for name, held in (("ran", "~/note"), ("rested", "/dev/shm/note")):
        with sdk.sandbox.connect(names[name]) as inside:
            assert inside.spawn("sh", args=["-c", f"cat {held}"], stdout="piped").stdout.read() == b"kept\n"
        asked(installation, "DELETE", f"/{names[name]}")
    until(lambda: not set(names.values()) & {row["id"] for row in listed(installation)}, "they are deleted")


def test_what_is_woken_while_it_goes_down_rests_all_the_same(installation: Installation, sdk: DenoDeploy) -> None:
    """Somebody resumes a workspace again and again: its memory is kept as that of others, and its row says why."""
    workspace = str(asked(installation, "POST", "", json={"kind": "workspace", "name": "woken"})["id"])
    until(lambda: row_of(installation, workspace)["state"] == "running", "the workspace runs", 120)
    with sdk.sandbox.connect(workspace) as inside:
        inside.spawn("sh", args=["-c", "echo kept > /dev/shm/note"], stdout="null", stderr="null").wait()
    over = threading.Event()
    woken = 0

    def wake() -> None:
        nonlocal woken
        while not over.wait(0.1):
            with suppress(httpx.HTTPError):
                asked(installation, "POST", f"/{workspace}/resume")
                woken += 1

    waking = threading.Thread(target=wake)
    waking.start()
    try:
        installation.stop()
    finally:
        over.set()
        waking.join()
    assert processes(installation.data, "") == []
    assert left_on_the_host(installation) == []
    installation.start()
    row = row_of(installation, workspace)
    assert (row["state"], row["stop_reason"]) == ("suspended", "host_shutdown")
    assert woken
    with sdk.sandbox.connect(workspace) as inside:
        assert inside.fs.read_text_file("/dev/shm/note") == "kept\n"
    asked(installation, "DELETE", f"/{workspace}")
    until(lambda: workspace not in {row["id"] for row in listed(installation)}, "it is deleted")


def test_going_down_brings_all_to_rest_in_order(installation: Installation, sdk: DenoDeploy) -> None:
    """Sandboxes first, then gateway, worker, web and node; nothing is left running, mounted or in a namespace."""
    held = sdk.sandbox.create(timeout="10m")  # by name: the SDK hangs up when it is collected
    sandbox = held.__enter__()
    # One that is still starting cannot be suspended
    sandbox.spawn("sh", args=["-c", "echo kept > /dev/shm/note"], stdout="null", stderr="null").wait()
    until(lambda: row_of(installation, sandbox.id)["state"] == "running", "its row says so, too")
    assert len(left_on_the_host(installation)) >= 2  # its namespace, and where that is mounted
    installation.stop()
    said = [line.split(" (")[0] for line in installation.output.splitlines()]
    stopped = [f"{name} stopped" for name in ("gateway", "worker", "web", "node")]
    assert said[-5:] == ["1 sandbox suspended", *stopped]
    assert processes(installation.data, "") == []
    assert left_on_the_host(installation) == []


def test_run_again_it_is_ready_soon_and_changes_nothing(installation: Installation, sdk: DenoDeploy) -> None:
    """No step of the first start is taken again: same token, same image, same keys, and only starting takes time.
    What was suspended when it went down goes on with its memory."""
    before = kept(installation), installation.token
    installation.start()
    assert (kept(installation), installation.token) == before
    lines = [line.split(" (")[0] for line in installation.output.split("Open ")[0].splitlines() if line.strip()]
    assert lines == ["node is ready", "web is ready", "worker is ready", "gateway is ready", "Atoll is ready"]
    seconds = re.search(r"Atoll is ready \(([0-9.]+) s\)", installation.output)
    assert seconds is not None
    # The promise is for a host of its own; one that also runs other tests gives us our share of its time
    assert float(seconds[1]) < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    (row,) = [row for row in listed(installation) if row["state"] == "suspended"]
    with sdk.sandbox.connect(str(row["id"])) as inside:
        assert inside.fs.read_text_file("/dev/shm/note") == "kept\n"
        inside.kill()


def row_of(installation: Installation, public_id: str) -> dict[str, object]:
    """One sandbox as REST shows it."""
    return next(row for row in listed(installation) if row["id"] == public_id)


def kept(installation: Installation) -> dict[str, bytes]:
    """Keys by name, and the names of the guest images."""
    keys = {path.name: path.read_bytes() for path in (installation.data / "keys").iterdir()}
    return keys | {name: b"" for name in os.listdir(DEFAULT_CACHE)}


def test_make_down_stops_it_too(installation: Installation) -> None:
    """`manage.py down` returns when all has ended; where nothing runs it says so, and is no error."""
    assert installation.command("down").strip() == "stopped."
    for word in ("manage.py node", "manage.py web", "manage.py worker", "manage.py gateway"):
        assert processes(installation.data, word) == []
    assert installation.output.splitlines()[-1].startswith("node stopped")
    assert installation.command("down").strip() == "Atoll does not run here."


def left_on_the_host(installation: Installation) -> list[str]:
    """Namespaces, taps and mounts of this installation's machines."""
    tag = json.loads((installation.data / "machines" / "node.json").read_text())["tag"]
    names = [*os.listdir("/run/netns"), *os.listdir("/sys/class/net")]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        *(name for name in names if name.startswith((f"atoll-{tag}-", f"t{tag}"))),
        *(place for place in mounts if f"/atoll-{tag}-" in place or place.startswith(str(installation.data))),
    ]
