"""Bounds a QEMU process in CPU and memory by control groups of our own, where the host has them and nobody else does.

On a host with systemd libvirt makes the groups, and the domain's XML says the bounds (vm/libvirt/xml_build.py). On one
without, such as a container, they are made here: version 2, or the `memory` and `cpu` hierarchies of version 1.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a process may have: memory in bytes, CPU in cores."""

    memory: int
    cpus: float

    @property
    def quota(self) -> int:
        """Microseconds of CPU in each period."""
        return int(self.cpus * _PERIOD)


class ControlGroups:
    """The groups below `name` on this host; without usable ones every call does nothing."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.version = _version(root)
        if self.version == 2:
            self._places = [root / name]
        elif self.version == 1:
            self._places = [root / "memory" / name, root / "cpu" / name]
        else:
            self._places = []
        try:
            for place in self._places:
                place.mkdir(exist_ok=True)
            if self.version == 2:
                (root / "cgroup.subtree_control").write_text("+memory +cpu")
                (self._places[0] / "cgroup.subtree_control").write_text("+memory +cpu")
        except OSError:
            # Read-only, or processes sit in the root group: a container that may not make any
            self._places, self.version = [], 0

    def bound(self, member: str, pid: int, bounds: Bounds) -> None:
        """Put a process into a group of its own with these bounds. Repeatable. OSError if the process is gone."""
        for place in self._places:
            group = place / member
            group.mkdir(exist_ok=True)
            for name, value in self._settings(place, bounds).items():
                (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))

    def _settings(self, place: Path, bounds: Bounds) -> dict[str, str]:
        if self.version == 2:
            return {"memory.max": str(bounds.memory), "cpu.max": f"{bounds.quota} {_PERIOD}"}
        if place.parent.name == "memory":
            return {"memory.limit_in_bytes": str(bounds.memory)}
        return {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(bounds.quota)}

    def release(self, member: str) -> None:
        """Remove the group of a process that has ended. Repeatable; one that is not empty stays."""
        for place in self._places:
            with suppress(OSError):
                (place / member).rmdir()

    def members(self) -> set[str]:
        """The groups there are."""
        return {entry.name for place in self._places for entry in os.scandir(place) if entry.is_dir()}

    def close(self) -> None:
        """Remove what is empty."""
        for member in self.members():
            self.release(member)
        for place in self._places:
            with suppress(OSError):
                place.rmdir()


def _version(root: Path) -> int:
    try:
        if {"cpu", "memory"} <= set((root / "cgroup.controllers").read_text().split()):
            return 2
    except OSError:
        pass
    return 1 if all((root / name / "tasks").exists() for name in ("memory", "cpu")) else 0
