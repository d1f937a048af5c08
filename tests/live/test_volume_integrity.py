"""The node is killed at random points of everything that is done to volumes: what was answered is there, and whole."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.live.nodes import NodeProcess
from tests.live.test_volumes import new
from vm.errors import NodeUnreachable, VmError, VolumeBusy, VolumeGone
from vm.host.run import run

pytestmark = pytest.mark.live

ROUNDS = 12
SIZE = 64 * 2**20
BLOCK = 65_536


class World:
    """Volumes and snapshots by their ids, with the byte that fills a block of each; what nobody answered is unknown."""

    def __init__(self, process: NodeProcess, seed: int) -> None:
        self.process = process
        self.random = random.Random(seed)
        self.volumes: dict[str, int] = {}
        self.snapshots: dict[str, int] = {}
        self.grown: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.writes = 0

    def disk(self, volume: str) -> Path:
        record = json.loads((self.process.data / "volumes" / f"{volume}.json").read_text())
        return self.process.data / "disks" / f"{record['layers'][0]}.qcow2"

    def qemu_io(self, volume: str, command: str, *options: str) -> str:
        return run(["qemu-io", *options, "-f", "qcow2", "-c", command, self.disk(volume)]).stdout

    def write(self, volume: str) -> None:
        """As a guest would that then flushed: another byte in a block beyond the file system's own."""
        self.writes += 1
        byte = 1 + self.writes % 250
        self.qemu_io(volume, f"write -P {byte} 32M {BLOCK}")
        self.volumes[volume] = byte

    def check(self, volume: str, byte: int) -> None:
        said = self.qemu_io(volume, f"read -P {byte} 32M {BLOCK}", "-r")
        assert "verification failed" not in said, (volume, byte, said)

    async def step(self) -> None:
        """One thing that somebody asks for; who hears no answer knows nothing."""
        node, choice = (
            self.process.client,
            self.random.choice(["create", "snapshot", "clone", "grow", "remove", "drop"]),
        )
        volume = self.random.choice(sorted(self.volumes) or [""])
        snapshot = self.random.choice(sorted(self.snapshots) or [""])
        name = new()
        touched = {"create": name, "snapshot": name, "clone": name, "remove": volume, "drop": snapshot}.get(choice, "")
        try:
            if choice == "create":
                await node.volume_create(name, capacity=SIZE)
                self.volumes[name] = 0
            elif choice == "snapshot" and volume:
                byte = self.volumes[volume]
                await node.volume_snapshot(volume, name)
                self.snapshots[name] = byte
            elif choice == "clone" and snapshot:
                byte = self.snapshots[snapshot]
                await node.volume_create(name, capacity=SIZE, source=snapshot)
                self.volumes[name] = byte
            elif choice == "grow" and volume:
                wanted = SIZE + self.random.randrange(1, 100) * 2**20
                await node.volume_grow(volume, capacity=wanted)
                self.grown[volume] = max(wanted, self.grown.get(volume, SIZE))
            elif choice == "remove" and volume and len(self.volumes) > 2:
                self.volumes.pop(volume)
                await node.volume_remove(volume)
            elif choice == "drop" and snapshot and len(self.snapshots) > 2:
                self.snapshots.pop(snapshot)
                await node.volume_remove(snapshot)
        except NodeUnreachable:
            self.unknown.add(touched)
            raise
        except (VolumeGone, VolumeBusy):
            pass  # somebody else was quicker


async def test_kills_at_random_points() -> None:
    """After each kill: every acknowledged volume has its bytes and its size, and no file is nobody's."""
    process = NodeProcess()
    process.start()
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    world = World(process, seed)
    done = 0

    async def work() -> None:
        nonlocal done
        with suppress(NodeUnreachable):
            while True:
                await world.step()
                done += 1

    try:
        for turn in range(ROUNDS):
            workers = [asyncio.ensure_future(work()) for _ in range(3)]
            await asyncio.sleep(world.random.uniform(0.05, 1.2))
            await asyncio.to_thread(process.kill)
            await asyncio.gather(*workers)
            await asyncio.to_thread(process.start)
            there = {info.volume: info for info in await process.client.volume_list()}
            for name, byte in {**world.volumes, **world.snapshots}.items():
                assert name in there or name in world.unknown, f"round {turn}: {name} is gone"
                if name in there:
                    await asyncio.to_thread(world.check, name, byte)
                    assert there[name].frozen == (name in world.snapshots)
            for name in set(there) - set(world.volumes) - set(world.snapshots):
                assert name in world.unknown, f"round {turn}: {name} was removed, and is back"
                # Nobody was told of it: it is whole all the same
                run(["qemu-img", "check", "-q", world.disk(name)])
                with suppress(VmError):
                    await process.client.volume_remove(name)
            for name, wanted in world.grown.items():
                assert name not in there or there[name].capacity >= wanted
            kept = {path.stem for path in (process.data / "volumes").glob("*.json")}
            needed = {
                layer
                for name in kept
                for layer in json.loads((process.data / "volumes" / f"{name}.json").read_text())["layers"]
            }
            files = {path.stem for path in (process.data / "disks").glob("*.qcow2")}
            assert needed <= files
            assert not list((process.data / "disks").glob("*.new"))
            for name in sorted(world.volumes):
                if name in there and world.random.random() < 0.5:
                    await asyncio.to_thread(world.write, name)
        print(f"{done} things done, {len(world.unknown)} unanswered, {len(world.volumes)} volumes left")
        assert done > ROUNDS
        for info in await process.client.volume_list():
            await process.client.volume_remove(info.volume)
        assert list((process.data / "disks").glob("*.qcow2")) == []
    finally:
        await asyncio.to_thread(process.close)


async def test_many_snapshots_of_a_volume_at_rest() -> None:
    """Its layers are merged beside; it and each of its snapshots hold what they held, also when a merge is killed."""
    process = NodeProcess()
    process.start()
    world = World(process, 1)
    node, volume = process.client, new()
    try:
        await node.volume_create(volume, capacity=SIZE)
        for _ in range(8):
            await asyncio.to_thread(world.write, volume)
            snapshot = new()
            await node.volume_snapshot(volume, snapshot)
            world.snapshots[snapshot] = world.volumes[volume]
        await asyncio.to_thread(world.write, volume)
        await asyncio.sleep(19)  # the first look is after twenty seconds
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start)
        record = process.data / "volumes" / f"{volume}.json"
        async with asyncio.timeout(120):
            while len(json.loads(record.read_text())["layers"]) > 1:
                await asyncio.sleep(0.5)
        for name, byte in {**world.volumes, **world.snapshots}.items():
            await asyncio.to_thread(world.check, name, byte)
        for name in world.snapshots:
            await node.volume_remove(name)
        await asyncio.to_thread(world.check, volume, world.volumes[volume])
        assert len(list((process.data / "disks").glob("*.qcow2"))) == 1
    finally:
        await asyncio.to_thread(process.close)
