"""What suspend, resume, fork and stop cost, asked for over REST and the SDK, and what an idle machine holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from deno_sandbox import AsyncDenoDeploy

from bench.machines import machine_pids, node_of
from bench.report import Number, median
from bench.tti import MEMORY
from tests.installation import Installation
from vm.api import Node
from vm.guest.calls import GuestCall, call
from vm.node.admission import lacking_mib
from vm.node.config import NodeConfig
from vm.node.hostinfo import memory_available, memory_total

RUNS = 5
DIRTY = 300  # MB
IDLE = 3
_PATIENCE = 60.0
_FILL = f"import os, time; kept = os.urandom({DIRTY} * 10**6); print('full', flush=True); time.sleep(10**6)"
_TICK = "import time\nwhile True:\n    print(flush=True)\n    time.sleep(0.002)\n"
_LIFE = "20m"


def suspend(installation: Installation) -> list[Number]:
    """As users have it: what the services, the database and the network of the host add is in."""
    return asyncio.run(_suspend(installation))


async def _suspend(installation: Installation) -> list[Number]:
    async with _Rest(installation) as rest:
        down, up = await _pauses(rest)
        forked, gaps, usual = await _forks(rest, node_of(installation))
        stops = []
        for _ in range(RUNS):
            async with _sandbox() as sandbox:
                stops.append(await rest.timed(sandbox.id, "stop", "stopped"))
        share, resident = await _idle_machines(installation)
    return [
        Number(f"suspend, {DIRTY} MB dirty", median(down), "s", at_most=1.2, note=f"worst {max(down):.2f} s"),
        Number(f"resume, {DIRTY} MB dirty, to the first command: p50", median(up), "s", at_most=1.0),
        Number("fork, to its first command", median(forked), "s", at_most=1.2, note=f"worst {max(forked):.2f} s"),
        Number(
            "fork, longest gap of the original",
            median(gaps) * 1000,
            "ms",
            at_most=60,
            note=f"worst {max(gaps) * 1000:.0f} ms; without a fork {usual * 1000:.0f} ms",
        ),
        Number("stop", median(stops), "s", at_most=0.4, note=f"worst {max(stops):.2f} s"),
        Number("idle sandbox, CPU", share, "% of a core", at_most=2),
        Number(f"idle sandbox of {MEMORY} MiB, host memory", resident / 1e6, "MB", at_most=280),
        _fitting(resident, rest.low_memory_mib),
    ]


class _Rest:
    """The installation's REST API."""

    def __init__(self, installation: Installation) -> None:
        self.low_memory_mib = int(installation.environment.get("ATOLL_LOW_MEMORY_MIB", "768"))
        self._client = httpx.AsyncClient(
            base_url=f"{installation.url}/api/v1/sandboxes/",
            headers={"Authorization": f"Bearer {installation.token}"},
            timeout=_PATIENCE,
        )

    async def __aenter__(self) -> _Rest:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """What it answers."""
        answer = (await self._client.post(path, json=body)).raise_for_status()
        return dict(answer.json())

    async def timed(self, sandbox: str, step: str, leads_to: str) -> float:
        """Seconds from asking for a step of its life to the state that it leads to."""
        began = time.monotonic()
        await self.post(f"{sandbox}/{step}")
        while (row := (await self._client.get(sandbox)).raise_for_status().json())["state"] != leads_to:
            if time.monotonic() - began > _PATIENCE:
                raise RuntimeError(f"{sandbox} is {row['state']}: {row['state_reason']}")
            await asyncio.sleep(0.005)
        return time.monotonic() - began


@asynccontextmanager
async def _sandbox() -> AsyncIterator[Any]:
    connection = AsyncExitStack()
    sandbox = await connection.enter_async_context(AsyncDenoDeploy().sandbox.create(memory_mb=MEMORY, timeout=_LIFE))
    try:
        yield sandbox
    finally:
        # A suspend or a stop has closed the connection, which the SDK complains of
        for end in (sandbox.kill, connection.aclose):
            with suppress(Exception):
                await end()


async def _answered(sandbox: str) -> None:
    """Connect to it, which resumes it, and have a command run."""
    async with AsyncDenoDeploy().sandbox.connect(sandbox) as connected:
        await (await connected.spawn("true", stdout="null", stderr="null")).wait()


