"""What a guest can do to itself: its agent goes on answering, and the host does not notice."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from tests import fork_bomb
from tests.live.nodes import boot, execute, start_command
from vm.api import MachineState, Node
from vm.guest.calls import GuestCall, call

pytestmark = pytest.mark.live


@pytest.fixture
async def machine(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[str]:
    """A machine to maltreat: what is left of it is of no use to the next test."""
    name = secrets.token_hex(16)
    await boot(node, name, memory_mib=getattr(request, "param", 512))
    yield name
    await node.machine_stop(name)
    assert (await node.machine_get(name)).state is MachineState.STOPPED
    await node.machine_forget(name)


async def ping(node: Node, machine: str) -> float:
    """Seconds the agent has been up."""
    async with asyncio.timeout(30):
        return float((await call(await node.stream_open(machine), "ping"))["ok"]["uptime"])


async def forks_refused(node: Node, machine: str) -> int:
    async with await GuestCall.begin(
        await node.stream_open(machine), "readFile", {"path": fork_bomb.COUNTER}
    ) as reading:
        await reading.reply()
        return fork_bomb.refused((await reading.read()).decode())


async def test_out_of_memory_kills_the_culprit_and_says_so(node: Node, machine: str) -> None:
    """A process that takes all memory is killed with `oom` in its status; the agent is the same as before."""
    before = await ping(node, machine)
    hog = {"command": "python3", "args": ["-c", "x = [bytearray(b'x' * 2**20) for _ in range(4096)]"]}
    quiet = {"stdin": "null", "stdout": "null", "stderr": "null"}
    pid = (await call(await node.stream_open(machine), "spawn", {**hog, **quiet}))["ok"]["pid"]
    async with asyncio.timeout(120):
        status = (await call(await node.stream_open(machine), "processWait", {"pid": pid}))["ok"]
    assert (status["code"], status["signal"], status["oom"]) == (137, "SIGKILL", "high-confidence")
    assert await ping(node, machine) > before


@pytest.mark.parametrize("machine", [fork_bomb.MEMORY_MIB], indirect=True)
async def test_a_fork_bomb_leaves_the_agent(node: Node, machine: str) -> None:
    """While a fork bomb has every process it may have, the agent answers, and the machine can be stopped."""
    before = await ping(node, machine)
    await start_command(node, machine, "python3", "-c", fork_bomb.PROGRAM)
    async with asyncio.timeout(240):
        while not await forks_refused(node, machine):
            await asyncio.sleep(0.5)
    for _ in range(8):
        await asyncio.sleep(1)
        assert await ping(node, machine) > before
    assert (await node.machine_get(machine)).state is MachineState.READY


async def test_removing_everything_leaves_the_agent(node: Node, machine: str) -> None:
    """After `rm -rf /` as root: the agent answers, a command fails with a clear error."""
    code, _output = await execute(node, machine, "sudo", "rm", "-rf", "--no-preserve-root", "/", timeout=300)
    assert code != 0  # some of /proc and /sys stays
    await ping(node, machine)
    reply = await call(
        await node.stream_open(machine), "spawn", {"command": "true", "stdout": "null", "stderr": "null"}
    )
    assert reply["error"]["code"] == "ENOENT"
    await node.machine_stop(machine)
    assert (await node.machine_get(machine)).state is MachineState.STOPPED
