"""Control groups of both versions, on trees that look like the kernel's; and the out-of-memory counter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.memory_limits import limit_memory
from vm.host.cgroups import Bounds, ControlGroups, Killed
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
    """A group that bounds memory; that of CPU, where busy machines starved, is left alone."""
    groups = ControlGroups("atoll-1", version_one)
    groups.bound("m1", 42, BOUNDS)
    assert (version_one / "memory" / "atoll-1" / "m1" / "memory.limit_in_bytes").read_text() == str(2**30)
    assert (version_one / "memory" / "atoll-1" / "m1" / "cgroup.procs").read_text() == "42"
    assert [entry.name for entry in (version_one / "cpu").iterdir()] == ["tasks"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("low 0\nhigh 0\nmax 7\noom 0\noom_kill 0\n", Killed.NO),
        ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n", Killed.BY_ITS_LIMIT),
        ("low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n", Killed.BY_THE_HOST),
    ],
)
def test_version_two_tells_whose_memory_it_was(tmp_path: Path, events: str, expected: Killed) -> None:
    """A kill counts as the group's own only where the group had been at its limit."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    groups = ControlGroups("atoll-1", tmp_path)
    assert groups.killed("m1") is None  # nobody counted for it
    groups.bound("m1", 42, BOUNDS)
    (tmp_path / "atoll-1" / "m1" / "memory.events").write_text(events)
    assert groups.killed("m1") is expected


@pytest.mark.parametrize(
    ("kills", "failures", "expected"),
    [(0, 3, Killed.NO), (1, 41, Killed.BY_ITS_LIMIT), (1, 0, Killed.BY_THE_HOST)],
)
def test_version_one_tells_whose_memory_it_was(version_one: Path, kills: int, failures: int, expected: Killed) -> None:
    """So does version 1, by other files."""
    groups = ControlGroups("atoll-1", version_one)
    groups.bound("m1", 42, BOUNDS)
    group = version_one / "memory" / "atoll-1" / "m1"
    (group / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    (group / "memory.failcnt").write_text(f"{failures}\n")
    assert groups.killed("m1") is expected


def _takes(groups: ControlGroups, member: str, size: int) -> int:
    """The exit status of a process in a group that takes `size` bytes of memory."""
    taking = f"import sys; sys.stdin.read(1); bytearray({size})"
    process = subprocess.Popen([sys.executable, "-c", taking], stdin=subprocess.PIPE)
    groups.bound(member, process.pid, Bounds(memory=48 * 2**20, cpus=1))
    process.communicate(b"x", timeout=30)
    return process.returncode


def test_the_kernel_counts_as_we_read_it() -> None:
    """A real process that wants more than its group may have, and one that is killed for the group above it."""
    name = f"atoll-test-{os.getpid()}"
    groups = ControlGroups(name)
    if not groups.version:
        pytest.skip("no control groups may be made here")
    try:
        assert _takes(groups, "fits", 2**20) == 0
        assert groups.killed("fits") is Killed.NO
        assert _takes(groups, "greedy", 96 * 2**20) == -signal.SIGKILL
        assert groups.killed("greedy") is Killed.BY_ITS_LIMIT
        limit_memory(name, 24 * 2**20)
        assert _takes(groups, "victim", 40 * 2**20) == -signal.SIGKILL
        assert groups.killed("victim") is Killed.BY_THE_HOST
    finally:
        for member in groups.members():
            groups.release(member)
        groups.close()


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
