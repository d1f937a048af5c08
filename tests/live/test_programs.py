"""The programs that people use in a sandbox reach what its list names through the gate, and nothing else."""

from __future__ import annotations

import functools
import http.server
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.live.nodes import BOOT, NodeProcess, execute, spec
from vm.api import EgressPolicy, MachineState, Node
from vm.host.run import run
from vm.net.addresses import own_addresses

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="module")]

HERE = next(address for address in own_addresses() if "." in address and not address.startswith("127."))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`address:port` of a web server of ours with a Git repository, /code.git, and a program, /program.js."""
    place = tmp_path_factory.mktemp("web")
    (place / "program.js").write_text("console.log('from', 'afar')\n")
    work, bare = str(place / "work"), str(place / "code.git")
    run(["git", "init", "-q", work])
    run(
        [
            "git",
            "-C",
            work,
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.example",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ]
    )
    run(["git", "clone", "-q", "--bare", work, bare])
    run(["git", "-C", bare, "update-server-info"])
    handler = functools.partial(_Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer((HERE, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{HERE}:{server.server_address[1]}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def process(repository: str) -> Iterator[NodeProcess]:
    running = NodeProcess.cloning(egress_internal_allow=(repository,))
    running.start()
    yield running
    running.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(process: NodeProcess, repository: str) -> AsyncIterator[str]:
    """One that may reach the registries that its own tools are configured for, and our repository."""
    node: Node = process.client
    registries = (await node.host_info()).registries
    made = secrets.token_hex(16)
    await node.machine_start(replace(spec(made), policy=EgressPolicy([*registries, repository])))
    info = await node.machine_wait(made, timeout=BOOT)
    assert info.state is MachineState.READY, info
    yield made
    await node.machine_stop(made)
    await node.machine_forget(made)


SLOW = 180  # seconds: apt alone takes a minute under emulation
_TIMED_OUT = 124

WORKING = {
    "apt-get": "sudo apt-get -qq update && cd /tmp && apt-get -q download hello && ls hello_*.deb",
    "pip": "cd /tmp && pip download -q --no-deps idna && ls idna-*",
    "npm": "cd /tmp && npm pack is-number && ls is-number-*.tgz",
    "git": "cd /tmp && git clone -q http://{repository}/code.git && git -C code log --format=%s | grep x",
    "curl": "curl -sSf http://{repository}/program.js",
    "deno": "deno run -q --no-config --allow-import={repository} http://{repository}/program.js",
}
ELSEWHERE = {
    "apt-get": "cd /tmp && echo 'deb [trusted=yes] http://elsewhere.example/ x main' > x.list && "
    "sudo apt-get update -o Dir::Etc::SourceList=/tmp/x.list -o Dir::Etc::SourceParts=- -o APT::Update::Error-Mode=any",
    "pip": "pip download -q --retries 0 -i https://elsewhere.example/simple -d /tmp/none idna",
    "npm": "cd /tmp && npm pack --fetch-retries=0 --registry=https://elsewhere.example is-odd",
    "git": "git clone -q https://elsewhere.example/code.git /tmp/none",
    "curl": "curl -sSf https://elsewhere.example/",
    "deno": "deno run -q --no-config --allow-import http://elsewhere.example/program.js",
}


@pytest.mark.parametrize("program", WORKING)
async def test_a_program_works_through_the_gate(
    process: NodeProcess, machine: str, repository: str, program: str
) -> None:
    """With the list, and without a word about a proxy; a host that is not on it fails at once, not after a while."""
    tried = {"here": WORKING[program].format(repository=repository), "elsewhere": ELSEWHERE[program]}
    ended: dict[str, tuple[int, bytes]] = {}
    for where, command in tried.items():
        argv = ["timeout", str(SLOW), "bash", "-c", f"({command}) 2>&1"]
        ended[where] = await execute(process.client, machine, *argv, timeout=SLOW + 20)
    assert ended["here"][0] == 0, ended["here"][1].decode()
    assert ended["elsewhere"][0] not in (0, _TIMED_OUT), ended["elsewhere"][1].decode()
