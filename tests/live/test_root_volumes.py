"""Machines that boot from volumes and snapshots: what is written stays on the one, and vanishes on the other."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from dataclasses import replace

import pytest

from tests.live.nodes import BOOT, NodeProcess, spec
from tests.live.test_volumes import new, shell
from vm.api import SYSTEM, MachineInfo, MachineState, Node, VolumeInfo, VolumeMount
from vm.errors import NotBootable, VolumeBusy

pytestmark = pytest.mark.live


async def rooted(node: Node, machine: str, root: str) -> MachineInfo:
    await node.machine_start(replace(spec(machine), root=root))
    info = await node.machine_wait(machine, timeout=BOOT)
    assert info.state is MachineState.READY, info
    return info


async def free(node: Node, *machines: str) -> None:
    for machine in machines:
        await node.machine_stop(machine)
        await node.machine_forget(machine)


async def test_what_is_written_to_a_root_volume_stays(node: Node, process: NodeProcess) -> None:
    """From one machine to the next, over the kill of its QEMU after a sync, and with all of its capacity."""
    volume, first, second, third = new(), new(), new(), new()
    await node.volume_create(volume, capacity=12 * 2**30, source=SYSTEM)
    await rooted(node, first, volume)
    await shell(node, first, "echo kept > /home/app/kept; echo etc | sudo tee /etc/marker")
    assert int(await shell(node, first, "df -B1 --output=size / | tail -1")) > 11 * 10**9
    with pytest.raises(VolumeBusy):
        await node.machine_start(replace(spec(second), root=volume))
    # A fork has a disk of its own, which began as the volume's
    await node.machine_fork(first, spec(third))
    assert (await node.machine_wait(third, timeout=BOOT)).state is MachineState.READY
    assert await shell(node, third, "cat /home/app/kept; echo forked > /home/app/kept; sync") == "kept"
    assert await shell(node, first, "cat /home/app/kept") == "kept"
    await free(node, third)
    with pytest.raises(VolumeBusy):
        await node.volume_remove(volume)
    with pytest.raises(VolumeBusy):
        await node.volume_attach(first, VolumeMount(volume, "/again"))
    await free(node, first)
    await rooted(node, second, volume)
    assert await shell(node, second, "cat /home/app/kept /etc/marker") == "kept\netc"
    await shell(node, second, "head -c 5000000 /dev/urandom > blob; sha256sum blob > sum; sync")
    # A kill -9 of node and machine
    process.kill()
    for pid in process.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    process.start()
    ended = await node.machine_wait(second, timeout=BOOT)
    assert ended.state is MachineState.STOPPED
    await rooted(node, third, volume)
    assert await shell(node, third, "sha256sum -c sum") == "blob: OK"
    await free(node, second, third)
    await node.volume_remove(volume)


async def test_a_snapshot_boots_any_number(node: Node) -> None:
    """Taken of a root volume in use; what is written over it vanishes, and the volume goes on; gaps are short."""
    volume, writer = new(), new()
    snapshot = new()
    await node.volume_create(volume, capacity=10 * 10**9, source=SYSTEM)
    await rooted(node, writer, volume)
    await shell(node, writer, "head -c 30000000 /dev/urandom > blob; sha256sum blob > sum; echo before > state; sync")
    await shell(node, writer, f"nohup python3 -c '{GAPS}' >/dev/null 2>&1 & sleep 3; cat gaps")
    began = time.monotonic()
    await node.volume_snapshot(volume, snapshot)
    print(f"snapshot of a running root volume: {time.monotonic() - began:.3f} s")
    await asyncio.sleep(2)
    print(f"longest gap of a writer, in s: {await shell(node, writer, 'cat gaps')}")
    await shell(node, writer, "echo after > state")
    machines = [new(), new()]
    await asyncio.gather(*(rooted(node, machine, snapshot) for machine in machines))
    for machine in machines:
        assert await shell(node, machine, "sha256sum -c sum; cat state") == "blob: OK\nbefore"
        await shell(node, machine, f"echo {machine} > state")
    assert await shell(node, machines[0], "cat state") == machines[0]
    await free(node, *machines)
    again = new()
    await rooted(node, again, snapshot)
    assert await shell(node, again, "cat state") == "before"
    await node.volume_remove(snapshot)
    await node.machine_stop(again)
    # The machine's own disk is whole without the snapshot it began with
    await shell_after_restart(node, again, snapshot)
    assert await shell(node, writer, "cat state; sha256sum -c sum") == "after\nblob: OK"
    await node.volume_grow(volume, capacity=15 * 10**9)
    assert int(await shell(node, writer, "df -B1 --output=size / | tail -1")) > 13 * 10**9
    await free(node, again, writer)
    await node.volume_remove(volume)


async def shell_after_restart(node: Node, machine: str, root: str) -> None:
    await rooted(node, machine, root)
    assert await shell(node, machine, "cat state") == "before"


async def test_a_disk_larger_than_usual_stays_so(node: Node) -> None:
    """Of a machine that began with a larger snapshot: over starts, snapshots of it at rest and running, and forks."""
    volume, base, machine, fork = new(), new(), new(), new()
    size = "lsblk -bdno SIZE $(findmnt -no SOURCE /)"
    taken_of: list[str] = []

    async def taken_now(one: str) -> None:
        snapshot = new()
        assert (await node.machine_snapshot(one, snapshot)).capacity == 15 * 2**30
        taken_of.append(snapshot)

    await node.volume_create(volume, capacity=15 * 2**30, source=SYSTEM)
    await node.volume_snapshot(volume, base)
    await node.volume_remove(volume)
    await rooted(node, machine, base)
    await shell(node, machine, "echo kept > kept; sync")
    for _ in range(2):
        await node.machine_stop(machine)
        await taken_now(machine)
        await rooted(node, machine, base)
        assert await shell(node, machine, f"cat kept; {size}") == f"kept\n{15 * 2**30}"
        await taken_now(machine)
        assert await shell(node, machine, f"head -c 9000000 /dev/zero > zero; sync; {size}") == str(15 * 2**30)
    await node.machine_fork(machine, spec(fork))
    assert (await node.machine_wait(fork, timeout=BOOT)).state is MachineState.READY
    await taken_now(fork)
    assert await shell(node, fork, size) == str(15 * 2**30)
    await free(node, machine, fork)
    for snapshot in (base, *taken_of):
        await node.volume_remove(snapshot)


async def test_a_root_volume_that_grew_leaves_larger_forks(node: Node) -> None:
    """Its fork's disk is as large as it has become, and so is a snapshot of that."""
    volume, machine, fork, snapshot = (new() for _ in range(4))
    await node.volume_create(volume, capacity=10 * 2**30, source=SYSTEM)
    await rooted(node, machine, volume)
    await node.volume_grow(volume, capacity=14 * 2**30)
    await node.machine_fork(machine, spec(fork))
    assert (await node.machine_wait(fork, timeout=BOOT)).state is MachineState.READY
    assert (await node.machine_snapshot(fork, snapshot)).capacity == 14 * 2**30
    assert await shell(node, fork, "lsblk -bdno SIZE $(findmnt -no SOURCE /)") == str(14 * 2**30)
    await free(node, machine, fork)
    for one in (volume, snapshot):
        await node.volume_remove(one)


