"""A full host says what it has too little of, and the pool gives back what it holds before anybody is refused."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.api import Identity, MachineSpec, MachineState, StopReason
from vm.errors import HostFull
from vm.node import room as module
from vm.node.config import NodeConfig
from vm.node.keeper import Machine
from vm.node.records import Record
from vm.node.room import Room, reason_of_full
from vm.storage.layout import Layout


class Pool:
    """Clones of 512 MiB each, that hold all of it."""

    def __init__(self, clones: int) -> None:
        self.ready = clones

    @property
    def committed_mib(self) -> int:
        return 512 * self.ready

    async def give_back(self, mib: int) -> None:
        while mib > 0 and self.ready:
            self.ready -= 1
            mib -= 512


def machine(memory_mib: int, state: MachineState = MachineState.READY) -> Machine:
    spec = MachineSpec(secrets.token_hex(16), memory_mib, 1, 10, Identity("box", {}))
    return Machine(Record(spec, image="", state=state, since=0, boot_id="", body="", disks=[]))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host of 4 GiB, of which half a GiB is kept free, with a room for the machines and clones it is given."""
    monkeypatch.setattr(module, "memory_total", lambda: 4096 * 2**20)

    def made(*, clones: int = 0, machines: tuple[int, ...] = ()) -> tuple[Room, Pool]:
        pool = Pool(clones)
        held = [machine(memory) for memory in machines]
        monkeypatch.setattr(module, "memory_available", lambda: (4096 - sum(machines) - pool.committed_mib) * 2**20)
        config = NodeConfig(data=tmp_path, image_cache=tmp_path, key_file=tmp_path, disk_reserve_mib=0)
        layout = Layout(tmp_path)
        layout.machines.mkdir()
        roster: Any = SimpleNamespace(with_memory=lambda: held)
        given: Any = pool
        return Room(config, layout, tmp_path, roster, given), pool

    return made


async def test_what_fits_takes_nothing_from_the_pool(host: Any) -> None:
    room, pool = host(clones=2, machines=(1024,))
    await room.make(machine(1024).record)
    assert pool.ready == 2


async def test_the_pool_gives_back_as_much_as_is_needed(host: Any) -> None:
    """And no more: the next create has a clone where there is one left."""
    room, pool = host(clones=3, machines=(1024, 1024))
    await room.make(machine(1280).record)
    assert pool.ready == 1


async def test_a_machine_that_does_not_fit_at_all_is_refused(host: Any) -> None:
    """With words that are told apart from those of a full disk."""
    room, _pool = host(clones=1, machines=(1280, 1280, 1280))
    with pytest.raises(HostFull, match="3840 MiB of memory are given to machines already, 1280 more") as refused:
        await room.make(machine(1280).record)
    assert reason_of_full(refused.value) is StopReason.NO_CAPACITY


async def test_a_copy_of_memory_needs_room_at_once(host: Any) -> None:
    room, pool = host(clones=2, machines=(1280,))
    await room.make_free(2000)
    assert pool.ready == 0
    with pytest.raises(HostFull, match="no memory for a copy of 2400 MiB") as refused:
        await room.make_free(2400)
    assert reason_of_full(refused.value) is StopReason.NO_CAPACITY


async def test_a_full_disk_is_told_from_a_want_of_memory(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room, _pool = host()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=-1))
    with pytest.raises(HostFull, match="are free on the disk") as refused:
        await room.make(machine(1280).record)
    assert reason_of_full(refused.value) is StopReason.DISK_FULL
