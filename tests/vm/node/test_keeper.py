"""What a machine takes of the host's disk: all that it could not do without, and nothing that is everybody's."""

from __future__ import annotations

from pathlib import Path

from vm.api import Identity, MachineSpec, MachineState
from vm.node.keeper import disk_bytes
from vm.node.records import Record
from vm.storage.layout import Layout

MIB = 2**20
TEMPLATE, BEFORE, AFTER, COPY = ("1" * 32, "2" * 32, "3" * 32, "4" * 32)


def machine(name: str, disks: list[str], state: MachineState = MachineState.READY) -> Record:
    return Record(MachineSpec(name, 512, 1, 10, Identity("box", {})), "hash", state, 1.0, "boot", name, disks)


def fill(path: Path, mib: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * mib * MIB)


def test_a_fork_takes_no_disk_off_the_bill(tmp_path: Path) -> None:
    """Both need what was written before the fork; what either wrote since is its own; a template is nobody's."""
    layout = Layout(tmp_path)
    for layer, mib in ((TEMPLATE, 4), (BEFORE, 3), (AFTER, 1), (COPY, 2)):
        fill(layout.disk(layer), mib)
    before = machine("a" * 32, [BEFORE, TEMPLATE])
    original, fork = machine("a" * 32, [AFTER, BEFORE, TEMPLATE]), machine("b" * 32, [COPY, BEFORE, TEMPLATE])
    taken = [round(disk_bytes(layout, record, shared={TEMPLATE}) / MIB) for record in (before, original, fork)]
    assert taken == [3, 4, 5]


def test_saved_memory_counts_while_it_is_suspended(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    fill(layout.memory("a" * 32), 2)
    rest = [machine("a" * 32, [AFTER], state) for state in (MachineState.SUSPENDED, MachineState.STOPPED)]
    assert [round(disk_bytes(layout, record, shared=set()) / MIB) for record in rest] == [2, 0]
