"""From two readings of a machine to what it used between them, hour by hour; pure, and the only place that decides it.

Nothing is counted that was not seen: time in memory is taken from the node's own times, and where a run's beginning or
end was missed, the shorter of the possible times counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sandboxes.prices import Use
from vm.api import MachineInfo, MachineState, StopReason

HOUR = 3600
IN_MEMORY = frozenset({MachineState.STARTING, MachineState.READY, MachineState.LOST, MachineState.SUSPENDING})
FOUND_LATER = frozenset(
    {
        StopReason.HOST_RESTARTED,
        StopReason.HYPERVISOR_DIED,
        StopReason.HOST_OUT_OF_MEMORY,
        StopReason.MEMORY_LIMIT,
        StopReason.DISK_FULL,
    }
)
"""Ends that a node may only find when it comes back, and then dates by that: a host may have been off for days."""
LATE = 5.0
"""Seconds by which two answers of the node may overtake each other."""
LONGEST_BOOT = 600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A machine at a time (epoch seconds), as far as its use is concerned."""

    at: float
    in_memory: bool
    cpu_seconds: float
    disk_bytes: int


def read(info: MachineInfo, *, at: float, keeps_disk: bool) -> Reading:
    """What the node's answer, got at `at`, says of the machine."""
    return Reading(
        at=at,
        in_memory=info.state in IN_MEMORY,
        cpu_seconds=max(0.0, info.cpu_seconds),
        disk_bytes=max(0, info.disk_bytes) if keeps_disk else 0,
    )


def overtaken(last: Reading, this: Reading, info: MachineInfo) -> bool:
    """Whether the answer is older than what is known already."""
    if this.at <= last.at:
        return True
    # It says that the machine runs, since before it was seen to have stopped.
    ran = this.in_memory and not last.in_memory and info.since < last.at - LATE
    return ran and this.at - last.at < 12 * LATE


def settled(last: Reading, this: Reading, info: MachineInfo) -> Reading:
    """What is to be known after this reading: a counter goes on from where the node has it now."""
    cpu = this.cpu_seconds if _went_back(last, this, info) else max(last.cpu_seconds, this.cpu_seconds)
    return Reading(at=this.at, in_memory=this.in_memory, cpu_seconds=cpu, disk_bytes=this.disk_bytes)


def use_between(last: Reading, this: Reading, info: MachineInfo, *, ready_at: float | None) -> dict[datetime, Use]:
    """What was used between two readings, the second of which is `info`, by the beginning of each hour.

    `ready_at` is when its sandbox was last seen to come up; None while that is still awaited.
    """
    begin, end = _in_memory(last, this, info, ready_at)
    # A counter that went back is one that its host lost a part of, and that part is counted already.
    cpu = max(0.0, this.cpu_seconds - last.cpu_seconds)
    found: dict[datetime, Use] = {}

    def add(hour: datetime, use: Use) -> None:
        if use != Use():
            found[hour] = found.get(hour, Use()) + use

    for hour, seconds in hours_between(begin, end):
        share = seconds / (end - begin)
        add(hour, Use(cpu_seconds=cpu * share, memory_mib_seconds=info.memory_mib * seconds))
    if end <= begin:
        # A run that nobody saw: its processor time is certain, its memory's time is not.
        add(_hour(end), Use(cpu_seconds=cpu))
    for hour, seconds in hours_between(last.at, this.at):
        add(hour, Use(disk_byte_seconds=last.disk_bytes * seconds))
    return found


def _went_back(last: Reading, this: Reading, info: MachineInfo) -> bool:
    # A lower counter in a state that was entered before the last reading is only an answer that came late.
    return this.cpu_seconds < last.cpu_seconds and info.since > last.at


def _in_memory(last: Reading, this: Reading, info: MachineInfo, ready_at: float | None) -> tuple[float, float]:
    """From when to when it was in memory: within one run, the last that can have been."""
    if info.state is MachineState.QUEUED or (not this.in_memory and info.stop_reason in FOUND_LATER):
        return last.at, last.at
    end = this.at if this.in_memory else min(this.at, max(last.at, info.since))
    if info.state is MachineState.STARTING:
        began = info.since
    elif ready_at is not None and ready_at > last.at:
        began = ready_at - _boot(info)
    elif last.in_memory and (ready_at is not None or not this.in_memory):
        began = last.at
    elif this.in_memory:
        began = info.since - _boot(info)
    else:
        began = end
    return min(end, max(last.at, began)), end


def _boot(info: MachineInfo) -> float:
    boot = sum(seconds for name, seconds in info.stages.items() if name != "queue")
    return min(max(0.0, boot), LONGEST_BOOT)


def hours_between(begin: float, end: float) -> Iterator[tuple[datetime, float]]:
    """The hours from one moment to another, both in epoch seconds, and the seconds of each that lie between."""
    while begin < end:
        border = (begin // HOUR + 1) * HOUR
        until = min(border, end)
        yield _hour(begin), until - begin
        begin = until


def _hour(moment: float) -> datetime:
    return datetime.fromtimestamp(moment // HOUR * HOUR, UTC)
