"""Creates and kills in a row: the node's memory and files, and what is on the host, do not grow."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path

import pytest

from tests.live.nodes import BOOT, SMALL, NodeProcess, spec
from vm.api import MachineState

pytestmark = [pytest.mark.live, pytest.mark.timeout(0)]
WHOLE = 500  # creates under `make soak`
GROWTH = 24 * 2**20  # bytes of memory that the allocator may keep


async def test_creates_and_kills_leave_nothing(soak_seconds: float) -> None:
    """Again and again the same number of files is open; at the end nothing is left, and memory has not grown."""
    process = NodeProcess(seeded=[SMALL], clones=True, warm=(512, 1, 10), pool_floor=2, pool_ceiling=2)
    await asyncio.to_thread(process.start)
    try:
        node = process.client
        assert process.process is not None
        pid = process.process.pid
        made = 0
        seen: list[tuple[int, int, int]] = []
        until = time.monotonic() + soak_seconds
        long = soak_seconds > 600

        async def settled() -> tuple[int, int, int]:
            # The pool is full again, so the same things are there each time
            deadline = time.monotonic() + BOOT
            while (info := await node.host_info()).pool_ready < info.pool_wanted:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
            await asyncio.sleep(1)  # libvirt lets go of the last one a moment after its end
            return _resident(pid), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

        for _ in range(5):  # what is loaded and opened once is no growth
            await _one(process)
        seen.append(await settled())
        while made < WHOLE if long else time.monotonic() < until:
            await _one(process)
            made += 1
            if made % 25 == 0:
                seen.append(await settled())
        seen.append(await settled())
        print(f"{made} creates and kills; memory, files, threads: {seen}")
        assert made >= 10
        assert seen[-1][0] - seen[0][0] < GROWTH, seen
        assert abs(seen[-1][1] - seen[0][1]) <= 4, seen
        assert abs(seen[-1][2] - seen[0][2]) <= 4, seen
        # The pool's two, and nothing else
        assert len(process.qemu_pids()) == 2
        assert len(list(Path("/run/netns").glob(f"atoll-{process.tag}-*"))) == 2
        assert not list((process.data / "machines").glob("*/"))
        # Two clones wait over their template, which has one layer ready for the next
        disks = sorted(path.suffix for path in (process.data / "disks").iterdir())
        assert disks in ([".qcow2"] * 3, [".qcow2"] * 3 + [".spare"]), disks
        assert not list((Path("/dev/shm") / f"atoll-{process.tag}").glob("*.save"))
        assert len(list((process.data / "libvirt" / "log" / "qemu").glob("*.log"))) <= 3
        await asyncio.to_thread(process.stop)
        assert process.leftovers() == []
    finally:
        await asyncio.to_thread(process.close)


async def _one(process: NodeProcess) -> None:
    machine = secrets.token_hex(16)
    await process.client.machine_start(spec(machine))
    info = await process.client.machine_wait(machine, timeout=BOOT)
    assert info.state is MachineState.READY, info
    await process.client.machine_stop(machine)
    await process.client.machine_forget(machine)


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