async def test_what_is_not_bootable(node: Node) -> None:
    """An empty volume is refused before anything is started."""
    volume = new()
    await node.volume_create(volume, capacity=10**9)
    with pytest.raises(NotBootable):
        await node.machine_start(replace(spec(secrets.token_hex(16)), root=volume))
    await node.volume_remove(volume)


async def taken(node: Node, machine: str, snapshot: str) -> VolumeInfo:
    """A snapshot of a machine, asked for again while its layers are being merged."""
    async with asyncio.timeout(BOOT):
        while True:
            began = time.monotonic()
            try:
                info = await node.machine_snapshot(machine, snapshot)
                print(f"snapshot of a session: {time.monotonic() - began:.3f} s")
                return info
            except VolumeBusy:
                await asyncio.sleep(1)


GAPS = """
import os, time
longest, last = 0, time.monotonic()
file = os.open("ticks", os.O_WRONLY | os.O_CREAT)
seen = open("gaps", "w")
for turn in range(3000):
    os.pwrite(file, b"x", 0)
    now = time.monotonic()
    if turn > 20 and now - last > longest:
        longest = now - last
        seen.seek(0); seen.write(f"{longest:.3f}"); seen.flush()
    last = now
    time.sleep(0.002)
"""


@pytest.mark.parametrize("clones", [False, True], ids=["booted", "cloned"])
async def test_a_snapshot_of_a_session(clones: bool) -> None:
    """Of a machine on a disk of its own, busy writing: it goes on, over many snapshots, and each boots as it was."""
    process = NodeProcess(clones=clones, warm=(512, 1, 10), pool_floor=1, pool_ceiling=1) if clones else NodeProcess()
    process.start()
    node = process.client
    machine = new()
    try:
        while clones and not (await node.host_info()).pool_ready:
            await asyncio.sleep(0.2)
        await node.machine_start(spec(machine))
        assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
        await shell(node, machine, "head -c 20000000 /dev/urandom > blob; sha256sum blob > sum; echo 0 > state; sync")
        await shell(node, machine, f"nohup python3 -c '{GAPS}' >/dev/null 2>&1 & sleep 2")
        snapshots = []
        for turn in range(8):
            await shell(node, machine, f"echo {turn} > state")
            snapshots.append(new())
            info = await taken(node, machine, snapshots[-1])
            assert (info.bootable, info.frozen) == (True, True)
        print(f"longest gap of a writer, in s: {await shell(node, machine, 'cat gaps')}")
        # Eight snapshots: the layers of its disk were merged meanwhile, those of the snapshots were not touched
        for turn in (0, 7):
            child = new()
            await rooted(node, child, snapshots[turn])
            assert await shell(node, child, "sha256sum -c sum; cat state") == f"blob: OK\n{turn}"
            await free(node, child)
        for snapshot in snapshots:
            await node.volume_remove(snapshot)
        assert await shell(node, machine, "sha256sum -c sum; cat state") == "blob: OK\n7"
        await free(node, machine)
    finally:
        await asyncio.to_thread(process.close)
