"""Machines outlive their node, which settles what it finds; a full disk and a hostile guest cost one machine only."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests import hostile
from tests.live.nodes import IMAGES, NodeProcess, boot, execute, spec, start_command
from vm.api import MachineState, StopReason
from vm.errors import HostFull, NodeUnreachable, VmError
from vm.host.kvm import boot_id
from vm.host.run import run
from vm.net.namespace import namespace_create
from vm.net.nftables import gated
from vm.node.records import Record, record_write
from vm.node.room import reason_of_full
from vm.node.wire import LISTED
from vm.storage.layout import Layout

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node whose machines boot."""
    made = NodeProcess()
    made.start()
    yield made
    made.close()


async def test_killed_it_adopts_and_settles(process: NodeProcess) -> None:
    """After kill -9 a machine runs on and is adopted; one that ended says so; what no record names is removed."""
    node = process.client
    kept, ended, begun = (secrets.token_hex(16) for _ in range(3))
    await asyncio.gather(boot(node, kept), boot(node, ended))
    await start_command(node, kept, "sh", "-c", "echo before > /tmp/mark; sleep 1000")
    await asyncio.sleep(1)
    await node.machine_start(spec(begun))
    await asyncio.sleep(1.5)
    process.kill()
    with pytest.raises(NodeUnreachable):
        await node.machine_list()
    for pid in process.qemu_pids():
        if ended.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)
    half = process.data / "machines" / secrets.token_hex(16)
    half.mkdir()
    (half / "memory.save").touch()
    stray = f"atoll-{process.tag}-{secrets.token_hex(16)}"
    await asyncio.to_thread(namespace_create, stray, gated())
    await asyncio.to_thread(run, ["ip", "tuntap", "add", "dev", f"t{process.tag}ffff", "mode", "tap"])
    (process.data / "run" / "agents" / "stray.sock").touch()

    began = time.monotonic()
    process.start()
    info = await node.machine_wait(kept, timeout=20)
    assert info.state is MachineState.READY
    assert await execute(node, kept, "cat", "/tmp/mark") == (0, b"before\n")
    assert time.monotonic() - began < 30
    gone = await node.machine_get(ended)
    assert (gone.state, gone.stop_reason) == (MachineState.STOPPED, StopReason.HYPERVISOR_DIED)
    again = await node.machine_wait(begun, timeout=120)
    assert again.state is MachineState.READY, again
    assert not half.exists()
    left = process.leftovers()
    assert not any("stray" in item or stray in item or "ffff" in item for item in left), left
    for machine in (kept, begun):
        await node.machine_stop(machine)
    for machine in (kept, ended, begun):
        await node.machine_forget(machine)
    assert process.leftovers() == []


async def test_processor_time_is_counted_once(process: NodeProcess) -> None:
    """As much as the kernel says that QEMU has used, over kills of the node, a suspend and a stop."""
    node, machine = process.client, secrets.token_hex(16)
    burn = ("timeout", "2", "sh", "-c", "while :; do :; done")

    def used() -> float:
        (pid,) = process.qemu_pids()
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    await boot(node, machine)
    for _ in range(2):
        await execute(node, machine, *burn)
        process.kill()
        process.start()
        assert (await node.machine_wait(machine, timeout=20)).state is MachineState.READY
    first = used()
    assert first > 1
    counted = (await node.machine_suspend(machine)).cpu_seconds
    assert first - 0.1 <= counted < first + 5  # what the suspend itself takes is in it, all but its end
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=60)).state is MachineState.READY
    await execute(node, machine, *burn)
    process.kill()
    process.start()
    assert (await node.machine_wait(machine, timeout=20)).state is MachineState.READY
    second = used()
    assert second > 0.5
    counted_twice = (await node.machine_stop(machine)).cpu_seconds
    assert counted + second - 0.1 <= counted_twice < counted + second + 5
    await node.machine_forget(machine)


