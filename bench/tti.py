"""Time to interactive, as peers publish it: an SDK create until its first command has run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deno_sandbox import AsyncDenoDeploy, DenoDeploy

from bench import bare_restore
from bench.machines import node_of
from bench.report import Number, median, quantile
from bench.sdk import another
from tests.installation import Installation

MEMORY = 1280
SEQUENTIAL = 100
STAGGERED = 100
BURST = 10
CLONES = 20
BARE = 10


def _pool_filled(installation: Installation) -> None:
    """Wait until as many clones wait as there should be."""

    async def wait() -> None:
        node = node_of(installation)
        until = time.monotonic() + 120
        while (info := await node.host_info()).pool_ready < info.pool_wanted or not info.templates:
            if time.monotonic() > until:
                raise RuntimeError(f"the pool does not fill: {info}")
            await asyncio.sleep(0.02)

    asyncio.run(wait())


def _pool_not_empty(installation: Installation) -> None:
    async def wait() -> None:
        node = node_of(installation)
        until = time.monotonic() + 120
        while (await node.host_info()).pool_ready == 0:
            if time.monotonic() > until:
                raise RuntimeError("no clone waits")
            await asyncio.sleep(0.01)

    asyncio.run(wait())


def _one() -> tuple[float, float]:
    """Seconds to the end of the first command, and of the whole of create and destroy."""
    began = time.monotonic()
    with DenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:
        sandbox.spawn("true", stdout="null", stderr="null").wait()
        took = time.monotonic() - began
        sandbox.kill()
        return took, time.monotonic() - began


def _tries(count: int, before: Callable[[], None] = lambda: None) -> tuple[list[float], list[float], int]:
    firsts, wholes, failed = [], [], 0
    for _ in range(count):
        before()
        try:
            first, whole = _one()
        except Exception as error:
            print(f"  a create failed: {error!r}")
            failed += 1
        else:
            firsts.append(first)
            wholes.append(whole)
    return firsts, wholes, failed


def _numbers(name: str, times: list[float], asked: int, limits: dict[str, float]) -> list[Number]:
    found = {"p50": median(times), "p95": quantile(times, 0.95), "p99": quantile(times, 0.99)}
    return [
        *(Number(f"{name}: {share}", value, "s", at_most=limits.get(share)) for share, value in found.items()),
        Number(f"{name}: succeeded", len(times), f"of {asked}", at_least=asked),
    ]


async def _later(delay: float) -> float | None:
    await asyncio.sleep(delay)
    began = time.monotonic()
    try:
        async with AsyncDenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox:
            await (await sandbox.spawn("true", stdout="null", stderr="null")).wait()
            took = time.monotonic() - began
            await sandbox.kill()
            return took
    except Exception as error:
        print(f"  a create failed: {error!r}")
        return None


def _at(delays: list[float]) -> list[float]:
    async def all_of_them() -> list[float | None]:
        return await asyncio.gather(*(_later(delay) for delay in delays))

    return [took for took in asyncio.run(all_of_them()) if took is not None]


def tti(installation: Installation) -> list[Number]:
    """From the pool: one after the other, staggered, and a burst; the rate that it sustains is printed beside."""
    _pool_filled(installation)
    pooled, wholes, _failed = _tries(SEQUENTIAL, lambda: _pool_not_empty(installation))
    pause = 2 * median(wholes)
    staggered = _at([number * pause for number in range(STAGGERED)])
    _pool_filled(installation)
    began = time.monotonic()
    in_a_row, _wholes, _failed = _tries(20)
    rate = len(in_a_row) / (time.monotonic() - began)
    _pool_filled(installation)
    burst = _at([0.0] * BURST)
    return [
        *_numbers("create from the pool", pooled, SEQUENTIAL, {"p50": 0.15, "p99": 0.40}),
        Number("creates in a row, sustained", rate, "a second", note=f"p50 {median(in_a_row):.2f} s"),
        *_numbers(f"staggered by {pause:.2f} s", staggered, STAGGERED, {}),
        *_numbers(f"burst of {BURST}", burst, BURST, {"p95": 5.0}),
    ]


@contextmanager
def _template_of(installation: Installation) -> Iterator[bare_restore.BareTemplate]:
    _pool_filled(installation)  # which is not before there is a template
    with bare_restore.bare_template(installation.data, memory_mib=MEMORY) as template:
        yield template


def _nothing_runs(installation: Installation) -> None:
    """Wait until the sandbox before is gone, as the bare QEMU of the reference is."""

    async def wait() -> None:
        while await node_of(installation).machine_list():  # noqa: ASYNC110 (it ends by itself)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)

    asyncio.run(wait())


def clones(data: Path) -> list[Number]:
    """By clone, on an installation without a pool, in turns with a bare restore of the same memory image."""
    bare: list[float] = []
    cloned: list[float] = []
    with (
        another(data, {"ATOLL_POOL_FLOOR": "0", "ATOLL_POOL_CEILING": "0"}) as installation,
        _template_of(installation) as template,
    ):
        for turn in range(CLONES):
            if turn % (CLONES // BARE) == 0:
                bare.append(template.restored())
            times, _wholes, _failed = _tries(1, lambda: _nothing_runs(installation))
            cloned += times
    return [
        Number("create by clone: p50", median(cloned), "s", at_most=0.8),
        Number("create by clone", median(cloned), "s", median(bare), "bare QEMU restore, same image", at_most=1.4),
        Number("create by clone: succeeded", len(cloned), f"of {CLONES}", at_least=CLONES),
    ]
