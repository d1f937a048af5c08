"""What vm.api.Node promises about volumes, held by the fake and by a real node alike."""

from __future__ import annotations

import secrets

import pytest

from tests.live.nodes import BOOT, execute, spec
from vm.api import SYSTEM, MachineState, Node, VolumeInfo
from vm.errors import MachineGone, NotBootable, VolumeBusy, VolumeGone


async def find(node: Node, volume: str) -> VolumeInfo | None:
    return next((info for info in await node.volume_list() if info.volume == volume), None)


async def test_a_volume_is_made_once_told_of_and_removed(node: Node) -> None:
    """Create answers with what is there and may be repeated; the list has it; remove leaves nothing, and repeats."""
    name = secrets.token_hex(16)
    made = await node.volume_create(name, capacity=10**9)
    assert (made.volume, made.bootable, made.frozen, made.used_by) == (name, False, False, ())
    assert made.capacity >= 10**9
    assert 0 < made.allocated <= made.flattened < 2**25
    assert await node.volume_create(name, capacity=10**9) == made
    assert await find(node, name) == made
    await node.volume_remove(name)
    await node.volume_remove(name)
    assert await find(node, name) is None


async def test_a_volume_of_the_guests_system_is_bootable(node: Node) -> None:
    """It takes next to nothing by itself: the image below is not its own."""
    name = secrets.token_hex(16)
    made = await node.volume_create(name, capacity=10 * 10**9, source=SYSTEM)
    assert made.bootable
    assert made.flattened < 2**20
    await node.volume_remove(name)


async def test_only_a_snapshot_is_a_source(node: Node) -> None:
    """What is not there is gone, and what may change is refused."""
    name = secrets.token_hex(16)
    await node.volume_create(name, capacity=10**9)
    with pytest.raises(VolumeBusy):
        await node.volume_create(secrets.token_hex(16), capacity=10**9, source=name)
    with pytest.raises(VolumeGone):
        await node.volume_create(secrets.token_hex(16), capacity=10**9, source=secrets.token_hex(16))
    await node.volume_remove(name)


async def test_a_snapshot_and_what_is_made_of_it(node: Node) -> None:
    """A snapshot is no volume to write to; what was made of it stays whole when it is gone."""
    volume, snapshot, child = (secrets.token_hex(16) for _ in range(3))
    await node.volume_create(volume, capacity=10**9)
    taken = await node.volume_snapshot(volume, snapshot)
    assert (taken.volume, taken.frozen, taken.bootable) == (snapshot, True, False)
    assert await node.volume_snapshot(volume, snapshot) == taken
    with pytest.raises(VolumeBusy):
        await node.volume_snapshot(snapshot, secrets.token_hex(16))
    with pytest.raises(VolumeGone):
        await node.volume_snapshot(secrets.token_hex(16), secrets.token_hex(16))
    made = await node.volume_create(child, capacity=10**9, source=snapshot)
    assert made.capacity == taken.capacity
    assert made.flattened >= taken.flattened
    for name in (snapshot, volume):
        await node.volume_remove(name)
    left = await find(node, child)
    assert left is not None
    assert left.flattened == made.flattened
    await node.volume_remove(child)


async def test_a_disk_at_rest_is_kept_and_given_back(node: Node) -> None:
    """Of a machine that is suspended or stopped, and has run; given back only to one that is stopped."""
    machine, suspended, stopped, volume = (secrets.token_hex(16) for _ in range(4))
    await node.machine_start(spec(machine))
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    await execute(node, machine, "sh", "-c", "echo one > state; sync")
    await node.machine_suspend(machine)
    taken = await node.machine_snapshot(machine, suspended)
    assert (taken.frozen, taken.bootable) == (True, True)
    assert await node.machine_snapshot(machine, suspended) == taken
    with pytest.raises(VolumeBusy):
        await node.machine_restore(machine, suspended)
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    await execute(node, machine, "sh", "-c", "echo two > state; sync")
    await node.machine_stop(machine)
    await node.machine_snapshot(machine, stopped)
    await node.volume_create(volume, capacity=10**9)
    with pytest.raises((VolumeBusy, NotBootable)):
        await node.machine_restore(machine, volume)
    with pytest.raises(VolumeGone):
        await node.machine_restore(machine, secrets.token_hex(16))
    with pytest.raises(MachineGone):
        await node.machine_snapshot(secrets.token_hex(16), secrets.token_hex(16))
    for snapshot, state in ((suspended, b"one\n"), (stopped, b"two\n")):
        await node.machine_restore(machine, snapshot)
        await node.volume_remove(snapshot)
        await node.machine_start(spec(machine))
        assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
        assert (await execute(node, machine, "cat", "state"))[1] == state
        await node.machine_stop(machine)
    await node.machine_forget(machine)
    await node.volume_remove(volume)
    assert [info for info in await node.volume_list() if info.volume in (suspended, stopped, volume)] == []
