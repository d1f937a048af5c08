"""Snapshots of real volumes: what they hold never changes, whatever becomes of what they were taken of."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from tests.live.nodes import NodeProcess, boot, spec
from tests.live.test_volumes import new, shell, started
from vm.api import MachineState, Node, StopReason, VolumeMount
from vm.errors import VolumeBusy, VolumeDamaged

pytestmark = pytest.mark.live


async def test_of_a_volume_in_use(node: Node, process: NodeProcess) -> None:
    """Taken while its machine writes; mounted read-only by others; made into volumes in no time; its base may go."""
    volume, first, second = new(), new(), new()
    snapshots = [new(), new()]
    before = set((process.data / "disks").glob("*.qcow2"))
    await node.volume_create(volume, capacity=4 * 10**9)
    assert (await started(node, first, VolumeMount(volume, "/data"))).state is MachineState.READY
    await shell(node, first, "echo one > /data/a; head -c 60000000 /dev/urandom > /data/blob")
    digest = await shell(node, first, "sha256sum < /data/blob")
    for number, snapshot in enumerate(snapshots):
        began = time.monotonic()
        info = await node.volume_snapshot(volume, snapshot)
        print(f"snapshot of a volume in use: {time.monotonic() - began:.3f} s")
        assert info.frozen
        await shell(node, first, f"echo {number} >> /data/a")
    assert await shell(node, first, "cat /data/a") == "one\n0\n1"
    mounts = [VolumeMount(snapshots[0], "/old", True), VolumeMount(snapshots[1], "/new", True)]
    assert (await started(node, second, *mounts)).state is MachineState.READY
    assert await shell(node, second, "cat /old/a") == "one"
    assert await shell(node, second, "cat /new/a") == "one\n0"
    assert await shell(node, second, "sha256sum < /new/blob") == digest
    assert "Read-only" in await shell(node, second, "touch /old/x || true")
    with pytest.raises(VolumeBusy):
        await node.volume_attach(second, VolumeMount(snapshots[0], "/rw"))
    with pytest.raises(VolumeBusy):
        await node.volume_attach(second, VolumeMount(volume, "/ro", True))

    child = new()
    began = time.monotonic()
    await node.volume_create(child, capacity=20 * 10**9, source=snapshots[1])
    took = time.monotonic() - began
    print(f"volume from a snapshot: {took:.3f} s")
    assert took < 1
    process.kill()
    process.start()
    await node.machine_stop(first)
    for name in (volume, *snapshots):
        await node.volume_remove(name)
    assert await shell(node, second, "sha256sum < /new/blob") == digest
    await node.volume_attach(second, VolumeMount(child, "/child"))
    assert await shell(node, second, "cat /child/a; sha256sum < /child/blob") == f"one\n0\n{digest}"
    # Larger than what it was made of, and all of it can be used
    assert int(await shell(node, second, "df -B1 --output=size /child | tail -1")) > 15 * 10**9
    await node.machine_stop(second)
    await node.volume_remove(child)
    for machine in (first, second):
        await node.machine_forget(machine)
    assert set((process.data / "disks").glob("*.qcow2")) == before


async def flip(process: NodeProcess, snapshot: str) -> None:
    """Change one bit in the uppermost layer of a snapshot once that is sealed, and start the node anew."""
    layer = json.loads((process.data / "volumes" / f"{snapshot}.json").read_text())["layers"][0]
    disk = process.data / "disks" / f"{layer}.qcow2"
    async with asyncio.timeout(60):
        while not disk.with_suffix(".seal").exists():
            await asyncio.sleep(0.1)
    before = disk.stat()
    with disk.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(before.st_size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns))
    process.stop()
    process.start()


async def test_a_bit_that_has_flipped(node: Node, process: NodeProcess) -> None:
    """What is not what was written is refused, with the reason, before anything is started from it."""
    volume, snapshot, machine = new(), new(), new()
    await node.volume_create(volume, capacity=10**9)
    await node.volume_snapshot(volume, snapshot)
    await flip(process, snapshot)
    with pytest.raises(VolumeDamaged):
        await node.volume_create(new(), capacity=10**9, source=snapshot)
    await boot(node, machine)
    with pytest.raises(VolumeDamaged):
        await node.volume_attach(machine, VolumeMount(snapshot, "/x", True))
    with pytest.raises(VolumeDamaged):
        await node.volume_attach(machine, VolumeMount(volume, "/x"))  # whose lower layer it is
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    for name in (volume, snapshot):
        await node.volume_remove(name)


async def test_a_bit_that_has_flipped_below_a_machine_s_own_disk(node: Node, process: NodeProcess) -> None:
    """It is not started on a disk that is not what it wrote, and says so; a large one is read beside a start."""
    snapshot, machine = new(), new()
    await boot(node, machine)
    await node.machine_stop(machine)
    await node.machine_snapshot(machine, snapshot)
    await boot(node, machine)
    await node.machine_stop(machine)
    await flip(process, snapshot)
    async with asyncio.timeout(120):
        while True:
            await node.machine_start(spec(machine))
            info = await node.machine_wait(machine, timeout=60)
            if info.state is not MachineState.READY:
                break
            await node.machine_stop(machine)
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.BOOT_FAILED)
    assert "not what was written" in info.detail
    await node.machine_forget(machine)
    await node.volume_remove(snapshot)