async def test_after_a_restart_of_the_host_everything_says_so(process: NodeProcess) -> None:
    """A record of another boot of the host is STOPPED with HOST_RESTARTED, and starts again on its disk."""
    node = process.client
    machine = secrets.token_hex(16)
    await boot(node, machine)
    await execute(node, machine, "sh", "-c", "echo kept > ~/note; sync")
    process.kill()
    for pid in process.qemu_pids():
        os.kill(pid, 9)
    record = process.data / "machines" / machine / "machine.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    process.start()
    info = await node.machine_get(machine)
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.HOST_RESTARTED)
    assert len(list((process.data / "disks").iterdir())) == 1
    assert process.leftovers() == []
    await boot(node, machine)
    assert await execute(node, machine, "sh", "-c", "cat ~/note") == (0, b"kept\n")
    await node.machine_stop(machine)
    await node.machine_forget(machine)


async def test_a_second_node_is_refused(process: NodeProcess) -> None:
    """Two nodes on one data directory: the second says which process has it, in one line."""
    second = NodeProcess(process.data)
    second.log = process.data / "second.log"
    with pytest.raises(RuntimeError, match="another node"):
        _start_alone(second)
    assert process.process is not None
    assert process.process.poll() is None


def _start_alone(node: NodeProcess) -> None:
    with node.log.open("wb") as log:
        import sys

        done = subprocess.Popen(
            [sys.executable, "-m", "tests.live.node_main", str(node.data), "{}"], stdout=log, stderr=log
        )
        code = done.wait(timeout=30)
    raise RuntimeError(f"{code}: {node.log.read_text()}")


async def test_a_record_that_cannot_be_read_keeps_its_disk(process: NodeProcess) -> None:
    """As after going back to an older version: it is STOPPED and says so, nothing starts in its place or removes it,
    and once it can be read the disk is there."""
    node = process.client
    machine = secrets.token_hex(16)
    await boot(node, machine)
    await execute(node, machine, "sh", "-c", "echo precious > ~/note; sync")
    await node.machine_stop(machine)
    process.stop()
    record = process.data / "machines" / machine / "machine.json"
    good = record.read_text()
    record.write_text(json.dumps({**json.loads(good), "of_the_future": 1}))
    process.start()
    info = await node.machine_get(machine)
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.RECORD_UNREADABLE)
    await node.machine_stop(machine, detail="as the reconciler does")
    for refused in (node.machine_start(spec(machine)), node.machine_forget(machine)):
        with pytest.raises(VmError, match="its disk is kept"):
            await refused
    assert json.loads(record.read_text())["of_the_future"] == 1
    process.stop()
    record.write_text(good)
    process.start()
    await boot(node, machine)
    assert await execute(node, machine, "cat", "/home/app/note") == (0, b"precious\n")
    await node.machine_stop(machine)
    await node.machine_forget(machine)


async def test_a_guest_that_floods_hurts_only_itself(process: NodeProcess) -> None:
    """Garbage on the channel without end: the node stays small and idle enough, another machine works, and it can be
    stopped."""
    node = process.client
    good, bad = secrets.token_hex(16), secrets.token_hex(16)
    await asyncio.gather(boot(node, good), boot(node, bad))
    assert process.process is not None
    before = _resident(process.process.pid)
    await start_command(node, bad, "sudo", "python3", "-c", hostile.FLOODER)
    until = time.monotonic() + 60
    while "breach" not in (await node.machine_get(bad)).detail:
        assert time.monotonic() < until, await node.machine_get(bad)
        await asyncio.sleep(0.2)
    await asyncio.sleep(5)
    assert await execute(node, good, "echo", "fine") == (0, b"fine\n")
    assert _resident(process.process.pid) - before < 16 * 2**20
    stopped = await node.machine_stop(bad)
    assert stopped.state is MachineState.STOPPED
    await node.machine_stop(good)
    for machine in (good, bad):
        await node.machine_forget(machine)
    assert process.leftovers() == []


