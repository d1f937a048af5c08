"""A real guest uses a secret that it never holds, and nothing on the host's disk ever does."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import http.server
import io
import json
import os
import secrets
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.live.nodes import BOOT, NodeProcess, execute, spec
from tests.live.upstreams import Upstreams
from tests.vm.egress.interceptor.scene import Authority
from vm.api import EgressPolicy, MachineState, Node, Secret
from vm.host.run import run

pytestmark = pytest.mark.live

VALUE = f"the-value-{secrets.token_hex(12)}"
API, OTHER = "api.example", "other.example"


class Web:
    """One server for every name, which repeats the key that it gets."""

    def __init__(self, place: Path) -> None:
        self.authority = Authority(place)
        self.keys: list[tuple[str, str]] = []
        keys = self.keys

        class Echo(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                key = self.headers.get("X-Key", "")
                keys.append((self.headers["Host"].partition(":")[0], key))
                body = f"you said {key}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
        context = self.authority.context(API, OTHER)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    made = Web(tmp_path_factory.mktemp("web"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def process(web: Web) -> Iterator[NodeProcess]:
    upstreams = Upstreams()
    running = NodeProcess.cloning(
        egress_internal_allow=("127.0.0.1",),
        egress_dns=upstreams.resolver,
        egress_ca_file=str(web.authority.certificate),
    )
    running.start()
    yield running
    running.close()
    upstreams.close()


TOKEN = Secret("TOKEN", f"DENO_SECRET_PLACEHOLDER_{secrets.token_hex(16)}", VALUE, [API])


@pytest.fixture(scope="module")
def machine(process: NodeProcess) -> str:
    """One machine for the module, which holds a placeholder."""
    name = secrets.token_hex(16)

    async def start() -> None:
        wanted = replace(spec(name, env={"TOKEN": TOKEN.placeholder}), policy=EgressPolicy([API, OTHER]))
        await process.client.machine_start(wanted, secrets=[TOKEN])
        info = await process.client.machine_wait(name, timeout=BOOT)
        assert info.state is MachineState.READY, info

    asyncio.run(start())
    return name


CLIENTS = {
    "curl": ("sh", "-c", 'curl -sS -m 60 -H "X-Key: $TOKEN" $URL'),
    "python": (
        *("python3", "-c"),
        "import os, urllib.request as u;"
        "print(u.urlopen(u.Request(os.environ['URL'], headers={'X-Key': os.environ['TOKEN']})).read().decode())",
    ),
    "node": (
        *("node", "-e"),
        "fetch(process.env.URL,{headers:{'X-Key':process.env.TOKEN}}).then(r=>r.text()).then(console.log)",
    ),
    "deno": (
        *("deno", "eval"),
        "console.log(await (await fetch(Deno.env.get('URL'),{headers:{'X-Key':Deno.env.get('TOKEN')}})).text())",
    ),
}


async def _say(node: Node, machine: str, client: str, url: str) -> tuple[int, str]:
    code, said = await execute(node, machine, "env", f"URL={url}", *CLIENTS[client], timeout=120)
    return code, said.decode()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_value_arrives_and_never_comes_back(node: Node, machine: str, web: Web, client: str) -> None:
    """Each client trusts the installation; its host gets the value, and the guest reads its own placeholder."""
    code, said = await _say(node, machine, client, f"https://{API}:{web.port}/")
    assert (code, web.keys[-1]) == (0, (API, VALUE)), said
    assert f"you said {TOKEN.placeholder}" in said


async def test_elsewhere_the_placeholder_travels(node: Node, machine: str, web: Web) -> None:
    """Another host sees what the guest holds, and its own certificate is not touched."""
    code, said = await _say(node, machine, "curl", f"https://{OTHER}:{web.port}/")
    assert code != 0, said  # the guest does not know the test's authority: nobody stood between
    _code, seen = await execute(
        node, machine, "sh", "-c", f'curl -sSk -m 60 -H "X-Key: $TOKEN" https://{OTHER}:{web.port}/', timeout=120
    )
    assert web.keys[-1] == (OTHER, TOKEN.placeholder), seen


async def test_a_denial_over_tls_is_read_in_the_guest(node: Node, machine: str) -> None:
    """curl prints which rule it was and what to do."""
    code, said = await execute(node, machine, "curl", "-sS", "-m", "60", "https://bad.example/", timeout=120)
    assert (code, b'add "bad.example:443"' in said) == (0, True), said


PACKAGE = "hello-private"
PROGRAMS = {
    "git": "git clone -q https://robot:$TOKEN@{place}/code.git && git -C code log --format=%s | grep 'private commit'",
    "pip": "pip download -q --no-deps -i https://robot:$TOKEN@{place}/simple/ hello-private && ls hello_private-1.0*",
    "npm": "echo '//{place}/npm/:_authToken=${{TOKEN}}' > .npmrc && "
    "npm pack --registry=https://{place}/npm/ hello-private && ls hello-private-1.0.0.tgz",
}


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, web: Web) -> Iterator[str]:
    """`host:port` of a Git repository and of registries like pip's and npm's, for who brings the value."""
    place = tmp_path_factory.mktemp("private")
    work, bare = place / "work", place / "code.git"
    run(["git", "init", "-q", work])
    author = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    run(["git", "-C", work, *author, "commit", "-q", "--allow-empty", "-m", "a private commit"])
    run(["git", "clone", "-q", "--bare", work, bare])
    run(["git", "-C", bare, "update-server-info"])

    wheel = "hello_private-1.0-py3-none-any.whl"
    (place / "simple" / PACKAGE).mkdir(parents=True)
    with zipfile.ZipFile(place / "simple" / PACKAGE / wheel, "w") as file:
        about = "hello_private-1.0.dist-info"
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: hello-private\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    (place / "simple" / PACKAGE / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')

    (place / "npm").mkdir()
    with tarfile.open(place / "npm" / "packed.tgz", "w:gz") as packed:
        manifest = json.dumps({"name": PACKAGE, "version": "1.0.0"}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(manifest)
        packed.addfile(member, io.BytesIO(manifest))

    class Private(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, _, told = self.headers.get("Authorization", "").partition(" ")
            known = (kind, told) == ("Bearer", VALUE)
            if known or (kind == "Basic" and base64.b64decode(told) == f"robot:{VALUE}".encode()):
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Private, directory=str(place)))
    server.socket = web.authority.context(API).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    here = f"{API}:{server.server_address[1]}"
    tarball = (place / "npm" / "packed.tgz").read_bytes()
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    dist = {"tarball": f"https://{here}/npm/packed.tgz", "integrity": f"sha512-{digest}"}
    version = {"name": PACKAGE, "version": "1.0.0", "dist": dist}
    (place / "npm" / PACKAGE).write_text(
        json.dumps({"name": PACKAGE, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield here
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("program", PROGRAMS)
async def test_private_registries_are_reached_with_a_secret(
    node: Node, machine: str, private: str, program: str
) -> None:
    """By name and password in the URL, and by a token in a file: what the guest has of it is the placeholder."""
    command = PROGRAMS[program].format(place=private)
    script = f"cd $(mktemp -d) && ({command}) 2>&1"
    code, said = await execute(node, machine, "timeout", "180", "sh", "-c", script, timeout=200)
    assert code == 0, said.decode()
    # Without the value there is nothing to be had
    refused = script.replace("$TOKEN", "nothing").replace("${TOKEN}", "nothing")
    code, said = await execute(
        node,
        machine,
        "env",
        "GIT_TERMINAL_PROMPT=0",
        "PIP_NO_INPUT=1",
        "timeout",
        "180",
        "sh",
        "-c",
        refused,
        timeout=200,
    )
    assert code not in (0, 124), said.decode()


def _interceptors() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if b"vm.egress.interceptor" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def _children(process: NodeProcess) -> list[int]:
    assert process.process is not None
    ours = process.process.pid
    return [pid for pid in _interceptors() if f"PPid:\t{ours}\n" in Path(f"/proc/{pid}/status").read_text()]


async def test_an_interceptor_that_is_killed_comes_back(
    process: NodeProcess, node: Node, machine: str, web: Web
) -> None:
    """It runs as a user of its own, its memory is nobody's to read, and after kill -9 another takes its place."""
    (pid,) = _children(process)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t0" not in status
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # not dumpable
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while True:
        code, said = await _say(node, machine, "curl", f"https://{API}:{web.port}/")
        if f"you said {TOKEN.placeholder}" in said:
            break
        assert time.monotonic() < until, (code, said)
    assert web.keys[-1] == (API, VALUE)
    assert pid not in _children(process)


