"""Many clients of the SDK on few sandboxes at once: every byte is right, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import AsyncDenoDeploy

from tests.installation import Installation, reachable_directory

pytestmark = [
    pytest.mark.live,
    pytest.mark.sdk,
    pytest.mark.timeout(0),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WHOLE = (50, 8)  # clients and sandboxes under `make soak`
BRIEF = (12, 2)  # and in the suite, beside other tests with machines
LONGEST = 120.0  # seconds for which `make soak` goes on; the protocol's own promise
HANGS = 240.0  # seconds after which one step counts as one that hangs: fifty take their turns on two processors


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def file(sandbox: Any, name: str) -> None:
    """A file comes back as it was written, and its sum is the same in the guest."""
    data = os.urandom(50_000)
    await sandbox.fs.write_file(name, data)
    assert digest(await sandbox.fs.read_file(name)) == digest(data)
    process = await sandbox.spawn("sha256sum", args=[name], stdout="piped")
    assert (await process.stdout.read()).decode().split()[0] == digest(data)
    assert (await process.wait())["success"]


async def pipe(sandbox: Any, name: str) -> None:
    """What goes in comes out, and not what another client sent."""
    data = os.urandom(200_000)
    process = await sandbox.spawn("cat", stdin_data=[data[:70_000], data[70_000:]], stdout="piped")
    assert digest(await process.stdout.read()) == digest(data)
    assert (await process.wait())["success"]


async def both(sandbox: Any, name: str) -> None:
    """Output and error output are kept apart, and the exit code is this process's."""
    script = f"echo {name}; echo {name}-error >&2; exit 7"
    process = await sandbox.spawn("sh", args=["-c", script], stdout="piped", stderr="piped")
    out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
    assert (out, err) == (f"{name}\n".encode(), f"{name}-error\n".encode())
    assert (await process.wait())["code"] == 7


async def handle(sandbox: Any, name: str) -> None:
    """A handle reads at the place where it was left."""
    data = os.urandom(30_000)
    async with await sandbox.fs.open(f"{name}-handle", create=True, read=True, write=True) as opened:
        await opened.write(data)
        await opened.seek(10_000, 0)
        assert await opened.read(5_000) == data[10_000:15_000]
    await sandbox.fs.remove(f"{name}-handle")


STEPS: tuple[Callable[[Any, str], Awaitable[None]], ...] = (file, pipe, both, handle)


async def client(sandbox: str, name: str, until: float, done: Counter[str]) -> None:
    async with AsyncDenoDeploy().sandbox.connect(sandbox) as connected:
        number = 0
        while time.monotonic() < until or number < len(STEPS):
            step = STEPS[number % len(STEPS)]
            async with asyncio.timeout(HANGS):
                await step(connected, f"{name}-{number}")
            done[step.__name__] += 1
            number += 1


async def swarm(clients: int, machines: int, seconds: float) -> Counter[str]:
    deploy = AsyncDenoDeploy()
    done: Counter[str] = Counter()
    async with AsyncExitStack() as held:
        sandboxes = [
            await held.enter_async_context(deploy.sandbox.create(timeout="20m", memory_mb=768)) for _ in range(machines)
        ]
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(sandboxes[number % machines].id, f"c{number}", until, done))
        for sandbox in sandboxes:
            await sandbox.kill()
    return done


def test_many_clients_on_few_sandboxes(soak_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, pipes, error output and handles, beside each other, on connections that share sandboxes."""
    clients, machines = WHOLE if soak_seconds > LONGEST else BRIEF
    with reachable_directory() as place:
        installation = Installation(Path(place) / "data", settings={"ATOLL_POOL_CEILING": "2"})
        installation.start()
        try:
            for name, value in installation.client_environment().items():
                monkeypatch.setenv(name, value)
            done = asyncio.run(swarm(clients, machines, min(soak_seconds / 4, LONGEST)))
        finally:
            installation.stop()
    print(f"{sum(done.values())} steps of {clients} clients: {dict(done)}")
    assert min(done[step.__name__] for step in STEPS) >= clients
