"""Records survive a kill and a full disk: whole or as they were; tap names are never used twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from vm.api import Identity, MachineSpec, MachineState, StopReason
from vm.errors import HostFull
from vm.host.run import run
from vm.node.records import Names, Record, record_load, record_write, write_whole
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
    record_write(layout, record.machine, asdict(record))
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


def test_each_data_directory_has_a_tag_of_its_own(tmp_path: Path) -> None:
    """It lasts; one from before there were tags gets one, and keeps its other names."""
    here, there = Layout(tmp_path / "here"), Layout(tmp_path / "there")
    for layout in (here, there):
        layout.machines.mkdir(parents=True)
    names = Names(here)
    assert Names(here).data_tag == names.data_tag != Names(there).data_tag
    old = json.loads(here.state.read_text())
    del old["data"]
    here.state.write_text(json.dumps(old))
    again = Names(here)
    assert (again.prefix, len(again.data_tag)) == (names.prefix, 32)
    assert Names(here).data_tag == again.data_tag


def test_a_copied_installation_has_names_of_its_own(tmp_path: Path) -> None:
    """Started beside its original, it must not take that one's machines for its own, nor libvirt's word for them."""
    original = Layout(tmp_path / "original")
    original.machines.mkdir(parents=True)
    names = Names(original)
    names.next_tap()
    copy = Layout(Path(shutil.copytree(original.data, tmp_path / "copy")))
    status = copy.libvirt / "run" / "qemu" / "domain.xml"
    status.parent.mkdir(parents=True)
    status.touch()
    fresh = Names(copy)
    assert fresh.prefix != names.prefix
    assert fresh.data_tag == names.data_tag  # its machines are the same ones
    assert not status.exists()
    assert Names(copy).prefix == fresh.prefix
    assert Names(original).prefix == names.prefix


def test_an_installation_that_was_moved_keeps_its_names(tmp_path: Path) -> None:
    """Its machines may still run: they are called as before. So they are under a second path to one place."""
    before = Layout(tmp_path / "before")
    before.machines.mkdir(parents=True)
    names = Names(before)
    after = Layout(before.data.rename(tmp_path / "after"))
    assert Names(after).prefix == names.prefix
    assert Names(after).data_tag == names.data_tag
    assert Names(after).next_tap() == f"{names.tap_prefix}1"
    (tmp_path / "link").symlink_to(after.data)
    assert Names(Layout(tmp_path / "link")).prefix == names.prefix
