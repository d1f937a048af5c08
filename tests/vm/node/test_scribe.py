"""Records reach the disk in the order of their changes, while the event loop does other things."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from vm.api import Identity, MachineId, MachineSpec, MachineState
from vm.errors import HostFull
from vm.node import scribe as module
from vm.node.records import Record, record_load, record_write
from vm.node.scribe import Scribe
from vm.storage.layout import Layout

FIRST, SECOND = "1" * 32, "2" * 32


def record(machine: str) -> Record:
    return Record(MachineSpec(machine, 512, 1, 10, Identity("box")), "hash", MachineState.QUEUED, 1.0, "boot", machine)


class SlowDisk:
    """A disk that writes when it is let go, and then fails where it is `full`; `written` says what, in order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.full = False
        self.written: list[tuple[MachineId, str]] = []

    def write(self, layout: Layout, machine: MachineId, data: dict[str, Any]) -> None:
        assert self.go.wait(10)
        if self.full:
            raise HostFull("no room")
        record_write(layout, machine, data)
        self.written.append((machine, str(data["state"])))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.machines.mkdir()
    return made


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    slow = SlowDisk()
    monkeypatch.setattr(module, "record_write", slow.write)
    return slow


async def test_a_slow_disk_holds_up_nobody_and_nothing_overtakes(layout: Layout, disk: SlowDisk) -> None:
    """The loop runs on; each state is written as it was when it was handed over; what is told waits for it."""
    scribe = Scribe(layout)
    one, other = record(FIRST), record(SECOND)
    told: list[str] = []
    scribe.then(lambda: told.append("before"))
    scribe.write(one)
    scribe.then(lambda: told.append("queued"))
    one.enter(MachineState.STARTING)
    scribe.write(one)
    scribe.write(other)
    one.enter(MachineState.READY)  # and that nobody wrote down
    waiting = asyncio.ensure_future(scribe.written())
    scribe.then(lambda: told.append("starting"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (told, disk.written, waiting.done()) == (["before"], [], False)

    disk.go.set()
    await waiting
    assert disk.written == [(FIRST, "queued"), (FIRST, "starting"), (SECOND, "queued")]
    assert record_load(layout.record(FIRST)).state is MachineState.STARTING
    await asyncio.sleep(0)
    assert told == ["before", "queued", "starting"]
    scribe.close()


async def test_who_is_cancelled_takes_nothing_back(layout: Layout, disk: SlowDisk) -> None:
    """A start that is cut short while it writes has still written, before whatever ends it does."""
    scribe = Scribe(layout)
    one = record(FIRST)

    async def start() -> None:
        await scribe.write(one)

    starting = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    one.enter(MachineState.STOPPED)
    scribe.write(one)
    disk.go.set()
    scribe.close()  # writes what was handed over
    assert disk.written == [(FIRST, "queued"), (FIRST, "stopped")]


async def test_a_full_disk_is_told_to_who_asks(layout: Layout, disk: SlowDisk) -> None:
    """Whoever needs it written hears that it is not; whoever only waits for the others goes on."""
    scribe = Scribe(layout)
    disk.full = True
    disk.go.set()
    with pytest.raises(HostFull):
        await scribe.write(record(FIRST))
    await scribe.written()
    disk.full = False
    await scribe.write(record(FIRST))
    assert disk.written == [(FIRST, "queued")]
    scribe.close()


async def test_what_is_nobodys_yet_is_not_written(layout: Layout, disk: SlowDisk) -> None:
    """A clone in the pool has no record: the next node sweeps it away."""
    scribe = Scribe(layout)
    await scribe.write(record(""))
    scribe.close()
    assert (disk.written, list(layout.machines.iterdir())) == ([], [])
