"""Numbers of the official Python SDK against a running installation."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deno_sandbox import AsyncDenoDeploy, DenoDeploy

from bench.bare_boot import booted
from bench.report import Number, median, quantile
from tests.installation import Installation
from vm.guest.calls import GuestCall
from vm.node.client import NodeClient

RUNS = 5
EXECS = 20  # of each run
MEGABYTES = 48
MEMORY = 1280


def point_at(installation: Installation) -> None:
    """The SDKs read their environment when they are constructed."""
    os.environ.update(installation.client_environment())


def _bare(image: Path) -> float:
    """Seconds of a bare QEMU boot until the agent has run `true`."""
    began = time.monotonic()
    with booted(image, memory_mib=MEMORY, vcpus=2) as (guest, _ping, _pid):
        pid = guest.call("spawn", command="true", stdin="null", stdout="null", stderr="null")[0]["pid"]
        guest.call("processWait", pid=pid)
        return time.monotonic() - began


def _created() -> float:
    """Seconds of an SDK create until `true` has run."""
    began = time.monotonic()
    with DenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:
        sandbox.spawn("true", stdout="null", stderr="null").wait()
        return time.monotonic() - began


@contextmanager
def another(data: Path, settings: dict[str, str]) -> Iterator[Installation]:
    """An installation with other settings, which the SDK talks to meanwhile."""
    installation = Installation(data, settings=settings)
    before = dict(os.environ)
    installation.start()
    try:
        point_at(installation)
        yield installation
    finally:
        installation.stop()
        os.environ.update({name: before[name] for name in installation.client_environment() if name in before})


def cold_create(image: Path, data: Path) -> Number:
    """SDK call to first command answered where every machine boots, beside a bare boot to that point; in turns."""
    bare, ours = [], []
    with another(data, {"ATOLL_CLONES": "false"}):
        for _ in range(RUNS):
            bare.append(_bare(image))
            ours.append(_created())
    return Number(
        "cold create to first command", median(ours), "s", median(bare), "bare QEMU boot, same image", at_most=1.6
    )


def execs(installation: Installation) -> Number:
    """`spawn("true")` and wait, beside the time the agent itself saw pass between fork and exit."""
    with DenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:

        def true() -> None:
            sandbox.spawn("true", stdout="null", stderr="null").wait()

        times = [median(_timed(true, EXECS)) for _ in range(RUNS)]
        inside = asyncio.run(_inside(installation))
    return Number("exec round trip", median(times) * 1000, "ms", median(inside) * 1000, "inside the guest", at_most=3)


async def _inside(installation: Installation) -> list[float]:
    node = NodeClient(installation.data / "run" / "node.sock", installation.data / "keys" / "node.key")
    machine = next(info.machine for info in await node.machine_list() if info.state == "ready")
    async with await GuestCall.begin(await node.stream_open(machine), "process.list") as listing:
        processes = (await listing.reply())["ok"]
    return [process["seconds"] for process in processes if process["command"] == "true"]


def messages() -> list[Number]:
    """Bytes through the SDK's base64 messages: a process's output, and a file written from a stream."""
    with DenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:
        size = MEGABYTES * 1_000_000

        def out() -> None:
            process = sandbox.spawn("head", args=["-c", str(size), "/dev/zero"], stdout="piped", stderr="null")
            assert process.stdout is not None
            process.wait()
            got = len(process.stdout.read())
            assert got == size, got

        def into() -> None:
            piece = bytes(65_536)
            sandbox.fs.write_file("/dev/shm/in", (piece for _ in range(size // len(piece))))

        return [
            Number(f"SDK messages, {way}", MEGABYTES / median(_timed(act)), "MB/s", at_least=8)
            for way, act in (("out of the guest", out), ("into the guest", into))
        ]


def _timed(act: Callable[[], None], runs: int = RUNS) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.monotonic()
        act()
        seconds.append(time.monotonic() - began)
    return seconds


def eight_at_once() -> list[Number]:
    """Eight creates started together: how many succeed, and how long they take."""
    runs = [[took for took in asyncio.run(_eight()) if took is not None] for _ in range(RUNS)]
    return [
        Number("8 creates at once: succeeded, worst run", min(map(len, runs)), "of 8", at_least=8),
        Number("8 creates at once: p95", median(quantile(run, 0.95) for run in runs if run), "s"),
    ]


async def _eight() -> list[float | None]:
    async def one() -> float | None:
        began = time.monotonic()
        try:
            async with AsyncDenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:
                await (await sandbox.spawn("true", stdout="null", stderr="null")).wait()
                return time.monotonic() - began
        except Exception as error:
            print(f"  a create failed: {error!r}")
            return None

    return await asyncio.gather(*(one() for _ in range(8)))
