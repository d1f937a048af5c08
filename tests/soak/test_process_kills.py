"""A whole installation under random operations, each kind of its processes killed at random points.

Workspaces lose nothing of it, neither on disks nor in memory; what was under way is settled, and every end explained.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from deno_sandbox import AsyncDenoDeploy

from tests.installation import Installation, processes, reachable_directory
from tests.live.nodes import children_of
from tests.soak.promises import Promise, note_script

pytestmark = [
    pytest.mark.live,
    pytest.mark.sdk,
    pytest.mark.timeout(0),
    # The SDK leaves its socket open when the server is killed under it
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE, INTERCEPTOR = "manage.py node", "vm.egress.interceptor"
KINDS = ("manage.py web", "manage.py worker", NODE, "manage.py gateway", INTERCEPTOR)
SANDBOXES = "/api/v1/sandboxes"
RUNNING, SUSPENDED, STOPPED = SETTLED = ("running", "suspended", "stopped")
PATIENCE = 240.0
MOST = 2  # workspaces
FEWEST = 8  # turns of the short run, so that a slow host tests something, too


@dataclass
class Known:
    """What was promised about one workspace. While something is under way it may be in several states."""

    states: frozenset[str]
    disk: Promise = field(default_factory=Promise)
    memory: Promise = field(default_factory=Promise)

    def may_be(self, *states: str) -> None:
        self.states = frozenset(states)
        if self.states == {STOPPED}:
            self.memory = Promise()


class World:
    """Random operations of one user, and what must hold of his workspaces."""

    def __init__(self, installation: Installation, rest: httpx.AsyncClient, seed: int) -> None:
        self.installation = installation
        self.rest = rest
        self.random = random.Random(seed)
        self.known: dict[str, Known] = {}
        self.counter = 0
        self.done: list[str] = []
        self.killed: Counter[str] = Counter()

    # -- operations: each returns normally only if it was acknowledged

    async def create(self) -> None:
        if len(self.known) >= MOST:
            return
        body = {"kind": "workspace", "memory_mb": 1280}
        made = (await self.rest.post(SANDBOXES, json=body)).raise_for_status().json()
        self.known[made["id"]] = Known(frozenset({RUNNING, STOPPED}))
        await self.reach(made["id"], RUNNING)

    async def write(self) -> None:
        if name := self.pick(RUNNING):
            await self.put(name, self.known[name].disk, "~", " && sync ~/note ~")

    async def remember(self) -> None:
        if name := self.pick(RUNNING):
            await self.put(name, self.known[name].memory, "/dev/shm")

    async def put(self, name: str, promise: Promise, place: str, then: str = "") -> None:
        self.counter += 1
        text = f"{self.counter}"
        promise.maybe.add(text)
        async with AsyncDenoDeploy().sandbox.connect(name) as sandbox:
            process = await sandbox.spawn("sh", args=["-c", note_script(place, text) + then], stderr="null")
            assert (await process.wait())["success"]
        promise.kept, promise.maybe = text, set()

    async def suspend(self) -> None:
        await self.step("suspend", RUNNING, SUSPENDED)

    async def resume(self) -> None:
        await self.step("resume", SUSPENDED, RUNNING)

    async def stop(self) -> None:
        await self.step("stop", RUNNING, STOPPED)

    async def start(self) -> None:
        await self.step("start", STOPPED, RUNNING)

    async def step(self, verb: str, before: str, after: str) -> None:
        if name := self.pick(before):
            # From here on it may be under way, whatever becomes of the answer
            self.known[name].states = frozenset({before, after})
            (await self.rest.post(f"{SANDBOXES}/{name}/{verb}")).raise_for_status()
            await self.reach(name, after)

    async def reach(self, name: str, state: str) -> None:
        until = time.monotonic() + PATIENCE
        while (row := await self.row(name))["state"] != state:
            assert time.monotonic() < until, row
            await asyncio.sleep(0.1)
        self.known[name].may_be(state)

    async def row(self, name: str) -> dict[str, Any]:
        return dict((await self.rest.get(f"{SANDBOXES}/{name}")).raise_for_status().json())

    def pick(self, state: str) -> str | None:
        fitting = [name for name, known in self.known.items() if known.states == {state}]
        return self.random.choice(fitting) if fitting else None

    # -- turns

    async def turn(self) -> None:
        often = (self.create, self.write, self.remember)
        operation = self.random.choice([*often, *often, self.suspend, self.resume, self.resume, self.stop, self.start])
        self.done.append(operation.__name__)
        if self.random.random() < 0.3 and len(self.done) > 1:
            await operation()
            return
        under_way = asyncio.ensure_future(operation())
        await asyncio.wait([under_way], timeout=self.random.random() * 2)
        self.kill(min(KINDS, key=lambda kind: (self.killed[kind], self.random.random())))
        with suppress(Exception):  # whatever he hears whose server or host died under him
            async with asyncio.timeout(PATIENCE):
                await under_way
        await self.settle()

    def kill(self, kind: str) -> None:
        """Each kind as often as the others: a supervisor takes its time with what dies again and again."""
        self.killed[kind] += 1
        self.done.append(f"[{kind.split()[-1].split('.')[-1]}]")
        for pid in self.pids(kind):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self, kind: str) -> list[int]:
        if kind != INTERCEPTOR:
            return processes(self.installation.data, kind)
        # They have nothing of the installation in their environment
        found = []
        for node in processes(self.installation.data, NODE):
            with suppress(OSError):  # it ended while we looked
                children = children_of(node)
                found += [pid for pid in children if INTERCEPTOR.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return found

    async def settle(self) -> None:
        """Wait until everything runs again and nothing moves, then hold the workspaces to what was promised."""
        until = time.monotonic() + PATIENCE
        while (rows := await self.settled()) is None:
            assert time.monotonic() < until, f"{self.done}: not settled"
            await asyncio.sleep(0.2)
        for name in set(rows) - set(self.known):
            self.known[name] = Known(frozenset({RUNNING, STOPPED}))  # its create was not acknowledged, and yet done
        for name, known in self.known.items():
            row = rows[name]
            assert row["state"] in known.states, f"{row} should be one of {sorted(known.states)}"
            if row["state"] != RUNNING:
                assert row["stop_reason"] not in (None, "machine_lost"), row
                assert row["next_step"] == {STOPPED: "start", SUSPENDED: "resume"}[row["state"]], row
            known.may_be(row["state"])
            if row["state"] == RUNNING:
                await self.look(name, until)

    async def settled(self) -> dict[str, dict[str, Any]] | None:
        if not all(self.pids(kind) for kind in KINDS):
            return None
        with suppress(httpx.HTTPError):
            rows = (await self.rest.get(SANDBOXES)).raise_for_status().json()
            if all(row["state"] in SETTLED for row in rows):
                return {row["id"]: row for row in rows}
        return None

    async def look(self, name: str, until: float) -> None:
        """The guest's disk and memory; the node may still be coming back."""
        while True:
            try:
                async with asyncio.timeout(30), AsyncDenoDeploy().sandbox.connect(name) as sandbox:
                    for place, promise in (("~", self.known[name].disk), ("/dev/shm", self.known[name].memory)):
                        script = f"cat {place}/note || true"
                        process = await sandbox.spawn("sh", args=["-c", script], stdout="piped", stderr="null")
                        found = (await process.stdout.read()).decode().strip()
                        assert (await process.wait())["success"]
                        promise.check(found, f"{place} of {name}")
                return
            except AssertionError:
                raise
            except Exception:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.5)

    async def end(self) -> None:
        """Bring everything up, and look at what was promised."""
        for name, known in self.known.items():
            if known.states != {RUNNING}:
                verb = "resume" if known.states == {SUSPENDED} else "start"
                (await self.rest.post(f"{SANDBOXES}/{name}/{verb}")).raise_for_status()
                await self.reach(name, RUNNING)
            await self.look(name, time.monotonic() + PATIENCE)


async def live(installation: Installation, seed: int, seconds: float) -> World:
    headers = {"Authorization": f"Bearer {installation.token}"}
    async with httpx.AsyncClient(base_url=installation.url, headers=headers, timeout=60) as rest:
        world = World(installation, rest, seed)
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until or len(world.done) < FEWEST:
                await world.turn()
            await world.end()
        except BaseException:
            print(" ".join(world.done))
            raise
        return world


def test_no_process_of_ours_takes_work_with_it(
    soak_seconds: float, soak_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Web, worker, node, gateway and interceptors are killed again and again while workspaces come and go."""
    with reachable_directory() as place:
        installation = Installation(place / "data", settings={"ATOLL_POOL_FLOOR": "1", "ATOLL_POOL_CEILING": "1"})
        installation.start()
        try:
            for name, value in installation.client_environment().items():
                monkeypatch.setenv(name, value)
            world = asyncio.run(live(installation, soak_seed, soak_seconds * 0.3))
        except BaseException:
            print((installation.data / "logs" / "worker.log").read_text()[-4000:])
            raise
        finally:
            installation.stop()
    assert len(world.killed) >= 3, world.done
    print(f"{len(world.done)} turns and kills: {dict(world.killed)}")