def _holding(process: NodeProcess, value: str) -> list[str]:
    found = []
    for path in process.data.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                tail = b""
                while data := file.read(2**20):
                    if value.encode() in tail + data:
                        found.append(str(path))
                        break
                    tail = data[-200:]
    return found


async def test_after_a_restart_there_is_no_network_until_secrets_are_told(
    process: NodeProcess, node: Node, machine: str, web: Web
) -> None:
    """The next node does not know values: it says so, the guest is refused, and one call puts all of it right."""
    before = _children(process)
    process.kill()
    async with asyncio.timeout(10):
        while any(Path(f"/proc/{pid}").exists() for pid in before):
            await asyncio.sleep(0.05)
    process.start()
    assert (await node.machine_wait(machine, timeout=BOOT)).policy_wanted
    seen = len(web.keys)
    code, _said = await _say(node, machine, "curl", f"https://{API}:{web.port}/")
    assert (code, len(web.keys)) == (7, seen) or code == 6
    info = await node.machine_policy(machine, EgressPolicy([API, OTHER]), secrets=[TOKEN])
    assert not info.policy_wanted
    code, said = await _say(node, machine, "curl", f"https://{API}:{web.port}/")
    assert (code, web.keys[-1]) == (0, (API, VALUE)), said


async def test_no_file_of_the_installation_holds_the_value(
    process: NodeProcess, node: Node, machine: str, web: Web
) -> None:
    """Records, logs, disks, and the memory of the guest once it is suspended; its placeholder is found there."""
    await node.machine_suspend(machine)
    assert _holding(process, TOKEN.placeholder)
    assert not _holding(process, VALUE)
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    code, said = await _say(node, machine, "curl", f"https://{API}:{web.port}/")
    assert (code, web.keys[-1]) == (0, (API, VALUE)), said