async def test_a_guest_that_keeps_closing_its_channel_hurts_only_itself(process: NodeProcess) -> None:
    """Its agent is killed whenever it starts: calls fail in time instead of waiting, the node and another machine go
    on, and it can be stopped."""
    node = process.client
    good, bad = secrets.token_hex(16), secrets.token_hex(16)
    await asyncio.gather(boot(node, good), boot(node, bad))
    assert process.process is not None
    before = _resident(process.process.pid)
    await start_command(node, bad, "sudo", "python3", "-c", hostile.CLOSER)
    await asyncio.sleep(5)
    for _ in range(3):
        with pytest.raises(VmError):
            await execute(node, bad, "echo", "never", timeout=60)
        assert await execute(node, good, "echo", "fine") == (0, b"fine\n")
    assert (await node.machine_get(bad)).state is MachineState.LOST
    assert _resident(process.process.pid) - before < 16 * 2**20
    stopped = await node.machine_stop(bad)
    assert stopped.state is MachineState.STOPPED
    await node.machine_stop(good)
    for machine in (good, bad):
        await node.machine_forget(machine)
    assert process.leftovers() == []


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def small() -> Iterator[NodeProcess]:
    """A node whose data directory is a disk of 300 MiB."""
    place = Path(tempfile.mkdtemp(prefix="atoll-f-", dir="/tmp"))
    run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", place])
    process = NodeProcess(place, disk_reserve_mib=16)
    process.start()
    yield process
    asyncio.run(process._stop_all())
    process.stop()
    run(["umount", place])
    place.rmdir()


async def test_a_full_disk_stops_the_machine_that_filled_it(small: NodeProcess) -> None:
    """A guest that fills the host's image disk stops with DISK_FULL; the node answers and refuses what has no room,
    its other machine goes on. Once there is room, the one that stopped starts on its disk."""
    node = small.client
    machine, neighbour = secrets.token_hex(16), secrets.token_hex(16)
    await boot(node, machine)
    await boot(node, neighbour)
    # What its boot has written is on the disk: one that still writes when there is no room ends for that itself
    await execute(node, neighbour, "sync")
    await execute(node, machine, "sh", "-c", "echo kept > ~/note; sync")
    await start_command(node, machine, "sh", "-c", "cat /dev/urandom > ~/filler; sync")
    until = time.monotonic() + 90
    while (info := await node.machine_get(machine)).state is not MachineState.STOPPED:
        assert time.monotonic() < until, info
        await asyncio.sleep(0.5)
    assert info.stop_reason is StopReason.DISK_FULL, info
    assert (await node.host_info()).disk_free < 16 * 2**20
    assert await execute(node, neighbour, "echo", "fine") == (0, b"fine\n")
    with pytest.raises(HostFull):
        await node.machine_start(spec(secrets.token_hex(16)))
    await node.machine_stop(neighbour)
    assert small.leftovers() == []
    await node.machine_forget(neighbour)
    run(["mount", "-o", "remount,size=600m", small.data])
    await boot(node, machine)
    assert await execute(node, machine, "sh", "-c", "cat ~/note; rm ~/filler") == (0, b"kept\n")
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    assert (await node.host_info()).disk_free > 500 * 2**20
    assert IMAGES.exists()


async def test_a_host_without_memory_refuses_before_anything_is_started() -> None:
    """It says so in words that rows and pages tell as a want of room, and nothing is left of it."""
    process = NodeProcess(memory_reserve_mib=2**30)
    process.start()
    try:
        with pytest.raises(HostFull, match="MiB of memory") as refused:
            await process.client.machine_start(spec(secrets.token_hex(16)))
        assert reason_of_full(refused.value) is StopReason.NO_CAPACITY
        assert await process.client.machine_list() == []
        assert process.leftovers() == []
        assert list((process.data / "disks").iterdir()) == []
    finally:
        await asyncio.to_thread(process.close)


async def test_more_machines_than_one_answer_holds_are_listed() -> None:
    """Each of them once, at the size that the longest explanations give them."""
    process = NodeProcess()
    names = {secrets.token_hex(16) for _ in range(2 * LISTED + 1)}
    layout = Layout(process.data)
    for name in names:
        layout.machine(name).mkdir(parents=True)
        record = Record(spec(name), "", MachineState.QUEUED, time.time(), boot_id(), name)
        record.note = "\N{GRINNING FACE}" * 300
        record.enter(MachineState.STOPPED, reason=StopReason.REQUESTED, detail="\N{GRINNING FACE}" * 1000)
        record_write(layout, name, asdict(record))
    await asyncio.to_thread(process.start)
    listed = [info.machine for info in await process.client.machine_list()]
    await asyncio.to_thread(process.stop)
    await asyncio.to_thread(shutil.rmtree, process.data)
    assert len(listed) == len(names)
    assert set(listed) == names
