"""What suspend, resume, fork and stop cost, and what an idle machine holds of the host."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bench.report import Number, median
from bench.tti import MEMORY
from tests.live.nodes import NodeProcess
from vm.api import Identity, MachineSpec, MachineState, Node
from vm.guest.calls import GuestCall, call
from vm.node.hostinfo import memory_available

RUNS = 5
DIRTY = 300  # MB
_FILL = f"import os, time; kept = os.urandom({DIRTY} * 10**6); print('full', flush=True); time.sleep(10**6)"
_TICK = "import time\nwhile True:\n    print(flush=True)\n    time.sleep(0.002)\n"


def suspend() -> list[Number]:
    """On a node of its own, because an installation would stop machines that none of its rows names."""
    process = NodeProcess(clones=True, warm=(MEMORY, 2, 10), pool_floor=1, pool_ceiling=1)
    process.start()
    try:
        return asyncio.run(_suspend(process))
    finally:
        process.close()


async def _suspend(process: NodeProcess) -> list[Number]:
    node = process.client
    while not (await node.host_info()).pool_ready:  # noqa: ASYNC110 (its template is being baked)
        await asyncio.sleep(0.2)
    async with _machine(node) as machine:
        await _output_of(node, machine, _FILL)
        down, up = [], []
        for _ in range(RUNS):
            down.append(await _timed(node.machine_suspend(machine)))
            began = time.monotonic()
            await node.machine_resume(machine)
            assert (await node.machine_wait(machine, timeout=60)).state is MachineState.READY
            await call(await node.stream_open(machine), "ping")
            up.append(time.monotonic() - began)
    forked, gaps, usual = await _forks(node)
    stops = []
    for _ in range(RUNS):
        name = await _started(node)
        stops.append(await _timed(node.machine_stop(name)))
        await node.machine_forget(name)
    return [
        Number(f"suspend, {DIRTY} MB dirty", median(down), "s", at_most=1.2),
        Number(f"resume, {DIRTY} MB dirty: p50", median(up), "s", at_most=1.0),
        Number("fork, until the fork answers", median(forked), "s", at_most=1.2),
        Number(
            "fork, longest gap of the original",
            median(gaps) * 1000,
            "ms",
            at_most=60,
            note=f"usual {usual * 1000:.0f} ms",
        ),
        Number("stop", median(stops), "s", at_most=0.4),
        *_idle(await _idle_machines(process)),
    ]


async def _forks(node: Node) -> tuple[list[float], list[float], float]:
    """Seconds until forks answer, the longest silence of the original meanwhile, and that of a time without a fork."""
    times, gaps = [], []
    async with _machine(node) as machine:
        pid = await _spawn(node, machine, _TICK)
        async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as ticks:
            assert "ok" in await ticks.reply()
            listener = _Gaps(ticks)
            listening = asyncio.ensure_future(listener.listen())
            await asyncio.sleep(2)
            listener.longest = 0.0
            await asyncio.sleep(1)
            usual = listener.longest
            for _ in range(RUNS):
                fork = secrets.token_hex(16)
                listener.longest = 0.0
                began = time.monotonic()
                await node.machine_fork(machine, _spec(fork))
                # From here on two machines share the host, and the fork's start is not the original's gap
                gaps.append(listener.longest)
                assert (await node.machine_wait(fork, timeout=60)).state is MachineState.READY
                await call(await node.stream_open(fork), "ping")
                times.append(time.monotonic() - began)
                await node.machine_stop(fork)
                await node.machine_forget(fork)
                await asyncio.sleep(0.5)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
    return times, gaps, usual


class _Gaps:
    """The longest time between two arrivals."""

    def __init__(self, stream: GuestCall) -> None:
        self.longest = 0.0
        self._stream = stream

    async def listen(self) -> None:
        last = time.monotonic()
        while await self._stream.read():
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


async def _idle_machines(process: NodeProcess) -> list[float]:
    """Percent of a core that each of three idle machines uses, and bytes of memory that are its process's own."""
    node = process.client
    names = [await _started(node) for _ in range(3)]
    await asyncio.sleep(5)
    before = [(await node.machine_get(name)).cpu_seconds for name in names]
    began = time.monotonic()
    # Their CPU time is looked at with each heartbeat
    await asyncio.sleep(31)
    after = [(await node.machine_get(name)).cpu_seconds for name in names]
    seconds = time.monotonic() - began
    resident = [_resident(pid) for pid in process.qemu_pids()]
    for name in names:
        await node.machine_stop(name)
        await node.machine_forget(name)
    return [median((b - a) / seconds * 100 for a, b in zip(before, after, strict=True)), median(resident)]


def _resident(pid: int) -> float:
    """Bytes of memory that are this process's own."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0.0


def _idle(measured: list[float]) -> list[Number]:
    share, resident = measured
    fit = memory_available() // int(resident)
    return [
        Number("idle sandbox, CPU", share, "% of a core", at_most=2),
        Number(f"idle sandbox of {MEMORY} MiB, host memory", resident / 1e6, "MB", at_most=280),
        Number("idle sandboxes that fit into this host's free memory", fit, ""),
    ]


# -- machines ----------------------------------------------------------------------------------------------------------


def _spec(machine: str) -> MachineSpec:
    return MachineSpec(machine, MEMORY, 2, 10, Identity("bench"))


async def _started(node: Node) -> str:
    name = secrets.token_hex(16)
    await node.machine_start(_spec(name))
    assert (await node.machine_wait(name, timeout=60)).state is MachineState.READY
    return name


@asynccontextmanager
async def _machine(node: Node) -> AsyncIterator[str]:
    name = await _started(node)
    try:
        yield name
    finally:
        await node.machine_stop(name)
        await node.machine_forget(name)


async def _spawn(node: Node, machine: str, script: str) -> int:
    params = {"command": "python3", "args": ["-c", script], "stdin": "null", "stdout": "piped", "stderr": "null"}
    return int((await call(await node.stream_open(machine), "spawn", params))["ok"]["pid"])


async def _output_of(node: Node, machine: str, script: str) -> None:
    """Wait for the first output of a script that then goes on."""
    pid = await _spawn(node, machine, script)
    async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as reading:
        assert "ok" in await reading.reply()
        await reading.read()


async def _timed(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began
