"""Ends QEMU processes, found by the pid files that an embedded libvirt keeps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vm.storage.layout import Layout

_LOOK = 0.002  # seconds


def qemu_kill(layout: Layout, name: str) -> None:
    """Kill the process of the domain of that name, if there is one; never one that has its number by now."""
    with suppress(OSError, ValueError), _opened(layout, name) as process:
        signal.pidfd_send_signal(process, signal.SIGKILL)


def qemu_end(layout: Layout, name: str, patience: float) -> bool:
    """Have it close its disks and end, and wait until it has been collected: whether there was one, and it has. Blocks.

    libvirt's own destroy does the same, and looks every 200 ms whether it is over.
    """
    try:
        with _opened(layout, name) as process:
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


@contextmanager
def _opened(layout: Layout, name: str) -> Iterator[int]:
    pid = int((layout.libvirt / "run" / "qemu" / f"{name}.pid").read_text())
    # Held while it is looked at: the number cannot become another process's before the signal
    process = os.pidfd_open(pid)
    try:
        if f"guest={name},".encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise ProcessLookupError(f"{pid} is not {name}")
        yield process
    finally:
        os.close(process)
