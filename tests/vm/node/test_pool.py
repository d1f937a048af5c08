"""The ready pool's books: whose a clone is at every moment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vm.api import Identity, MachineSpec, MachineState
from vm.node.config import NodeConfig
from vm.node.keeper import Machine
from vm.node.pool import Pool
from vm.node.records import Record
from vm.node.templates import size_of
from vm.storage.layout import Layout

BODY, DISK = "b" * 32, "d" * 32


class Starter:
    """Has nothing to give back."""

    async def release(self, record: Record) -> None:
        """Done."""


def pool(place: Path) -> tuple[Pool, Machine]:
    """With one clone that waits."""
    spec = MachineSpec("", 512, 1, 10, Identity("box", {}))
    channel: Any = SimpleNamespace(up=True, close=_nothing)
    clone = Machine(Record(spec, "hash", MachineState.STARTING, 1.0, "boot", BODY, [DISK]), channel=channel)
    layout = Layout(place)
    layout.disks.mkdir(parents=True)
    anything: Any = None
    starter: Any = Starter()
    made = Pool(NodeConfig(place, place, place), layout, anything, anything, anything, starter, anything, lambda: True)
    made._waiting.append(clone)
    return made, clone


async def _nothing() -> None:
    pass


async def test_a_clone_that_was_taken_is_somebodys_all_the_time(tmp_path: Path) -> None:
    """Between the pool and its machine's record nothing of it is waste, and it takes no room of the pool's any more."""
    made, clone = pool(tmp_path)
    assert made.take(size_of(clone.record)) is clone
    assert made.take(size_of(clone.record)) is None
    assert (made.bodies(), made.layers(), made.committed_mib) == ({BODY}, {DISK}, 0)
    made.given(clone)
    assert (made.bodies(), made.layers()) == (set(), set())


async def test_a_clone_that_nobody_wants_any_more_is_dropped(tmp_path: Path) -> None:
    made, clone = pool(tmp_path)
    assert made.take(size_of(clone.record)) is clone
    await made.drop(clone)
    assert (made.bodies(), made.layers()) == (set(), set())


async def test_memory_is_given_back(tmp_path: Path) -> None:
    """As many clones as it takes, and no more than there are."""
    made, _ = pool(tmp_path)
    await made.give_back(0)
    assert made.committed_mib == 512
    await made.give_back(10_000)
    assert (made.committed_mib, made.bodies()) == (0, set())


async def test_a_clone_that_was_taken_in_vain_waits_again(tmp_path: Path) -> None:
    """A start that is refused costs no clone."""
    made, clone = pool(tmp_path)
    assert made.take(size_of(clone.record)) is clone
    made.put_back(clone)
    assert (made.committed_mib, made.bodies()) == (512, {BODY})
    assert made.take(size_of(clone.record)) is clone
