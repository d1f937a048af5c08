"""Real machines: they start in turn, run commands, have a gate only, stop with a reason and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest

from tests.live.nodes import NodeProcess, boot, execute, spec, start_command
from vm.api import ByteStream, MachineInfo, MachineState, Node, StopReason
from vm.errors import HostFull, MachineExists, MachineGone, NotAllowed
from vm.guest.calls import GuestCall, call
from vm.guest.channel import MAX_OPEN, RESERVED
from vm.host.run import CommandFailed, run
from vm.net.namespace import namespace_inspect
from vm.node.client import NodeClient

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node whose machines boot."""
    made = NodeProcess()
    made.start()
    yield made
    made.close()


async def test_two_boot_at_a_time_and_the_rest_wait_their_turn(process: NodeProcess, node: Node) -> None:
    """Of three machines two boot and one is first in the queue; then all run, each with its own identity."""
    machines = [secrets.token_hex(16) for _ in range(3)]
    for number, machine in enumerate(machines):
        await node.machine_start(spec(machine, hostname=f"box-{number}", env={"NUMBER": str(number)}))
    states = [await node.machine_get(machine) for machine in machines]
    assert [info.state for info in states] == [MachineState.STARTING, MachineState.STARTING, MachineState.QUEUED]
    assert states[2].queue_position == 1
    for number, machine in enumerate(machines):
        info = await node.machine_wait(machine, timeout=120)
        assert info.state is MachineState.READY, info
        assert {"queue", "disk", "network", "domain", "tap", "agent", "identity"} == set(info.stages)
        code, output = await execute(node, machine, "sh", "-c", "hostname; echo $NUMBER; id -un")
        assert (code, output) == (0, f"box-{number}\n{number}\napp\n".encode())
    with pytest.raises(MachineExists):
        await node.machine_start(spec(machines[0]))
    for machine in machines:
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    assert process.leftovers() == []
    assert not list((process.data / "machines").glob("*/"))


async def test_only_those_with_the_key_are_heard(process: NodeProcess, running: str) -> None:
    """Another key is NotAllowed for every verb, and an unprivileged user cannot even connect."""
    stranger = NodeClient(process.data / "run" / "node.sock", b"x" * 64)
    with pytest.raises(NotAllowed):
        await stranger.machine_list()
    with pytest.raises(NotAllowed):
        await stranger.stream_open(running)
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(process.data / 'run' / 'node.sock')!r})"
    with pytest.raises(CommandFailed, match="PermissionError"):
        await asyncio.to_thread(run, ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", connect])


async def test_the_namespace_leads_nowhere(process: NodeProcess, node: Node, running: str) -> None:
    """The machine's namespace has the gateway's address and no way out; a lookup takes under 100 ms."""
    name = f"atoll-{process.tag}-{running}"
    seen = await asyncio.to_thread(namespace_inspect, name)
    assert (len(seen["links"]), seen["addresses"]) == (2, ["10.0.0.1"])
    assert set(seen["routes"]) <= {"10.0.0.0", "10.0.0.1", "10.0.0.3"}
    # Three times: the first loads Python's codec and the resolver's library from a disk that is read the first time
    lookup = (
        "import socket, time\n"
        "for _ in range(3):\n"
        "    began = time.monotonic()\n"
        "    socket.getaddrinfo('example.com', 443)\n"
        "    print(time.monotonic() - began)\n"
    )
    _code, output = await execute(node, running, "python3", "-c", lookup)
    assert min(float(line) for line in output.split()) < 0.1


async def test_a_stopped_machine_keeps_its_disk(node: Node, running: str) -> None:
    """What was written before a stop is there after the next start, without any sync by the guest."""
    await execute(node, running, "sh", "-c", "echo kept > ~/note")
    began = time.monotonic()
    info = await node.machine_stop(running)
    took = time.monotonic() - began
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.REQUESTED)
    assert took < 4, f"a stop took {took:.1f} s"
    with pytest.raises(MachineGone):
        await node.stream_open(running)
    await boot(node, running)
    assert await execute(node, running, "cat", "/home/app/note") == (0, b"kept\n")


async def test_both_directions_carry_megabytes(node: Node, running: str) -> None:
    """A file written through the node comes back the same, though it is larger than every buffer on the way."""
    content = secrets.token_bytes(3_000_000)
    async with await GuestCall.begin(
        await node.stream_open(running), "writeFile", {"path": "/tmp/big", "options": {}}, more=True
    ) as writing:
        await writing.write(content)
        await writing.end_input()
        assert "ok" in await writing.reply()
    back = bytearray()
    async with await GuestCall.begin(await node.stream_open(running), "readFile", {"path": "/tmp/big"}) as reading:
        assert (await reading.reply())["ok"]["size"] == len(content)
        while data := await reading.read():
            back += data
    assert back == content


