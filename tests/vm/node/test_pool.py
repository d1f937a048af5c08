"""The ready pool's books: whose a clone is at every moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.api import Identity, MachineSpec, MachineState
from vm.node.config import NodeConfig
from vm.node.demand import Size
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


async def test_the_newest_is_taken_first(tmp_path: Path) -> None:
    made, older = pool(tmp_path)
    newer = Machine(replace(older.record, body="c" * 32), channel=older.channel)
    made._waiting.append(newer)
    assert [made.take(size_of(older.record)) for _ in range(3)] == [newer, older, None]


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


WARM, BIG = Size(512, 1, 10), Size(4096, 1, 10)


def working_pool(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Pool, list[Size]]:
    """One that has a template of the warm size, and room for one machine of that; and what it fills in."""
    template = SimpleNamespace(key="k", disk=DISK, size=WARM)
    templates: Any = SimpleNamespace(
        find=lambda size: template if size == WARM else None, sizes=lambda: [WARM], may_bake=lambda size: True
    )
    starter: Any = SimpleNamespace(spares=SimpleNamespace(lay=lambda *key, **spare: _nothing()))
    config = NodeConfig(place, place, place, warm=(512, 1, 10), pool_floor=1, pool_ceiling=1)
    anything: Any = None
    made = Pool(config, Layout(place), anything, anything, anything, starter, templates, lambda: True)
    filled: list[Size] = []

    async def fill(size: Size) -> None:
        filled.append(size)

    monkeypatch.setattr(made, "_room", lambda size: size == WARM)
    monkeypatch.setattr(made, "_fill", fill)
    return made, filled


async def test_a_size_without_room_keeps_nobody_from_his_clones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody asked for a machine too large for this host: those of the usual size are made all the same."""
    made, filled = working_pool(tmp_path, monkeypatch)
    made.note(BIG)
    assert await made._one_step()
    assert filled == [WARM]


async def test_what_has_a_template_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is given up for a newer one it is baked again when somebody wants it, and not before."""
    made, _filled = working_pool(tmp_path, monkeypatch)
    made.note(WARM)
    made.note(BIG)
    assert made._asked_for == {BIG}
