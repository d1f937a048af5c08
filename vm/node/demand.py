"""What templates there should be and how many clones should wait, as pure decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vm.api import VolumeId

HORIZON = 60.0
"""Seconds of creates that count as recent demand."""
PER_CLONE = 10
"""Recent creates for which one more clone waits: some six a minute each, which is less than one takes to be made."""


@dataclass(frozen=True, slots=True)
class Size:
    """What machines must have in common to share a template: memory in MiB as the domain has it, vCPUs, GiB of disk.

    And what they boot from: the snapshot `root`, or the image.
    """

    memory_mib: int
    vcpus: int
    disk_gib: int
    root: VolumeId = ""


@dataclass(slots=True)
class Demand:
    """The creates of late, of each size."""

    times: dict[Size, list[float]] = field(default_factory=dict)

    def note(self, size: Size, now: float) -> None:
        """One more was asked for."""
        self.times.setdefault(size, []).append(now)

    def recent(self, now: float) -> dict[Size, int]:
        """How many of each size within the horizon; forgets older ones."""
        for size, times in list(self.times.items()):
            kept = [at for at in times if now - at <= HORIZON]
            if kept:
                self.times[size] = kept
            else:
                del self.times[size]
        return {size: len(times) for size, times in self.times.items()}


def wanted(
    *, recent: Mapping[Size, int], warm: Size | None, floor: int, ceiling: int, budget_mib: int
) -> dict[Size, int]:
    """How many clones of each size should wait: by demand, between floor and ceiling, within the memory budget.

    The warm size has the floor; a clone counts half its memory, as an idle one holds less than that.
    """
    want = {size: -(-count // PER_CLONE) for size, count in recent.items()}
    if warm is not None:
        want[warm] = max(floor, want.get(warm, 0))
    places, room = ceiling, budget_mib
    granted: dict[Size, int] = {}
    # The warm size first, then those asked for most
    for size in sorted(want, key=lambda size: (size != warm, -recent.get(size, 0), size.memory_mib)):
        cost = size.memory_mib // 2
        count = min(want[size], places, room // cost)
        granted[size] = count
        places -= count
        room -= count * cost
    return granted


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do next: `bake` a template, `fill` in one clone, or `drop` one."""

    what: str
    size: Size


def next_step(
    *, granted: Mapping[Size, int], waiting: Mapping[Size, int], baked: Sequence[Size], to_bake: Sequence[Size]
) -> Step | None:
    """The next step towards what was granted, or None. Dropping comes first, since it gives memory back."""
    for size, count in waiting.items():
        if count > granted.get(size, 0):
            return Step("drop", size)
    for size in to_bake:
        if size not in baked:
            return Step("bake", size)
    missing = [size for size, count in granted.items() if size in baked and waiting.get(size, 0) < count]
    return Step("fill", missing[0]) if missing else None
