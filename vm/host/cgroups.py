"""Bounds a QEMU process in CPU and memory by control groups of our own, where the host has them and nobody else does.

On a host with systemd libvirt makes the groups, and the domain's XML says the bounds (vm/libvirt/xml_build.py). On one
without, such as a container, they are made here: version 2 bounds both, version 1 memory only.
The `cpu` hierarchy of version 1 is left alone: a virtual processor of a machine that was moved into it was seen to wait
for its CPU for up to 100 s beside another busy machine, with a quota and without one (ARCHITECTURE.md, decision 63).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
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


class Killed(Enum):
    """Whether the kernel killed a process of a group for want of memory, and whose memory it was."""

    NO = "no"
    BY_ITS_LIMIT = "limit"  # the group had all that it may have
    BY_THE_HOST = "host"  # a group above it, or the host, had none left


class ControlGroups:
    """The groups below `name` on this host; without usable ones every call does nothing."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.version = _version(root)
        if not self.version:
            return
        self._place = (root if self.version == 2 else root / "memory") / name
        try:
            self._place.mkdir(exist_ok=True)
            if self.version == 2:
                (root / "cgroup.subtree_control").write_text("+memory +cpu")
                (self._place / "cgroup.subtree_control").write_text("+memory +cpu")
        except OSError:
            # Read-only, or processes sit in the root group: a container that may not make any
            self.version = 0

    def bound(self, member: str, pid: int, bounds: Bounds) -> None:
        """Put a process into a group of its own with these bounds. Repeatable. OSError if the process is gone."""
        if not self.version:
            return
        group = self._place / member
        group.mkdir(exist_ok=True)
        if self.version == 2:
            (group / "memory.max").write_text(str(bounds.memory))
            (group / "cpu.max").write_text(f"{bounds.quota} {_PERIOD}")
        else:
            (group / "memory.limit_in_bytes").write_text(str(bounds.memory))
        (group / "cgroup.procs").write_text(str(pid))

    def killed(self, member: str) -> Killed | None:
        """What the kernel counted for a group that is not released yet; None where nobody counts."""
        if not self.version:
            return None
        group = self._place / member
        try:
            if self.version == 2:
                counts = _counts(group / "memory.events")
                at_limit = counts.get("oom", 0)  # not raised by those above
            else:
                counts = _counts(group / "memory.oom_control")
                # Also raised where it could be helped without a kill: a kill by the host then counts as the limit's
                at_limit = int((group / "memory.failcnt").read_text())
            kills = counts["oom_kill"]
        except (OSError, KeyError):
            return None
        if not kills:
            return Killed.NO
        return Killed.BY_ITS_LIMIT if at_limit else Killed.BY_THE_HOST

    def release(self, member: str) -> None:
        """Remove the group of a process that has ended. Repeatable; one that is not empty stays."""
        if self.version:
            with suppress(OSError):
                (self._place / member).rmdir()

    def members(self) -> set[str]:
        """The groups there are."""
        return {entry.name for entry in os.scandir(self._place) if entry.is_dir()} if self.version else set()

    def close(self) -> None:
        """Remove what is empty."""
        for member in self.members():
            self.release(member)
        if self.version:
            with suppress(OSError):
                self._place.rmdir()


def _counts(path: Path) -> dict[str, int]:
    return {name: int(number) for name, number in (line.split() for line in path.read_text().splitlines())}


def _version(root: Path) -> int:
    try:
        if {"cpu", "memory"} <= set((root / "cgroup.controllers").read_text().split()):
            return 2
    except OSError:
        pass
    return 1 if (root / "memory" / "tasks").exists() else 0
