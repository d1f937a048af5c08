"""Forks of a machine whose processors are busy: what goes on in both, and what must be in one of them only."""

from __future__ import annotations

import asyncio
import secrets
import struct
from dataclasses import replace

import pytest

from tests.live.nodes import BOOT, IMAGES, NodeProcess, boot, execute, spec, start_command
from vm.api import MachineState, Node, VolumeMount
from vm.errors import VolumeBusy
from vm.image.build import build
from vm.image.kallsyms import physical
from vm.storage.images import RandomState, image_find

pytestmark = pytest.mark.live

VCPUS = 2
DRAWS = 400_000  # that each program remembers: what it drew in some seconds, and its first ones
FIRST = 100
DRAWING = f"""
import os, struct, sys, time
os.sched_setaffinity(0, {{int(sys.argv[1])}})
kept, n = bytearray({DRAWS} * 24), 0
while True:
    value = os.urandom(16)
    at = (n if n < {FIRST} else {FIRST} + (n - {FIRST}) % ({DRAWS} - {FIRST})) * 24
    kept[at:at + 24] = value + struct.pack("<q", time.monotonic_ns())
    n += 1
    if n % 500 == 0 and os.path.exists("/dev/shm/enough"):
        break
with open(f"/dev/shm/part-{{os.getpid()}}", "wb") as file:
    file.write(kept)
os.rename(file.name, f"/dev/shm/draws-{{os.getpid()}}")
while True:
    time.sleep(0.1)
"""


async def test_a_fork_of_busy_processors_ticks_on_and_draws_its_own(process: NodeProcess) -> None:
    """Forked while every processor draws random numbers: no processor loses its clock, and no number is drawn twice.

    A number is remembered with the time after it was drawn. One that was drawn before the copy is in both with the same
    time; a program that was drawing at that moment has the number in hand, as it has all of its memory, and notes
    another time for it in each: that is one for each program.
    """
    node = process.client
    machine = secrets.token_hex(16)
    await boot(node, machine, vcpus=VCPUS)
    for vcpu in range(VCPUS):
        await start_command(node, machine, "python3", "-c", DRAWING, str(vcpu))
    await asyncio.sleep(2)
    for _ in range(2):
        theirs = await _draws_of_a_fork(node, machine)
        # This one has in its memory what the original drew after the first
        mine = await _draws_of_a_fork(node, machine)
        await _require_ticks(node, machine)
        both = mine.keys() & theirs.keys()
        twice = [value for value in both if mine[value] != theirs[value]]
        assert len(twice) <= VCPUS, f"{len(twice)} of {len(mine)} numbers were drawn twice"
        # The comparison finds what there is: numbers from before the copies
        assert len(both) >= VCPUS * FIRST
    await node.machine_stop(machine)
    await node.machine_forget(machine)


async def _forked(node: Node, machine: str) -> str:
    fork = secrets.token_hex(16)
    await node.machine_fork(machine, spec(fork))
    info = await node.machine_wait(fork, timeout=BOOT)
    assert info.state is MachineState.READY, info.detail
    return fork


async def _draws_of_a_fork(node: Node, machine: str) -> dict[bytes, int]:
    """What the programs of a new fork remember. Its processors have their clocks while all of them are still busy."""
    fork = await _forked(node, machine)
    await _require_ticks(node, fork)
    draws = await _draws(node, fork)
    await node.machine_stop(fork)
    await node.machine_forget(fork)
    return draws


async def _require_ticks(node: Node, machine: str) -> None:
    before = await _ticks(node, machine)
    await asyncio.sleep(1)
    after = await _ticks(node, machine)
    assert all(now > then for then, now in zip(before, after, strict=True)), (before, after)


async def _draws(node: Node, machine: str) -> dict[bytes, int]:
    """The time of each number that its programs remember; they draw no more."""
    wait = f"touch /dev/shm/enough; while [ $(ls /dev/shm | grep -c draws) -lt {VCPUS} ]; do sleep 0.1; done"
    _code, output = await execute(node, machine, "sh", "-c", f"{wait}; cat /dev/shm/draws-*", timeout=BOOT)
    return {value: at for value, at in struct.iter_unpack("<16sq", output) if at}


async def _ticks(node: Node, machine: str) -> list[int]:
    """How many interrupts of its own timer each processor has had."""
    _code, output = await execute(node, machine, "grep", "LOC:", "/proc/interrupts")
    return [int(count) for count in output.split()[1 : VCPUS + 1]]


