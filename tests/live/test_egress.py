"""A real guest reaches what its policy allows and nothing else, however it came to run and whatever its node does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.live.nodes import BOOT, SMALL, NodeProcess, execute, spec, start_command
from tests.live.test_fast_path import pool_is_ready
from tests.live.upstreams import Upstreams
from vm.api import EgressPolicy, MachineInfo, MachineState, Node, Origin
from vm.errors import HypervisorError

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def upstreams() -> Iterator[Upstreams]:
    made = Upstreams()
    yield made
    made.close()


@pytest.fixture(scope="module")
def process(upstreams: Upstreams) -> Iterator[NodeProcess]:
    running = NodeProcess(
        seeded=[SMALL],
        clones=True,
        warm=(512, 1, 10),
        pool_floor=1,
        pool_ceiling=1,
        egress_internal_allow=("127.0.0.1",),
        egress_dns=upstreams.resolver,
    )
    running.start()
    yield running
    running.close()


async def start(node: Node, *, allow: list[str] | None, image: str = "") -> tuple[str, MachineInfo]:
    machine = secrets.token_hex(16)
    await node.machine_start(replace(spec(machine), policy=EgressPolicy(allow), image=image))
    info = await node.machine_wait(machine, timeout=BOOT)
    assert info.state is MachineState.READY, info
    return machine, info


async def gone(node: Node, *machines: str) -> None:
    for machine in machines:
        await node.machine_stop(machine)
        await node.machine_forget(machine)


async def fetch(node: Node, machine: str, url: str) -> str:
    """What curl says in the guest: the status and the body, or its exit code."""
    code, output = await execute(node, machine, "curl", "-s", "-m", "20", "-w", "%{http_code}", url)
    return output.decode() if code == 0 else f"exit {code}"


async def holds(node: Node, machine: str, upstreams: Upstreams) -> None:
    """The policy [good.example] holds: that host is reached, another is not, and nobody looks that one up."""
    assert await fetch(node, machine, f"http://good.example:{upstreams.web}/") == (
        f"hello from good.example:{upstreams.web}\n200"
    )
    denied = await fetch(node, machine, f"http://bad.example:{upstreams.web}/")
    assert denied.endswith("403"), denied
    assert "bad.example" in denied
    assert "bad.example" not in upstreams.asked


async def test_every_way_to_run_has_its_policy(process: NodeProcess, node: Node, upstreams: Upstreams) -> None:
    """Booted, cloned, from the pool, resumed and forked, and with a node that came after a kill -9: it holds."""
    image = str(process.settings["image"])
    booted, info = await start(node, allow=["good.example"], image=image)
    assert info.origin is Origin.COLD
    await holds(node, booted, upstreams)
    await gone(node, booted)
    await pool_is_ready(node)
    first, info = await start(node, allow=["good.example"])
    assert info.origin is Origin.POOL
    print("pool", info.stages)
    second, info = await start(node, allow=["good.example"])
    assert info.origin in (Origin.CLONE, Origin.POOL)
    print("clone", info.stages)
    await holds(node, first, upstreams)
    await holds(node, second, upstreams)
    await node.machine_suspend(first)
    await node.machine_resume(first)
    assert (await node.machine_wait(first, timeout=BOOT)).origin is Origin.RESUME
    await holds(node, first, upstreams)
    fork = secrets.token_hex(16)
    await node.machine_fork(first, replace(spec(fork), policy=EgressPolicy(["other.example"])))
    assert (await node.machine_wait(fork, timeout=BOOT)).origin is Origin.FORK
    assert (await fetch(node, fork, f"http://other.example:{upstreams.web}/")).endswith("200")
    assert (await fetch(node, fork, f"http://good.example:{upstreams.web}/")).endswith("403")
    await gone(node, second, fork)
    # What the guest was told before is the same with the next node
    _code, before = await execute(node, first, "getent", "ahostsv4", "good.example", "unused.example")
    process.kill()
    process.start()
    await asyncio.sleep(0.5)
    await holds(node, first, upstreams)
    assert (await execute(node, first, "getent", "ahostsv4", "good.example", "unused.example"))[1] == before
    await gone(node, first)


async def test_without_a_node_there_is_no_network(process: NodeProcess, node: Node, upstreams: Upstreams) -> None:
    """While the node is dead the guest is refused at once; the connections it had are reset."""
    machine, _info = await start(node, allow=["good.example"])
    script = (
        "import socket, time\n"
        f"to = ('good.example', {upstreams.greeter})\n"
        "held = socket.create_connection(to); held.recv(8)\n"
        "address = held.getpeername()\n"
        "said = []\n"
        "open('/tmp/ready', 'w').close()\n"
        "held.settimeout(60)\n"
        "try: said.append(held.recv(1).decode() or 'end')\n"
        "except OSError as error: said.append(type(error).__name__)\n"
        "began = time.monotonic()\n"
        "try: socket.create_connection(address, timeout=5); said.append('connected')\n"
        "except OSError as error: said.append(type(error).__name__)\n"
        "said.append('fast' if time.monotonic() - began < 2 else 'slow')\n"
        "open('/tmp/said', 'w').write(' '.join(said))\n"
    )
    await start_command(node, machine, "python3", "-c", script)
    while (await execute(node, machine, "test", "-e", "/tmp/ready"))[0] != 0:
        await asyncio.sleep(0.2)
    process.kill()
    await asyncio.sleep(5)
    process.start()
    said = b""
    until = time.monotonic() + 30
    while not said and time.monotonic() < until:
        _code, said = await execute(node, machine, "sh", "-c", "cat /tmp/said || true")
    assert said in (b"ConnectionResetError ConnectionRefusedError fast", b"end ConnectionRefusedError fast")
    await gone(node, machine)


async def test_a_policy_is_changed_while_it_runs(node: Node, upstreams: Upstreams) -> None:
    """A server that speaks first is heard; when its host is forbidden the connection is gone within a second."""
    machine, _info = await start(node, allow=["good.example"])
    held = (
        "import socket, time\n"
        f"held = socket.create_connection(('good.example', {upstreams.greeter})); print(held.recv(8))\n"
        "open('/tmp/ready', 'w').close()\n"
        "try: print(held.recv(1))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    running = asyncio.ensure_future(execute(node, machine, "python3", "-c", held))
    async with asyncio.timeout(60):
        while (await execute(node, machine, "test", "-e", "/tmp/ready"))[0] != 0:
            assert not running.done(), await running
            await asyncio.sleep(0.2)
    began = time.monotonic()
    await node.machine_policy(machine, EgressPolicy([]))
    async with asyncio.timeout(60):
        said = await running
    assert said[1] == b"b'welcome\\n'\nConnectionResetError\n"
    assert time.monotonic() - began < 1
    assert (await fetch(node, machine, f"http://good.example:{upstreams.web}/")).endswith("403")
    with pytest.raises(HypervisorError, match="URL"):
        await node.machine_policy(machine, EgressPolicy(["http://x"]))
    await node.machine_policy(machine, EgressPolicy(["*.example"], ["bad.example"]))
    assert (await fetch(node, machine, f"http://good.example:{upstreams.web}/")).endswith("200")
    assert (await fetch(node, machine, f"http://bad.example:{upstreams.web}/")).endswith("403")
    await gone(node, machine)
