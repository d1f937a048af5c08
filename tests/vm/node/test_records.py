"""Records survive a kill and a full disk: whole or as they were; tap names are never used twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.api import Identity, MachineSpec, MachineState, StopReason
from vm.errors import HostFull
from vm.host.run import run
from vm.node.records import Names, Record, record_load, write_whole
from vm.storage.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.machines.mkdir()
    return made


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for almost nothing."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "full"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(place)])
    yield place
    run(["umount", str(place)])


def test_a_record_comes_back_as_it_was(layout: Layout) -> None:
    spec = MachineSpec("0" * 32, 512, 1, 10, Identity("box", {"A": "é"}), "hash")
    record = Record(spec, "hash", MachineState.QUEUED, 1.0, "boot", "0" * 32, ["1" * 32, "2" * 32], "tap", 2)
    record.enter(MachineState.STOPPED, reason=StopReason.DISK_FULL, detail="x" * 5000)
    record.save(layout)
    assert record_load(layout.record(record.machine)) == record
    assert len(record.detail) == 1000


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": 1}'])
def test_a_broken_record_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        record_load(tmp_path / "r")


def test_a_full_disk_keeps_what_was_there(full: Path) -> None:
    write_whole(full / "r.json", {"small": True})
    with pytest.raises(HostFull):
        write_whole(full / "r.json", {"large": "x" * 8000})
    assert (full / "r.json").read_text() == '{"small": true}'
    assert [path.name for path in full.iterdir()] == ["r.json"]


def test_tap_names_are_new_each_time(layout: Layout) -> None:
    """Across restarts too; short enough for the kernel."""
    first = Names(layout)
    seen = [first.next_tap() for _ in range(3)]
    second = Names(layout)
    assert (second.prefix, second.tap_prefix) == (first.prefix, first.tap_prefix)
    seen += [second.next_tap() for _ in range(3)]
    assert len(set(seen)) == 6
    assert all(len(tap) <= 15 for tap in seen)