async def _pauses(rest: _Rest) -> tuple[list[float], list[float]]:
    """Seconds of suspends, and of connects by the SDK that bring the same sandbox back."""
    down, up = [], []
    async with _sandbox() as sandbox:
        filling = await sandbox.spawn("python3", args=["-c", _FILL], stdout="piped", stderr="null")
        await filling.stdout.readline()
        for _ in range(RUNS):
            down.append(await rest.timed(sandbox.id, "suspend", "suspended"))
            began = time.monotonic()
            await _answered(sandbox.id)
            up.append(time.monotonic() - began)
        await rest.timed(sandbox.id, "stop", "stopped")
    return down, up


async def _forks(rest: _Rest, node: Node) -> tuple[list[float], list[float], float]:
    """Seconds until forks answer, the longest silence of the original meanwhile, and that of a time without a fork.

    The two are not taken of the same forks: a machine that says something all the time keeps the host busy. It is
    listened to at the node, since the way through the services has silences of its own.
    """
    async with _sandbox() as sandbox:
        times, _ = await _forked(rest, sandbox.id, lambda: 0.0)
        (machine,) = [info.machine for info in await node.machine_list() if info.state == "ready"]
        params = {"command": "python3", "args": ["-c", _TICK], "stdin": "null", "stdout": "piped", "stderr": "null"}
        pid = int((await call(await node.stream_open(machine), "spawn", params))["ok"]["pid"])
        async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as ticks:
            assert "ok" in await ticks.reply()
            listener = _Gaps(ticks)
            listening = asyncio.ensure_future(listener.listen())
            await asyncio.sleep(2)
            listener.so_far()
            await asyncio.sleep(1)
            usual = listener.so_far()
            _, gaps = await _forked(rest, sandbox.id, listener.so_far)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
    return times, gaps, usual


async def _forked(rest: _Rest, original: str, silence: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Of each of some forks: seconds until it answers, and the original's `silence` up to when it is there."""
    times, silences = [], []
    for _ in range(RUNS):
        silence()
        began = time.monotonic()
        fork = (await rest.post(f"{original}/fork", {}))["id"]
        # From here on two machines share the host, and the fork's start is not the original's gap
        silences.append(silence())
        await _answered(fork)
        times.append(time.monotonic() - began)
        await rest.timed(fork, "stop", "stopped")
        await asyncio.sleep(0.5)
    return times, silences


class _Gaps:
    """The longest time between two arrivals."""

    def __init__(self, stream: GuestCall) -> None:
        self.longest = 0.0
        self._stream = stream
        self._last = time.monotonic()

    def so_far(self) -> float:
        """The longest one since it was asked for, that which goes on included."""
        longest, self.longest = max(self.longest, time.monotonic() - self._last), 0.0
        return longest

    async def listen(self) -> None:
        """Until cancelled."""
        self._last = time.monotonic()
        while await self._stream.read():
            now = time.monotonic()
            self.longest = max(self.longest, now - self._last)
            self._last = now


# -- idle machines -----------------------------------------------------------------------------------------------------


async def _idle_machines(installation: Installation) -> tuple[float, float]:
    """Percent of a core that each idle machine uses, and bytes of memory that are its process's own."""
    node = node_of(installation)

    async def used() -> dict[str, float]:
        return {info.machine: info.cpu_seconds for info in await node.machine_list() if info.state == "ready"}

    async with AsyncExitStack() as stack:
        for _ in range(IDLE):
            await stack.enter_async_context(_sandbox())
        await asyncio.sleep(5)
        before, began = await used(), time.monotonic()
        # Their CPU time is looked at with each heartbeat
        await asyncio.sleep(31)
        after, seconds = await used(), time.monotonic() - began
        resident = [_resident(pid) for pid in machine_pids(installation, set(after))]
    shares = [(after[name] - before[name]) / seconds * 100 for name in before.keys() & after.keys()]
    return median(shares), median(resident)


def _resident(pid: int) -> float:
    """Bytes of memory that are this process's own."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0.0


def _fitting(resident: float, low_memory_mib: int) -> Number:
    """How many the node would let in, one after the other, on this host as it is now and with nothing else on it."""
    nowhere = Path()
    reserve = NodeConfig(nowhere, nowhere, nowhere, low_memory_mib=low_memory_mib).kept_free_mib
    total, available = memory_total() // 2**20, memory_available() // 2**20
    given = count = 0
    while lacking_mib(wanted=MEMORY, given=given, coming=0, reserve=reserve, total=total, available=available) <= 0:
        count, given, available = count + 1, given + MEMORY, available - round(resident / 2**20)
    full = lacking_mib(wanted=MEMORY, given=given, coming=0, reserve=reserve, total=total, available=10**9) > 0
    note = "then what is given to machines reaches its bound" if full else "then too little memory is available"
    return Number(f"idle sandboxes of {MEMORY} MiB that this host lets in", count, "", note=note)
