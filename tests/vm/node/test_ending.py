"""Ends of machines, where what ends them fails."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from vm.api import Identity, MachineSpec, MachineState, StopReason
from vm.host.kvm import boot_id
from vm.node.ending import Ending
from vm.node.keeper import Machine
from vm.node.records import Record


class Roster:
    """Knows one machine."""

    def __init__(self, machine: Machine) -> None:
        self.known = {machine.record.machine: machine}
        self.queue: list[Machine] = []

    def get(self, machine: str) -> Machine:
        return self.known[machine]

    def stopped(self, machine: Machine, reason: StopReason, detail: str) -> None:
        machine.record.state, machine.record.stop_reason = MachineState.STOPPED, reason
        machine.record.detail = detail

    def info(self, machine: Machine) -> Record:
        return machine.record


def scene(failing: str) -> tuple[Ending, Machine]:
    """An Ending and its machine, where the step of that name fails once by what nobody has foreseen."""
    machine = Machine(
        Record(
            spec=MachineSpec("0" * 32, 1024, 1, 10, Identity("box")),
            image="image",
            state=MachineState.READY,
            since=time.time(),
            boot_id=boot_id(),
            body="1" * 32,
            disks=["2" * 32],
        )
    )
    failures = [RuntimeError("unforeseen")]

    def step(name: str) -> None:
        if name == failing and failures:
            raise failures.pop()

    async def release(record: Record) -> None:
        step("release")

    async def measure(record: Record) -> None:
        step("measure")

    fakes: dict[str, Any] = {
        "place": SimpleNamespace(names=None, lanes=None, conn=None),
        "doors": SimpleNamespace(shut=lambda body: None),
        "starter": SimpleNamespace(release=release),
        "keeper": SimpleNamespace(measure=measure),
        "booting": SimpleNamespace(closing=False),
    }
    roster: Any = Roster(machine)
    return Ending(roster=roster, pool=None, out_of_memory=None, **fakes), machine  # type: ignore[arg-type]


async def test_a_stop_that_fails_can_be_asked_for_again() -> None:
    """A failure on the way is told, and leaves the machine with what a second stop needs."""
    ending, machine = scene("measure")
    with pytest.raises(RuntimeError, match="unforeseen"):
        await ending.stop("0" * 32)
    assert machine.record.state is MachineState.READY
    info: Any = await ending.stop("0" * 32, "by hand")
    assert (info.state, info.stop_reason, info.detail) == (MachineState.STOPPED, StopReason.REQUESTED, "by hand")


async def test_what_could_not_be_removed_is_told() -> None:
    """It has stopped all the same, for good: what is left is the sweep's."""
    ending, _machine = scene("release")
    info: Any = await ending.stop("0" * 32, "by hand")
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.REQUESTED)
    assert info.detail == "by hand; not everything of it could be removed: unforeseen"