async def test_a_stalled_reader_costs_the_node_nothing(process: NodeProcess, node: Node, running: str) -> None:
    """While a client does not read an endless output, the node's memory stays, and other calls are answered."""
    assert process.process is not None
    started = await call(
        await node.stream_open(running), "spawn", {"command": "yes", "stdin": "null", "stdout": "piped"}
    )
    pid = started["ok"]["pid"]
    before = _resident(process.process.pid)
    async with await GuestCall.begin(await node.stream_open(running), "process.stdout", {"pid": pid}) as stalled:
        assert "ok" in await stalled.reply()
        await asyncio.sleep(3)
        grown = _resident(process.process.pid) - before
        assert grown < 4 * 2**20, f"the node grew by {grown} bytes"
        assert await execute(node, running, "echo", "hello") == (0, b"hello\n")
    await call(await node.stream_open(running), "processKill", {"pid": pid, "signal": "SIGKILL"})


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_an_agent_that_was_killed_comes_back(node: Node, running: str) -> None:
    """Killed by the guest's own root, the agent is started anew and answers, with its identity, within seconds."""
    await boot_again_if_stopped(node, running)
    killing = "kill -9 $(pgrep -f atoll | grep -vx 1 | head -20)"
    began = await _agent_began(node, running)
    killed = time.monotonic()
    assert began < killed
    await start_command(node, running, "sudo", "sh", "-c", killing)
    await asyncio.sleep(1)
    while True:
        try:
            assert await _agent_began(node, running) > killed
            assert await execute(node, running, "hostname", timeout=5) == (0, b"box\n")
            return
        except Exception:
            if time.monotonic() > killed + 30:
                raise
            await asyncio.sleep(0.5)


async def _agent_began(node: Node, machine: str) -> float:
    """When the agent that answers now was started, on our own clock."""
    async with asyncio.timeout(5):
        asked = time.monotonic()
        return asked - float((await call(await node.stream_open(machine), "ping"))["ok"]["uptime"])


async def boot_again_if_stopped(node: Node, machine: str) -> None:
    if (await node.machine_get(machine)).state is MachineState.STOPPED:
        await boot(node, machine)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("off", StopReason.GUEST_SHUTDOWN),
        ("panic", StopReason.GUEST_CRASHED),
        ("kill", StopReason.HYPERVISOR_DIED),
    ],
)
async def test_a_machine_that_ends_says_why(
    process: NodeProcess, node: Node, running: str, how: str, reason: StopReason
) -> None:
    """A guest that powers off, one whose kernel panics, and a QEMU that is killed: each has its reason, at once."""
    await boot_again_if_stopped(node, running)
    heard: list[MachineInfo] = []

    async def listen() -> None:
        async for info in node.events():
            heard.append(info)
            if info.state is MachineState.STOPPED:
                return

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(listen())
        await asyncio.sleep(0.2)
        if how == "kill":
            for pid in process.qemu_pids():
                os.kill(pid, signal.SIGKILL)
        else:
            key = {"off": "o", "panic": "c"}[how]
            # Again if need be: a link that breaks takes the order with it
            while not heard:
                with suppress(MachineGone):
                    await start_command(node, running, "sudo", "sh", "-c", f"echo {key} > /proc/sysrq-trigger")
                await asyncio.sleep(5)
    assert (heard[-1].machine, heard[-1].stop_reason) == (running, reason)
    assert process.leftovers() == []


async def test_a_machine_whose_streams_are_all_taken_is_well(node: Node, running: str) -> None:
    """Processes that are waited for: one stream more is refused, but no heartbeat, and a stop still syncs."""
    await boot_again_if_stopped(node, running)
    sleep = {"command": "sleep", "args": ["600"], "stdin": "null", "stdout": "null", "stderr": "null"}
    killed, other = [(await call(await node.stream_open(running), "spawn", sleep))["ok"]["pid"] for _ in range(2)]
    wanted = iter([killed, *[other] * 2 * MAX_OPEN])
    async with AsyncExitStack() as held:
        taken: list[GuestCall] = []

        async def take_all() -> None:
            for pid in wanted:
                try:
                    stream = await node.stream_open(running)
                except HostFull:
                    return
                taken.append(await held.enter_async_context(await GuestCall.begin(stream, "processWait", {"pid": pid})))
            pytest.fail("none was refused")

        await take_all()
        async with asyncio.timeout(30):
            while len(taken) < MAX_OPEN - RESERVED:
                await asyncio.sleep(0.5)  # a heartbeat has a stream as well, until the guest gets to it
                await take_all()
        until = time.monotonic() + 16  # a heartbeat every 10 s, and every second where it was missed
        while time.monotonic() < until:
            assert (await node.machine_get(running)).state is MachineState.READY
            await asyncio.sleep(0.5)

        for one in taken[-8:]:
            await one.abort()
        async with asyncio.timeout(60):  # each is free once the guest has let go of it, too
            while (stream := await _free_stream(node, running)) is None:
                await asyncio.sleep(0.5)
        assert "ok" in await call(stream, "processKill", {"pid": killed, "signal": "SIGKILL"})
        async with asyncio.timeout(10):
            assert (await taken[0].reply())["ok"]["signal"] == "SIGKILL", "the streams have outlived it"
        await execute(node, running, "sh", "-c", "echo kept > ~/streams")
        await take_all()
        await node.machine_stop(running)
    await boot(node, running)
    assert await execute(node, running, "cat", "/home/app/streams") == (0, b"kept\n")


async def _free_stream(node: Node, machine: str) -> ByteStream | None:
    with suppress(HostFull):
        return await node.stream_open(machine)
    return None


@pytest.fixture(scope="module")
def running(process: NodeProcess) -> str:
    """One machine that this module's tests share; each leaves it running, or starts it again."""
    machine = secrets.token_hex(16)
    asyncio.run(_boot(process, machine))
    return machine


async def _boot(process: NodeProcess, machine: str) -> None:
    await boot(process.client, machine)
