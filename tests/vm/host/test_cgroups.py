"""Control groups of both versions, on trees that look like the kernel's; and the out-of-memory counter."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vm.host.cgroups import Bounds, ControlGroups
from vm.host.memory import LATELY, OutOfMemoryWatch

BOUNDS = Bounds(memory=2**30, cpus=2.5)


@pytest.fixture
def version_one(tmp_path: Path) -> Path:
    for name in ("memory", "cpu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    return tmp_path


def test_version_two(tmp_path: Path) -> None:
    """One group with both bounds, and the process in it."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = ControlGroups("atoll-1", tmp_path)
    groups.bound("m1", 42, BOUNDS)
    group = tmp_path / "atoll-1" / "m1"
    assert (group / "memory.max").read_text() == str(2**30)
    assert (group / "cpu.max").read_text() == "250000 100000"
    assert (group / "cgroup.procs").read_text() == "42"
    assert groups.members() == {"m1"}


def test_version_one(version_one: Path) -> None:
    """A group in each hierarchy."""
    groups = ControlGroups("atoll-1", version_one)
    groups.bound("m1", 42, BOUNDS)
    assert (version_one / "memory" / "atoll-1" / "m1" / "memory.limit_in_bytes").read_text() == str(2**30)
    assert (version_one / "cpu" / "atoll-1" / "m1" / "cpu.cfs_quota_us").read_text() == "250000"
    assert (version_one / "cpu" / "atoll-1" / "m1" / "cgroup.procs").read_text() == "42"


def test_without_groups_nothing_is_bounded(tmp_path: Path) -> None:
    """A host, or a container, that has none: every call does nothing."""
    groups = ControlGroups("atoll-1", tmp_path)
    groups.bound("m1", 42, BOUNDS)
    groups.release("m1")
    assert groups.version == 0
    assert groups.members() == set()
    assert list(tmp_path.iterdir()) == []


def test_kills_for_want_of_memory_explain_ends_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is compared with the last look; its growth explains every end of the next seconds, none later."""
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 1\noom_kill 3\n")
    watch = OutOfMemoryWatch(counters)
    assert not watch.killed_lately()
    counters.write_text("nr_free_pages 1\noom_kill 4\n")
    assert watch.killed_lately()
    assert watch.killed_lately()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LATELY + 1)
    assert not watch.killed_lately()
