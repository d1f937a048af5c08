"""Ends QEMU processes and says whose turn comes first; they are found by the pid files of an embedded libvirt."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vm.storage.layout import Layout

_LOOK = 0.002  # seconds
_LATER = 5  # as nice(1): a third of what somebody's machine gets beside it, and all of what nobody needs


def qemu_kill(layout: Layout, name: str) -> None:
    """Kill the process of the domain of that name, if there is one; never one that has its number by now."""
    with suppress(OSError, ValueError), _opened(layout, name) as (_pid, process):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def qemu_end(layout: Layout, name: str, patience: float) -> bool:
    """Have it close its disks and end, and wait until it has been collected: whether there was one, and it has. Blocks.

    libvirt's own destroy does the same, and looks every 200 ms whether it is over.
    """
    try:
        with _opened(layout, name) as (_pid, process):
            signal.pidfd_send_signal(process, signal.SIGTERM)
            return _collected(process, time.monotonic() + patience)
    except (OSError, ValueError):
        return False


def _collected(process: int, until: float) -> bool:
    while time.monotonic() < until:
        time.sleep(_LOOK)
        try:
            signal.pidfd_send_signal(process, 0)
        except ProcessLookupError:
            return True
    return False


def turn_after_others(pid: int) -> None:
    """Let a process have its turns after the machines that are somebody's, where only root may undo that."""
    if os.geteuid() == 0:
        _nice(pid, _LATER)


def qemu_like_others(layout: Layout, name: str) -> None:
    """It is somebody's from now on."""
    with suppress(OSError, ValueError), _opened(layout, name) as (pid, _process):
        _nice(pid, 0)


@contextmanager
def after_others() -> Iterator[None]:
    """Let this thread have its turn after the machines that are somebody's, where it may have it back."""
    if os.geteuid() != 0:
        yield
        return
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(before, _LATER))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


def _nice(pid: int, value: int) -> None:
    # A kernel that shares its processors between sessions asks the session first
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(value))
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended since
                os.setpriority(os.PRIO_PROCESS, int(thread.name), value)


@contextmanager
def _opened(layout: Layout, name: str) -> Iterator[tuple[int, int]]:
    pid = int((layout.libvirt / "run" / "qemu" / f"{name}.pid").read_text())
    # Held while it is looked at: the number cannot become another process's before the signal
    process = os.pidfd_open(pid)
    try:
        if f"guest={name},".encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise ProcessLookupError(f"{pid} is not {name}")
        yield pid, process
    finally:
        os.close(process)
