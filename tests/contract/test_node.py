"""What vm.api.Node promises, held by the fake and by real machines alike."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest

from tests.live.nodes import BOOT, boot, execute, spec
from tests.vm.egress.test_spool import passage
from vm.api import (
    EgressPolicy,
    MachineInfo,
    MachineState,
    Node,
    Origin,
    PassageBatch,
    Secret,
    StopReason,
    policy_digest,
)
from vm.egress.journal import Verdict
from vm.errors import HypervisorError, MachineExists, MachineGone, StreamReset
from vm.fake import FakeNode
from vm.guest.calls import GuestCall, call


@pytest.fixture
async def machine(node: Node) -> str:
    """A running machine, gone after the test."""
    name = secrets.token_hex(16)
    await boot(node, name, env={"GREETING": "hello"})
    return name


async def test_a_life_from_queue_to_oblivion(node: Node) -> None:
    """Start, wait, get, list, stop, forget: each answers with the state the one before led to; changes are events."""
    name = secrets.token_hex(16)
    heard: list[MachineInfo] = []

    async def listen() -> None:
        async for info in node.events():
            if info.machine == name:
                heard.append(info)
                if info.state is MachineState.STOPPED:
                    return

    async with asyncio.timeout(2 * BOOT), asyncio.TaskGroup() as group:
        group.create_task(listen())
        await asyncio.sleep(0.2)
        assert (await node.machine_start(spec(name))).state is MachineState.QUEUED
        with pytest.raises(MachineExists):
            await node.machine_start(spec(name))
        with pytest.raises(MachineExists):
            await node.machine_forget(name)
        ready = await node.machine_wait(name, timeout=BOOT)
        assert (ready.state, ready.memory_mib, ready.vcpus) == (MachineState.READY, 512, 1)
        assert name in [info.machine for info in await node.machine_list()]
        assert (await node.machine_get(name)).state is MachineState.READY
        stopped = await node.machine_stop(name)
        assert (stopped.state, stopped.stop_reason) == (MachineState.STOPPED, StopReason.REQUESTED)
    assert [info.state for info in heard][-3:] == [MachineState.STARTING, MachineState.READY, MachineState.STOPPED]
    assert await node.machine_stop(name) == stopped
    again = await node.machine_stop(name, detail="nobody's")
    assert (again.state, again.stop_reason, again.detail) == (MachineState.STOPPED, StopReason.REQUESTED, "nobody's")
    assert again.since > stopped.since
    assert await node.machine_stop(name, detail="nobody's") == again
    await node.machine_forget(name)
    await node.machine_forget(name)
    with pytest.raises(MachineGone):
        await node.machine_get(name)


async def test_a_policy_may_be_changed_at_any_time(node: Node, machine: str) -> None:
    """Running, suspended or stopped: the change is taken, and a pattern that is none is not; who is unknown is gone."""
    policy = EgressPolicy(["good.example:443"], ["198.51.100.0/24"])
    assert (await node.machine_policy(machine, policy)).state is MachineState.READY
    with pytest.raises(HypervisorError, match="bad pattern"):
        await node.machine_policy(machine, EgressPolicy(["bad pattern"]))
    await node.machine_suspend(machine)
    assert (await node.machine_policy(machine, EgressPolicy())).state is MachineState.SUSPENDED
    await node.machine_stop(machine)
    await node.machine_policy(machine, EgressPolicy([]))
    await node.machine_forget(machine)
    with pytest.raises(MachineGone):
        await node.machine_policy(machine, policy)
    with pytest.raises(HypervisorError, match="bad pattern"):
        await node.machine_start(replace(spec(secrets.token_hex(16)), policy=EgressPolicy(["bad pattern"])))


def _secret(**changes: object) -> Secret:
    placeholder = f"DENO_SECRET_PLACEHOLDER_{secrets.token_hex(16)}"
    return replace(Secret("TOKEN", placeholder, "the-value-itself", ["api.example"]), **changes)  # type: ignore[arg-type]


async def test_secrets_are_told_with_the_policy_and_one_that_is_none_is_refused(node: Node, machine: str) -> None:
    """Start, fork and policy take secrets; a refusal says which one and why, and never its value."""
    secret = _secret(places=["path", "query", "body"])
    policy = EgressPolicy(["api.example"])
    assert "the-value-itself" not in repr(secret)
    info = await node.machine_policy(machine, policy, secrets=[secret, _secret()])
    assert (info.state, info.policy_wanted) == (MachineState.READY, False)
    fork = secrets.token_hex(16)
    await node.machine_fork(machine, spec(fork), secrets=[secret])
    forked = await node.machine_wait(fork, timeout=BOOT)
    assert (forked.state, forked.policy_wanted) == (MachineState.READY, False)
    for bad, why in (
        ({"hosts": []}, "at least one host"),
        ({"hosts": ["192.0.2.1"]}, "is an address"),
        ({"hosts": ["bad host"]}, "bad host"),
        ({"placeholder": "DENO_SECRET_PLACEHOLDER_12"}, "placeholder"),
        ({"value": ""}, "a value of"),
        ({"places": ["cookie"]}, "no place"),
        ({"placeholder": secret.placeholder}, "same placeholder"),
    ):
        with pytest.raises(HypervisorError, match=why) as refused:
            await node.machine_policy(machine, EgressPolicy(), secrets=[secret, _secret(**bad)])
        assert "the-value-itself" not in str(refused.value)
    with pytest.raises(HypervisorError, match="is an address"):
        await node.machine_start(spec(secrets.token_hex(16)), secrets=[_secret(hosts=["192.0.2.1"])])
    await node.machine_policy(machine, policy)
    await node.machine_stop(fork)
    await boot(node, fork, told=[secret])
    for name in (machine, fork):
        await node.machine_stop(name)
        await node.machine_forget(name)


async def test_which_policy_holds_is_told(node: Node, machine: str) -> None:
    """The digest is that of the policy it was started with, and of each one since."""
    first = await node.machine_get(machine)
    assert first.policy == policy_digest(EgressPolicy())
    other = EgressPolicy(["good.example:443"], ["198.51.100.0/24"])
    assert (await node.machine_policy(machine, other)).policy == policy_digest(other) != first.policy
    assert (await node.machine_get(machine)).policy == policy_digest(other)


async def test_what_ended_is_told_from_any_cursor(node: Node, machine: str) -> None:
    """In order, with growing numbers, piece by piece or at once; a cursor of another node begins from the oldest."""
    await node.machine_policy(machine, EgressPolicy([]))
    for number in range(3):
        if isinstance(node, FakeNode):
            node.passed(machine, passage(number, host="denied.example", port=8000 + number))
        else:
            knock = f"import socket; socket.create_connection(('denied.example', {8000 + number})).recv(1)"
            assert (await execute(node, machine, "python3", "-c", knock))[0] != 0

    async def mine(cursor: str = "", limit: int = 1000) -> tuple[list[int], PassageBatch]:
        batch = await node.egress_passages(cursor, limit)
        return [entry.passage.port for entry in batch.entries if entry.machine == machine], batch

    async with asyncio.timeout(10):
        while len((await mine())[0]) < 3:
            await asyncio.sleep(0.1)
    ports, batch = await mine()
    assert ports == [8000, 8001, 8002]
    entry = next(entry for entry in batch.entries if entry.machine == machine)
    assert (entry.passage.host, entry.passage.verdict) == ("denied.example", Verdict.DENIED)
    numbers = [entry.number for entry in batch.entries]
    assert numbers == sorted(set(numbers))
    assert (await mine(batch.cursor))[0] == []
    assert (await node.egress_passages(batch.cursor, 10)).cursor == batch.cursor
    assert (await mine("another:123456789"))[0] == ports
    piecewise, cursor = [], ""
    while (piece := await node.egress_passages(cursor, 1)).entries:
        piecewise += [entry.number for entry in piece.entries]
        cursor = piece.cursor
    assert piecewise == numbers
    for limit in (0, 2001):
        with pytest.raises(HypervisorError, match="may be asked for"):
            await node.egress_passages("", limit)


async def test_what_is_unknown_is_gone(node: Node) -> None:
    """Every verb about a machine that never was says MachineGone."""
    name = secrets.token_hex(16)
    with pytest.raises(MachineGone):
        await node.machine_get(name)
    with pytest.raises(MachineGone):
        await node.machine_wait(name, timeout=0)
    with pytest.raises(MachineGone):
        await node.machine_stop(name)
    with pytest.raises(MachineGone):
        await node.stream_open(name)


async def test_waiting_gives_up_in_time(node: Node) -> None:
    """machine_wait returns the machine as it is when the time is up."""
    name = secrets.token_hex(16)
    await node.machine_start(spec(name))
    info = await node.machine_wait(name, timeout=0.01)
    assert info.state in (MachineState.QUEUED, MachineState.STARTING)
    await node.machine_stop(name)
    await node.machine_forget(name)


async def test_streams_reach_the_agent(node: Node, machine: str) -> None:
    """Calls run concurrently on streams of their own; bytes, ends and aborts arrive as they are meant."""
    replies = await asyncio.gather(*(_ping(node, machine) for _ in range(20)))
    assert all("ok" in reply for reply in replies)
    assert await call(await node.stream_open(machine), "envGet", {"key": "GREETING"}) == {"ok": "hello"}
    content = secrets.token_bytes(1_000_000)
    where = (await call(await node.stream_open(machine), "makeTempFile", {}))["ok"]
    async with await GuestCall.begin(
        await node.stream_open(machine), "writeFile", {"path": where, "options": {}}, more=True
    ) as writing:
        await writing.write(content)
        await writing.end_input()
        assert "ok" in await writing.reply()
    async with await GuestCall.begin(await node.stream_open(machine), "readFile", {"path": where}) as reading:
        assert (await reading.reply())["ok"] == {"size": len(content)}
        back = bytearray()
        while data := await reading.read(10_000):
            assert len(data) <= 10_000
            back += data
        assert back == content
        assert await reading.read() == b""
    given_up = await node.stream_open(machine)
    await given_up.abort()
    await given_up.abort()
    with pytest.raises(StreamReset):
        await given_up.read()
    await node.machine_stop(machine)
    with pytest.raises(MachineGone):
        await node.stream_open(machine)
    await node.machine_forget(machine)


async def _ping(node: Node, machine: str) -> dict[str, object]:
    return await call(await node.stream_open(machine), "ping")


async def test_a_stop_breaks_what_is_open(node: Node, machine: str) -> None:
    """Whoever reads from a machine that is stopped gets StreamReset, not silence."""
    async with await GuestCall.begin(await node.stream_open(machine), "session", session="s", more=True) as session:
        assert "ok" in await session.reply()
        stopping = asyncio.ensure_future(node.machine_stop(machine))
        async with asyncio.timeout(20):
            with pytest.raises(StreamReset):
                await session.read()
        await stopping
    await node.machine_forget(machine)


async def test_the_host_says_how_it_is(node: Node) -> None:
    """host_info has numbers that make sense."""
    host = await node.host_info()
    assert host.accelerator in ("kvm", "tcg")
    assert host.cpus >= 1
    assert 0 < host.memory_available <= host.memory_total
    assert 0 < host.disk_free <= host.disk_total


async def _process(node: Node, machine: str) -> int:
    params = {"command": "sleep", "args": ["1000"], "stdin": "null", "stdout": "null", "stderr": "null"}
    return int((await call(await node.stream_open(machine), "spawn", params))["ok"]["pid"])


async def _write(node: Node, machine: str, path: str, content: bytes) -> None:
    async with await GuestCall.begin(
        await node.stream_open(machine), "writeFile", {"path": path, "options": {}}, more=True
    ) as writing:
        await writing.write(content)
        await writing.end_input()
        assert "ok" in await writing.reply()


async def _read(node: Node, machine: str, path: str) -> bytes | None:
    async with await GuestCall.begin(await node.stream_open(machine), "readFile", {"path": path}) as reading:
        if "ok" not in await reading.reply():
            return None
        return await reading.read()


async def test_a_suspended_machine_goes_on_where_it_was(node: Node, machine: str) -> None:
    """Suspend breaks its streams and keeps processes, environment and files; resume goes on; both may be repeated."""
    pid = await _process(node, machine)
    await call(await node.stream_open(machine), "envSet", {"key": "LATER", "value": "kept"})
    await _write(node, machine, "note", b"before")
    suspended = await node.machine_suspend(machine)
    assert suspended.state is MachineState.SUSPENDED
    assert (await node.machine_suspend(machine)).state is MachineState.SUSPENDED
    with pytest.raises(MachineGone):
        await node.stream_open(machine)
    with pytest.raises(MachineExists):
        await node.machine_start(spec(machine))
    with pytest.raises(MachineExists):
        await node.machine_forget(machine)
    assert (await node.machine_resume(machine)).state is not MachineState.STOPPED
    resumed = await node.machine_wait(machine, timeout=BOOT)
    assert (resumed.state, resumed.origin) == (MachineState.READY, Origin.RESUME)
    assert (await node.machine_resume(machine)).state is MachineState.READY
    listing = await call(await node.stream_open(machine), "process.list")
    assert pid in [process["pid"] for process in listing["ok"]]
    assert await call(await node.stream_open(machine), "envGet", {"key": "LATER"}) == {"ok": "kept"}
    assert await _read(node, machine, "note") == b"before"
    assert resumed.cpu_seconds >= suspended.cpu_seconds
    await node.machine_stop(machine)
    with pytest.raises(MachineGone):
        await node.machine_suspend(machine)
    with pytest.raises(MachineGone):
        await node.machine_resume(machine)
    await node.machine_forget(machine)


async def test_a_suspended_machine_can_be_stopped_and_keeps_its_disk(node: Node, machine: str) -> None:
    """Its memory is dropped, its disk is not."""
    await _write(node, machine, "note", b"kept")
    await node.machine_suspend(machine)
    assert (await node.machine_stop(machine)).stop_reason is StopReason.REQUESTED
    await boot(node, machine)
    assert await _read(node, machine, "note") == b"kept"
    await node.machine_stop(machine)
    await node.machine_forget(machine)


async def test_a_fork_and_its_original_go_their_own_ways(node: Node, machine: str) -> None:
    """A fork has the original's files and a name of its own; what either writes from then on the other does not see."""
    await _write(node, machine, "note", b"shared")
    fork = secrets.token_hex(16)
    with pytest.raises(MachineGone):
        await node.machine_fork(secrets.token_hex(16), spec(fork))
    with pytest.raises(MachineExists):
        await node.machine_fork(machine, spec(machine))
    await node.machine_fork(machine, spec(fork, hostname="other"))
    made = await node.machine_wait(fork, timeout=BOOT)
    assert (made.state, made.origin) == (MachineState.READY, Origin.FORK)
    assert (await node.machine_get(machine)).state is MachineState.READY
    assert await _read(node, fork, "note") == b"shared"
    await _write(node, fork, "note", b"the fork's")
    await _write(node, machine, "note", b"the original's")
    assert await _read(node, fork, "note") == b"the fork's"
    assert await _read(node, machine, "note") == b"the original's"
    # Whichever goes first, the other one's disk is whole
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    await node.machine_stop(fork)
    await boot(node, fork)
    assert await _read(node, fork, "note") == b"the fork's"
    await node.machine_stop(fork)
    await node.machine_forget(fork)


async def test_a_stop_comes_through_whatever_is_under_way(node: Node, machine: str) -> None:
    """A stop during a suspend, and one during a resume, both end in STOPPED."""
    suspending = asyncio.ensure_future(node.machine_suspend(machine))
    await asyncio.sleep(0.05)
    assert (await node.machine_stop(machine)).state is MachineState.STOPPED
    await asyncio.gather(suspending, return_exceptions=True)
    assert (await node.machine_get(machine)).state is MachineState.STOPPED
    await boot(node, machine)
    await node.machine_suspend(machine)
    await node.machine_resume(machine)
    assert (await node.machine_stop(machine)).state is MachineState.STOPPED
    await asyncio.sleep(0.5)
    assert (await node.machine_get(machine)).state is MachineState.STOPPED
    await node.machine_forget(machine)
