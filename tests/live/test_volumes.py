"""Volumes of real machines: what is written outlives the machine, and nobody writes beside another."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.live.nodes import BOOT, SMALL, NodeProcess, boot, execute, spec, start_command
from vm.api import MachineInfo, MachineState, Node, VolumeMount
from vm.errors import MachineFailed, VolumeBusy, VolumeGone

pytestmark = pytest.mark.live


@pytest.fixture(scope="module", params=[False, True], ids=["booted", "cloned"])
def process(request: pytest.FixtureRequest) -> Iterator[NodeProcess]:
    """A node that boots machines, and one whose machines are clones, which wait in its pool."""
    made = (
        NodeProcess(seeded=[SMALL], clones=True, warm=(512, 1, 10), pool_floor=1, pool_ceiling=2)
        if request.param
        else NodeProcess()
    )
    made.start()
    yield made
    made.close()


def new() -> str:
    return secrets.token_hex(16)


async def started(node: Node, machine: str, *volumes: VolumeMount, **details: Any) -> MachineInfo:
    """A machine that has these from its beginning."""
    await node.machine_start(replace(spec(machine, **details), volumes=volumes))
    return await node.machine_wait(machine, timeout=BOOT)


async def shell(node: Node, machine: str, command: str) -> str:
    code, output = await execute(node, machine, "sh", "-c", f"exec 2>&1; {command}")
    assert code == 0, output
    return output.decode().strip()


async def test_what_is_written_outlives_the_machine(node: Node) -> None:
    """Mounted at create, the volume is the user's; stopped and mounted by the next one, it has what was written."""
    volume = new()
    await node.volume_create(volume, capacity=10**9)
    mount = VolumeMount(volume, "/data/my volume")
    first, second = new(), new()
    info = await started(node, first, mount)
    assert info.state is MachineState.READY, info
    assert "volumes" in info.stages
    written = 'head -c 3000000 /dev/urandom > "/data/my volume/blob" && sha256sum < "/data/my volume/blob"'
    digest = await shell(node, first, written)
    assert await shell(node, first, 'stat -c "%U %a" "/data/my volume"') == "app 755"
    assert (await node.volume_list())[0].used_by == (first,)
    with pytest.raises(VolumeBusy):
        await node.machine_start(replace(spec(second), volumes=[mount]))
    with pytest.raises(VolumeBusy):
        await node.volume_remove(volume)
    with pytest.raises(VolumeBusy):
        await node.machine_fork(first, replace(spec(second), volumes=[mount]))
    await node.machine_stop(first)
    assert (await started(node, second, mount)).state is MachineState.READY
    assert await shell(node, second, 'sha256sum < "/data/my volume/blob"') == digest
    # It was left clean: nothing had to be recovered
    assert "recovery complete" not in await shell(node, second, "sudo dmesg | grep EXT4 || true")
    for machine in (first, second):
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    await node.volume_remove(volume)
    assert await node.volume_list() == []


async def test_plugged_in_while_it_runs(node: Node, process: NodeProcess) -> None:
    """A volume comes into a running machine and goes again, over a suspend and a new node, and is nobody's then."""
    machine, volume, other = new(), new(), new()
    await boot(node, machine)
    await node.volume_create(volume, capacity=10**9)
    mount = VolumeMount(volume, "/home/app/mnt")
    took = []
    for turn in range(3):
        began = time.monotonic()
        await node.volume_attach(machine, mount)
        took.append(round(time.monotonic() - began, 3))
        await node.volume_attach(machine, mount)
        await shell(node, machine, f"echo {turn} >> mnt/turns")
        if turn == 0:
            await node.machine_suspend(machine)
            await node.machine_resume(machine)
            assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
            await shell(node, machine, "echo resumed >> mnt/turns")
        elif turn == 1:
            process.kill()
            process.start()
            assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
            assert (await node.volume_list())[0].used_by == (machine,)
        await node.volume_detach(machine, volume)
        await node.volume_detach(machine, volume)
        assert await shell(node, machine, "ls mnt") == ""
        assert (await node.volume_list())[0].used_by == ()
    print(f"attach took {took} s")
    assert min(took) < 3
    await node.volume_attach(machine, mount)
    assert await shell(node, machine, "cat mnt/turns") == "0\nresumed\n1\n2"
    with pytest.raises(VolumeBusy, match="has it already"):
        await node.volume_attach(machine, VolumeMount(volume, "/elsewhere"))
    with pytest.raises(VolumeGone):
        await node.volume_attach(machine, VolumeMount(other, "/elsewhere"))
    await start_command(node, machine, "sh", "-c", "cd mnt && exec sleep 1000")
    await asyncio.sleep(1)
    with pytest.raises(VolumeBusy, match="sleep"):
        await node.volume_detach(machine, volume)
    assert await shell(node, machine, "cat mnt/turns") == "0\nresumed\n1\n2"
    await node.machine_stop(machine)
    assert (await node.volume_list())[0].used_by == ()
    await node.machine_forget(machine)
    await node.volume_remove(volume)


async def test_as_many_as_there_are_places(node: Node) -> None:
    """Eight fit, the ninth is refused in words and stays free, and a place that is given back can be used again."""
    machine = new()
    await boot(node, machine)
    volumes = [new() for _ in range(9)]
    for volume in volumes:
        await node.volume_create(volume, capacity=100_000_000)
    for number, volume in enumerate(volumes[:8]):
        await node.volume_attach(machine, VolumeMount(volume, f"/v/{number}"))
    with pytest.raises(VolumeBusy, match="8 volumes"):
        await node.volume_attach(machine, VolumeMount(volumes[8], "/v/8"))
    assert len((await shell(node, machine, "df | grep /v/")).splitlines()) == 8
    await node.volume_detach(machine, volumes[3])
    await node.volume_attach(machine, VolumeMount(volumes[8], "/v/8"))
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    for volume in volumes:
        await node.volume_remove(volume)


async def test_a_machine_whose_volume_cannot_be_mounted(node: Node) -> None:
    """It does not start, says why, and the volume is free and whole."""
    volume, first, second = new(), new(), new()
    await node.volume_create(volume, capacity=10**9)
    failed = await started(node, first, VolumeMount(volume, "/etc/passwd"))
    assert failed.state is MachineState.STOPPED
    assert "exists" in failed.detail
    assert (await started(node, second, VolumeMount(volume, "/data"))).state is MachineState.READY
    with pytest.raises(MachineFailed):
        await node.volume_attach(second, VolumeMount(await _made(node), "/etc/passwd"))
    assert [one.used_by for one in await node.volume_list()] == [(second,), ()]
    for machine in (first, second):
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    for info in await node.volume_list():
        await node.volume_remove(info.volume)


async def _made(node: Node) -> str:
    volume = new()
    await node.volume_create(volume, capacity=10**9)
    return volume
