"""What volumes and snapshots cost: a live mount, a snapshot of a session that writes, a volume from a snapshot."""

from __future__ import annotations

import asyncio
import secrets
import time

from bench.report import Number, median
from tests.live.nodes import BOOT, NodeProcess, execute, spec, start_command
from vm.api import MachineState, Node, VolumeMount
from vm.errors import VolumeBusy

RUNS = 5
CHANGED = 200  # MB
_GAP = """
import os, sys, time
file = os.open("ticks", os.O_WRONLY | os.O_CREAT)
while True:
    longest, until, last = 0, time.monotonic() + 1, time.monotonic()
    while last < until or not os.path.exists("ask"):
        os.pwrite(file, b"x", 0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        time.sleep(0.002)
    os.unlink("ask")
    with open("gap", "w") as told:
        told.write(str(longest))
"""


def volumes() -> list[Number]:
    """On a node of its own, because an installation would stop machines that none of its rows names."""
    process = NodeProcess(clones=True, warm=(1280, 2, 10), pool_floor=1, pool_ceiling=1)
    process.start()
    try:
        return asyncio.run(_volumes(process.client))
    finally:
        process.close()


async def _volumes(node: Node) -> list[Number]:
    while not (await node.host_info()).pool_ready:  # noqa: ASYNC110 (its template is being baked)
        await asyncio.sleep(0.2)
    machine = secrets.token_hex(16)
    await node.machine_start(spec(machine, memory_mib=1280, vcpus=2))
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    plugged = await _plugged(node, machine)
    await start_command(node, machine, "python3", "-c", _GAP)
    usual = await _gap(node, machine)
    gaps, snapshots = [], []
    for _ in range(RUNS):
        await _shell(node, machine, f"head -c {CHANGED}000000 /dev/urandom > blob; sync")
        await _gap(node, machine)
        snapshots.append(secrets.token_hex(16))
        await _snapshot(node, machine, snapshots[-1])
        gaps.append(await _gap(node, machine))
    made = []
    for snapshot in snapshots:
        began = time.monotonic()
        await node.volume_create(secrets.token_hex(16), capacity=20 * 10**9, source=snapshot)
        made.append(time.monotonic() - began)
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    return [
        Number("volume plugged in and mounted", median(plugged), "s", at_most=1.0),
        Number(
            f"snapshot of a session, {CHANGED} MB changed: longest gap of a writer",
            median(gaps) * 1000,
            "ms",
            at_most=100,
            note=f"usual {usual * 1000:.0f} ms",
        ),
        Number(f"volume from a snapshot with {RUNS * CHANGED} MB", median(made), "s", at_most=0.3),
    ]


async def _plugged(node: Node, machine: str) -> list[float]:
    took = []
    for _ in range(RUNS):
        volume = secrets.token_hex(16)
        await node.volume_create(volume, capacity=10**9)
        began = time.monotonic()
        await node.volume_attach(machine, VolumeMount(volume, "/data"))
        took.append(time.monotonic() - began)
        await node.volume_detach(machine, volume)
        await node.volume_remove(volume)
    return took


async def _snapshot(node: Node, machine: str, snapshot: str) -> None:
    while True:
        try:
            await node.machine_snapshot(machine, snapshot)
            return
        except VolumeBusy:
            await asyncio.sleep(0.5)


async def _gap(node: Node, machine: str) -> float:
    """The longest gap of the writer, in seconds, since it was asked last."""
    return float(await _shell(node, machine, "rm -f gap; touch ask; while [ ! -s gap ]; do sleep 0.05; done; cat gap"))


async def _shell(node: Node, machine: str, command: str) -> str:
    code, output = await execute(node, machine, "sh", "-c", command, timeout=BOOT)
    assert code == 0, output
    return output.decode()
