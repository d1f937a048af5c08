"""A real node under random operations, killed at random points: nothing acknowledged is lost, nothing is left over."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live.nodes import BOOT, NodeProcess, execute, spec
from vm.api import MachineInfo, MachineState
from vm.errors import VmError

pytestmark = [pytest.mark.live, pytest.mark.timeout(0)]
SETTLED = (MachineState.READY, MachineState.SUSPENDED, MachineState.STOPPED)


@dataclass
class Known:
    """What was promised about one machine: `written` is on its disk; `maybe` may be, its write was not acknowledged."""

    written: str = ""
    maybe: set[str] = field(default_factory=set)
    state: MachineState = MachineState.READY


class World:
    """Random operations on one node, and what must hold of it."""

    def __init__(self, process: NodeProcess, seed: int) -> None:
        self.process = process
        self.node = process.client
        self.random = random.Random(seed)
        self.known: dict[str, Known] = {}
        self.counter = 0
        self.done: list[str] = []

    # -- operations: each returns normally only if it was acknowledged

    async def create(self) -> None:
        if len(self.known) >= 4:
            return
        name = secrets.token_hex(16)
        # From here on it may be there; a node that was killed before it wrote the record down does not know it
        await self.node.machine_start(spec(name))
        self.known[name] = Known(state=MachineState.QUEUED)
        info = await self.node.machine_wait(name, timeout=BOOT)
        assert info.state is MachineState.READY, info
        self.known[name].state = MachineState.READY

    async def write(self) -> None:
        if name := self.pick(MachineState.READY):
            self.counter += 1
            text = f"{self.counter}"
            known = self.known[name]
            known.maybe.add(text)
            code, _ = await execute(
                self.node, name, "sh", "-c", f"echo {text} > ~/new && mv ~/new ~/note && sync ~/note ~", timeout=30
            )
            assert code == 0
            known.written, known.maybe = text, set()

    async def suspend(self) -> None:
        if name := self.pick(MachineState.READY):
            self.known[name].state = MachineState.SUSPENDING
            await self.node.machine_suspend(name)
            self.known[name].state = MachineState.SUSPENDED

    async def resume(self) -> None:
        if name := self.pick(MachineState.SUSPENDED):
            self.known[name].state = MachineState.QUEUED
            await self.node.machine_resume(name)
            info = await self.node.machine_wait(name, timeout=BOOT)
            assert info.state is MachineState.READY, info
            self.known[name].state = MachineState.READY

    async def stop(self) -> None:
        if name := self.pick(MachineState.READY, MachineState.SUSPENDED):
            self.known[name].state = MachineState.QUEUED
            await self.node.machine_stop(name)
            self.known[name].state = MachineState.STOPPED

    async def start(self) -> None:
        if name := self.pick(MachineState.STOPPED):
            self.known[name].state = MachineState.QUEUED
            await self.node.machine_start(spec(name))
            info = await self.node.machine_wait(name, timeout=BOOT)
            assert info.state is MachineState.READY, info
            self.known[name].state = MachineState.READY

    async def fork(self) -> None:
        name = self.pick(MachineState.READY)
        if name is None or len(self.known) >= 4:
            return
        fork = secrets.token_hex(16)
        source = self.known[name]
        await self.node.machine_fork(name, spec(fork))
        self.known[fork] = Known(source.written, set(source.maybe), MachineState.QUEUED)
        info = await self.node.machine_wait(fork, timeout=BOOT)
        assert info.state is MachineState.READY, info
        self.known[fork].state = MachineState.READY

    async def forget(self) -> None:
        if name := self.pick(MachineState.STOPPED):
            del self.known[name]
            await self.node.machine_forget(name)

    def pick(self, *states: MachineState) -> str | None:
        fitting = [name for name, known in self.known.items() if known.state in states]
        return self.random.choice(fitting) if fitting else None

    # -- turns

    async def turn(self) -> None:
        often = (self.create, self.write, self.fork)
        operation = self.random.choice([*often, *often, self.suspend, self.resume, self.stop, self.start, self.forget])
        self.done.append(operation.__name__)
        under_way = asyncio.ensure_future(operation())
        if self.random.random() < 0.5:
            await under_way
            return
        await asyncio.wait([under_way], timeout=self.random.random() * 1.5)
        self.process.kill()
        self.done.append("kill -9")
        try:
            with suppress(VmError, TimeoutError):
                await under_way
        finally:
            await asyncio.to_thread(self.process.start)
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing moves, then hold the node to what it had promised."""
        until = time.monotonic() + BOOT
        while any(info.state not in SETTLED for info in await self.node.machine_list()):
            assert time.monotonic() < until, await self.node.machine_list()
            await asyncio.sleep(0.1)
        infos = {info.machine: info for info in await self.node.machine_list()}
        for name, known in self.known.items():
            assert name in infos, f"{name} is not known any more ({known})"
            self.check(infos[name], known)
        for name in set(infos) - set(self.known):
            # Its start, or its forgetting, was not acknowledged: either way it can be ended and forgotten
            await self.node.machine_stop(name)
            await self.node.machine_forget(name)

    def check(self, info: MachineInfo, known: Known) -> None:
        if known.state in SETTLED:
            assert info.state is known.state, f"{info} should be {known.state}"
        if info.state is MachineState.STOPPED:
            assert info.stop_reason is not None
        known.state = info.state

    async def end(self) -> None:
        """Bring everything up, look at what was promised, and clear away."""
        for name, known in list(self.known.items()):
            if known.state is MachineState.SUSPENDED:
                await self.node.machine_resume(name)
            elif known.state is MachineState.STOPPED:
                await self.node.machine_start(spec(name))
            info = await self.node.machine_wait(name, timeout=BOOT)
            assert info.state is MachineState.READY, info
            _code, output = await execute(self.node, name, "sh", "-c", "cat ~/note || true")
            assert output.decode().strip() in {known.written, *known.maybe}, f"{name}: {output!r}, {known}"
            await self.node.machine_stop(name)
            await self.node.machine_forget(name)


async def test_nothing_acknowledged_is_lost(soak_seconds: float) -> None:
    """Machines are made, written to, suspended, resumed, forked and ended while the node is killed again and again."""
    process = NodeProcess(clones=True, warm=(512, 1, 10), pool_floor=1, pool_ceiling=1)
    await asyncio.to_thread(process.start)
    seed = secrets.randbelow(2**32)
    world = World(process, seed)
    until = time.monotonic() + soak_seconds * 0.6
    try:
        while time.monotonic() < until or len(world.done) < 12:
            await world.turn()
        await world.end()
        await asyncio.to_thread(process.stop)
        assert process.leftovers() == []
        assert not list((process.data / "machines").glob("*/"))
        templates = (process.data / "templates").glob("*/template.json")
        needed = {json.loads(path.read_text())["disk"] for path in templates}
        await asyncio.to_thread(process.start)
        await asyncio.to_thread(process.stop)
        assert {path.stem for path in (process.data / "disks").iterdir()} <= needed
        assert not list((Path("/dev/shm") / f"atoll-{process.tag}").iterdir())
    except BaseException:
        print(f"seed {seed}: {' '.join(world.done)}\n{process.log.read_text()[-6000:]}")
        raise
    finally:
        await asyncio.to_thread(process.close)
