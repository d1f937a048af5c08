"""Snapshots as templates: the second machine from one is a clone, and one with memory goes on where it was taken."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxes import file_lists
from tests.live.nodes import BOOT, NodeProcess, boot, execute, spec, start_command
from vm.api import MachineInfo, MachineState, Node, Origin, VolumeMount
from vm.errors import VolumeBusy

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node that clones, and keeps no machine of another size warm."""
    made = NodeProcess(clones=True, warm=None, pool_floor=0, pool_ceiling=0)
    made.start()
    yield made
    made.close()


async def started(node: Node, machine: str, root: str) -> MachineInfo:
    await node.machine_start(replace(spec(machine, hostname=f"h{machine[:8]}", env={"OWN": machine}), root=root))
    info = await node.machine_wait(machine, timeout=BOOT)
    assert info.state is MachineState.READY, info
    return info


async def shell(node: Node, machine: str, command: str) -> str:
    code, output = await execute(node, machine, "sh", "-c", command)
    assert code == 0, output
    return output.decode().strip()


def templates(process: NodeProcess) -> dict[Path, dict[str, Any]]:
    """What lies on the disk, by its directory."""
    return {path.parent: json.loads(path.read_text()) for path in process.data.glob("templates/[!.]*/template.json")}


def roots(process: NodeProcess) -> set[str]:
    """The snapshots of which there are templates."""
    return {template["size"]["root"] for template in templates(process).values()}


async def gone(node: Node, *machines: str) -> None:
    for machine in machines:
        await node.machine_stop(machine)
        await node.machine_forget(machine)


async def test_from_the_disk_and_from_the_memory(node: Node, process: NodeProcess) -> None:
    """Booted once and cloned from then on; with memory a program goes on, under another name, with other numbers."""
    source, volume, disk, memory = (secrets.token_hex(16) for _ in range(4))
    await boot(node, source)
    await shell(node, source, "echo one > state; sync")
    count = "n=0; while sleep 0.05; do n=$((n+1)); echo $n > /tmp/next; mv /tmp/next /tmp/count; done"
    await start_command(node, source, "sh", "-c", count)
    await node.volume_create(volume, capacity=10**9)
    await node.volume_attach(source, VolumeMount(volume, "/data"))
    with pytest.raises(VolumeBusy):
        await node.machine_snapshot(source, memory, memory=True)
    await node.volume_detach(source, volume)
    await node.volume_remove(volume)
    began = time.monotonic()
    taken = await node.machine_snapshot(source, memory, memory=True)
    print(f"snapshot with memory: {time.monotonic() - began:.2f} s")
    assert (taken.frozen, taken.bootable) == (True, True)
    assert await node.machine_snapshot(source, memory, memory=True) == taken
    await shell(node, source, "echo two > state; sync")
    await node.machine_snapshot(source, disk)

    first, second = secrets.token_hex(16), secrets.token_hex(16)
    for copy in (first, second):
        began = time.monotonic()
        info = await started(node, copy, memory)
        print(f"from memory: {time.monotonic() - began:.2f} s {dict(info.stages)}")
        assert (info.origin, info.note) == (Origin.FORK, "")
        before = int(await shell(node, copy, "cat /tmp/count"))
        async with asyncio.timeout(BOOT):
            while int(await shell(node, copy, "cat /tmp/count")) <= before:
                await asyncio.sleep(0.2)
        assert await shell(node, copy, "cat state; hostname; echo $OWN") == f"one\nh{copy[:8]}\n{copy}"
    numbers = [await shell(node, one, "head -c 16 /dev/urandom | od -An -tx1") for one in (source, first, second)]
    assert len(set(numbers)) == 3
    assert await shell(node, source, "cat state") == "two"
    await gone(node, source, first, second)

    slow = await started(node, first, disk)
    assert slow.origin is Origin.COLD
    assert "no template" in slow.note
    until = time.monotonic() + BOOT
    # Written down first, and then used
    while disk not in roots(process) or (await node.host_info()).templates < len(templates(process)):
        assert time.monotonic() < until, process.log.read_text()[-2000:]
        await asyncio.sleep(0.2)
    began = time.monotonic()
    quick = await started(node, second, disk)
    print(f"from the template: {time.monotonic() - began:.2f} s {dict(quick.stages)}")
    assert (quick.origin, quick.note) == (Origin.CLONE, "")
    assert await shell(node, second, "cat state; hostname") == f"two\nh{second[:8]}"
    # As checkpoints are looked into
    await node.volume_attach(second, VolumeMount(disk, "/mnt/look", read_only=True))
    arguments = ["-H", "/mnt/look/", "-xdev", "-mindepth", "1", "-printf", file_lists.FORMAT]
    _code, told = await execute(node, second, "find", *arguments)
    listed = {entry.path: entry for entry in file_lists.entries(file_lists.packed(told))}
    assert (listed["home/app/state"].kind, listed["home/app/state"].size) == ("file", 4)
    assert len(listed) > 5000
    await gone(node, first, second)

    # Another node has it still; damaged it is of no use, but its disk is
    process.kill()
    (image,) = [path / "memory.save" for path, template in templates(process).items() if template["live"]]
    with image.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    process.start()
    info = await started(node, first, memory)
    assert info.origin is Origin.COLD
    assert "damaged" in info.note
    assert await shell(node, first, "cat state") == "one"
    await gone(node, first)
    for snapshot in (memory, disk):
        await node.volume_remove(snapshot)
    assert not {memory, disk} & roots(process)