async def test_the_image_knows_where_its_kernel_has_its_random_numbers(process: NodeProcess) -> None:
    """The addresses in its manifest, which come from the kernel's file, are those that the kernel itself names."""
    node, machine = process.client, secrets.token_hex(16)
    await boot(node, machine)
    command = "sudo grep -E ' (base_crng|_vdso_rng_data)$' /proc/kallsyms"
    _code, output = await execute(node, machine, "sh", "-c", command)
    named = {line.split()[2]: physical(int(line.split()[0], 16)) for line in output.decode().splitlines()}
    assert image_find(IMAGES, build(IMAGES).name).random == RandomState(
        base=named["base_crng"], vdso=named["_vdso_rng_data"]
    )
    await node.machine_stop(machine)
    await node.machine_forget(machine)


async def test_a_fork_that_never_had_its_turn_keeps_its_disk(process: NodeProcess) -> None:
    """Stopped while it waits to boot, it starts later with what the original's disk held at the moment of the fork."""
    node = process.client
    original, fork, *others = (secrets.token_hex(16) for _ in range(10))
    await boot(node, original)
    assert await execute(node, original, "sh", "-c", "echo one > state") == (0, b"")
    for other in others:
        await node.machine_start(spec(other))  # no place is left, and none will be soon
    await node.machine_fork(original, spec(fork))
    assert (await node.machine_get(fork)).state is MachineState.QUEUED
    await node.machine_stop(fork)
    assert await execute(node, original, "sh", "-c", "echo two > state") == (0, b"")
    for other in others:
        await node.machine_stop(other)
        await node.machine_forget(other)
    await boot(node, fork)
    assert await execute(node, fork, "cat", "state") == (0, b"one\n")
    for machine in (original, fork):
        await node.machine_stop(machine)
        await node.machine_forget(machine)


async def test_a_fork_has_copies_of_volumes(process: NodeProcess) -> None:
    """As they were at that moment, to write to; snapshots are in both, and the volume stays the original's."""
    node = process.client
    volume, snapshot, original, copy = (secrets.token_hex(16) for _ in range(4))
    before = set((process.data / "disks").glob("*.qcow2"))
    await node.volume_create(volume, capacity=10**9)
    await boot(node, original)
    await node.volume_attach(original, VolumeMount(volume, "/data"))

    async def shell(machine: str, command: str) -> str:
        code, output = await execute(node, machine, "sh", "-c", f"exec 2>&1; {command}")
        assert code == 0, output
        return output.decode().strip()

    await shell(original, "echo one > /data/state")
    await node.volume_snapshot(volume, snapshot)
    frozen = VolumeMount(snapshot, "/frozen", read_only=True)
    await node.volume_attach(original, frozen)
    # Held open, and not yet written to the disk
    await start_command(node, original, "sh", "-c", "exec >> /data/log; while sleep 0.1; do echo x; done")
    await shell(original, "echo two > /data/state")
    await node.machine_fork(original, replace(spec(copy), volumes=[frozen]))
    info = await node.machine_wait(copy, timeout=BOOT)
    assert info.state is MachineState.READY, info
    assert "/data is a copy" in info.note
    assert "/frozen" not in info.note
    assert await shell(copy, "cat /data/state /frozen/state; echo fork > /data/state; sync") == "two\none"
    assert await shell(original, "cat /data/state; echo three > /data/state; sync") == "two"
    for machine, text in ((copy, "fork"), (original, "three")):
        lines = int(await shell(machine, "wc -l < /data/log"))
        async with asyncio.timeout(BOOT):
            while int(await shell(machine, "wc -l < /data/log")) <= lines:
                await asyncio.sleep(0.2)
        assert (
            await shell(machine, "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null; cat /data/state")
            == text
        )
    used = {one.volume: one.used_by for one in await node.volume_list()}
    assert used == {volume: (original,), snapshot: ()}
    with pytest.raises(VolumeBusy):
        await node.volume_attach(copy, VolumeMount(volume, "/other"))
    await node.machine_suspend(copy)
    await node.machine_resume(copy)
    assert (await node.machine_wait(copy, timeout=BOOT)).state is MachineState.READY
    assert await shell(copy, "cat /data/state /frozen/state") == "fork\none"
    await node.machine_stop(original)
    await node.machine_start(replace(spec(original), volumes=[VolumeMount(volume, "/data")]))
    assert (await node.machine_wait(original, timeout=BOOT)).state is MachineState.READY
    assert await shell(original, "cat /data/state") == "three"
    for machine in (original, copy):
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    for one in (volume, snapshot):
        await node.volume_remove(one)
    assert set((process.data / "disks").glob("*.qcow2")) == before
