"""A resume commits at one moment: before it the memory on the disk is all there is, after it what runs is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.api import Identity, MachineSpec, MachineState, Origin
from vm.errors import HypervisorError
from vm.libvirt import domains
from vm.node.lanes import Lanes
from vm.node.records import Record
from vm.node.start import Starter
from vm.storage.layout import Layout

MACHINE, BODY = "a" * 32, "b" * 32


class Scribe:
    """Has written at once."""

    def write(self, record: Record) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes()
    yield made
    made.close()


def resuming(place: Path, lanes: Lanes) -> tuple[Starter, Record]:
    """A starter, and the record of a machine whose memory lies there."""
    layout = Layout(place)
    layout.machine(MACHINE).mkdir(parents=True)
    layout.memory(MACHINE).write_bytes(b"memory")
    made: Any = object.__new__(Starter)
    made._layout, made._lanes, made._scribe, made._conn = layout, lanes, Scribe(), None
    made._names = SimpleNamespace(of=lambda body: f"atoll-{body}")
    record = Record(MachineSpec(MACHINE, 512, 1, 10, Identity("box", {})), "", MachineState.STARTING, 1.0, "", BODY, [])
    record.origin = Origin.RESUME
    return made, record


@pytest.mark.parametrize("runs", [True, False])
async def test_a_host_that_is_late_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: Lanes, runs: bool
) -> None:
    """One that runs after all goes on; of one that does not the memory is what it was, and can be tried again."""
    late = threading.Event()
    monkeypatch.setattr(domains, "domain_state", lambda *_: SimpleNamespace(running=runs))
    made, record = resuming(tmp_path, lanes)
    given_up: list[Record] = []

    async def run(one: Record) -> None:
        await lanes.run(f"atoll-{one.body}", lambda: late.wait(0.6), deadline=0.2)

    monkeypatch.setattr(made, "_run", run)

    async def give_up(one: Record) -> None:
        given_up.append(one)

    monkeypatch.setattr(made, "give_up", give_up)
    if runs:
        await made._go_on(record)
        assert record.committed
    else:
        with pytest.raises(HypervisorError):
            await made._go_on(record)
        assert not record.committed
        assert made._layout.memory(MACHINE).read_bytes() == b"memory"
    # What fails or is cancelled from here on
    await made._undo(record)
    assert given_up == ([] if runs else [record])
