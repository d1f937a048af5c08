"""A real node under random operations, it and its QEMUs killed at random points: nothing acknowledged is lost.

Neither on disks nor, where no QEMU was killed, in memory; and nothing is left over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live.nodes import BOOT, SMALL, NodeProcess, execute, spec
from tests.soak.promises import Promise, note_script
from vm.api import MachineInfo, MachineState, StopReason
from vm.errors import VmError

pytestmark = [pytest.mark.live, pytest.mark.timeout(0)]
READY, SUSPENDED, STOPPED = SETTLED = (MachineState.READY, MachineState.SUSPENDED, MachineState.STOPPED)


@dataclass
class Known:
    """What was promised about one machine. While something is under way it may be in several states."""

    states: frozenset[MachineState]
    disk: Promise = field(default_factory=Promise)
    memory: Promise = field(default_factory=Promise)

    def may_be(self, *states: MachineState) -> None:
        self.states = frozenset(states)
        if self.states == {MachineState.STOPPED}:
            self.memory = Promise()


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
        self.known[name] = Known(frozenset({READY, STOPPED}))
        await self.ready(name)

    async def write(self) -> None:
        if name := self.pick(READY):
            await self.put(name, self.known[name].disk, "~", " && sync ~/note ~")

    async def remember(self) -> None:
        if name := self.pick(READY):
            await self.put(name, self.known[name].memory, "/dev/shm")

    async def put(self, name: str, promise: Promise, place: str, then: str = "") -> None:
        self.counter += 1
        text = f"{self.counter}"
        promise.maybe.add(text)
        code, _ = await execute(self.node, name, "sh", "-c", note_script(place, text) + then, timeout=30)
        assert code == 0
        promise.kept, promise.maybe = text, set()

    async def suspend(self) -> None:
        if name := self.pick(READY):
            self.known[name].may_be(READY, SUSPENDED)
            await self.node.machine_suspend(name)
            self.known[name].may_be(SUSPENDED)

    async def resume(self) -> None:
        if name := self.pick(SUSPENDED):
            self.known[name].may_be(SUSPENDED, READY)
            await self.node.machine_resume(name)
            await self.ready(name)
            await self.look(name)

    async def stop(self) -> None:
        if name := self.pick(READY, SUSPENDED):
            known = self.known[name]
            known.may_be(*known.states, STOPPED)
            await self.node.machine_stop(name)
            known.may_be(STOPPED)

    async def start(self) -> None:
        if name := self.pick(STOPPED):
            self.known[name].states = frozenset({READY, STOPPED})
            await self.node.machine_start(spec(name))
            await self.ready(name)

    async def fork(self) -> None:
        name = self.pick(READY)
        if name is None or len(self.known) >= 4:
            return
        fork = secrets.token_hex(16)
        source = self.known[name]
        await self.node.machine_fork(name, spec(fork))
        self.known[fork] = Known(frozenset({READY, STOPPED}), source.disk.copy(), source.memory.copy())
        await self.ready(fork)
        await self.look(fork)

    async def kill_qemu(self) -> None:
        """The one end, but for a stop, at which a machine may lose its memory."""
        if name := self.pick(READY):
            body = json.loads((self.process.data / "machines" / name / "machine.json").read_text())["body"]
            known = self.known[name]
            known.states = frozenset({READY, STOPPED})
            for pid in self.process.qemu_pids():
                if body.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.done.append("kill -9 of a QEMU")
                    known.states = frozenset({STOPPED})
            assert known.states == {STOPPED}, f"{name} runs without a QEMU"
            info = await self.node.machine_wait(name, timeout=BOOT)
            while info.state is not STOPPED:
                await asyncio.sleep(0.1)
                info = next(one for one in await self.node.machine_list() if one.machine == name)
            assert info.stop_reason is StopReason.HYPERVISOR_DIED, info
            known.may_be(STOPPED)

    async def forget(self) -> None:
        if name := self.pick(STOPPED):
            del self.known[name]
            await self.node.machine_forget(name)

    async def ready(self, name: str) -> None:
        info = await self.node.machine_wait(name, timeout=BOOT)
        assert info.state is READY, info
        self.known[name].may_be(READY)

    def pick(self, *states: MachineState) -> str | None:
        fitting = [name for name, known in self.known.items() if len(known.states) == 1 and known.states <= set(states)]
        return self.random.choice(fitting) if fitting else None

    async def look(self, name: str) -> None:
        """Hold the guest's disk and memory to what was promised."""
        for place, promise in (("~", self.known[name].disk), ("/dev/shm", self.known[name].memory)):
            _code, output = await execute(self.node, name, "sh", "-c", f"cat {place}/note || true")
            promise.check(output.decode().strip(), f"{place} of {name}")

    # -- turns

    async def turn(self) -> None:
        often = (self.create, self.write, self.remember, self.fork)
        seldom = (self.suspend, self.resume, self.stop, self.start, self.kill_qemu, self.forget)
        operation = self.random.choice([*often, *often, *seldom])
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
            if infos[name].state is READY:
                await self.look(name)
        for name in set(infos) - set(self.known):
            # Its start, or its forgetting, was not acknowledged: either way it can be ended and forgotten
            await self.node.machine_stop(name)
            await self.node.machine_forget(name)

    def check(self, info: MachineInfo, known: Known) -> None:
        assert info.state in known.states, f"{info} should be one of {sorted(known.states)}"
        if info.state is STOPPED:
            assert info.stop_reason is not None
        known.may_be(info.state)

    async def end(self) -> None:
        """Bring everything up, look at what was promised, and clear away."""
        for name, known in list(self.known.items()):
            if known.states == {SUSPENDED}:
                await self.node.machine_resume(name)
            elif known.states == {STOPPED}:
                await self.node.machine_start(spec(name))
            await self.ready(name)
            await self.look(name)
            await self.node.machine_stop(name)
            await self.node.machine_forget(name)


async def test_nothing_acknowledged_is_lost(soak_seconds: float, soak_seed: int) -> None:
    """Machines are made, written to, suspended, resumed, forked and ended while the node is killed again and again."""
    process = NodeProcess(seeded=[SMALL], clones=True, warm=(512, 1, 10), pool_floor=1, pool_ceiling=1)
    await asyncio.to_thread(process.start)
    world = World(process, soak_seed)
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
        assert not list(Path("/dev/shm").glob(f"atoll-{process.tag}/*"))
    except BaseException:
        print(f"{' '.join(world.done)}\n{process.log.read_text()[-6000:]}")
        raise
    finally:
        await asyncio.to_thread(process.close)
