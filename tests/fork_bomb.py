"""A program that takes every process its guest may have and goes on trying, and how one sees that it has them."""

from __future__ import annotations

import re

# Threads first: they count like processes, and a slow host makes ten of them in the time of one process
PROGRAM = """
import _thread, os, time
_thread.stack_size(65536)
try:
    while True:
        _thread.start_new_thread(time.sleep, (1000,))
except RuntimeError:
    while True:
        try:
            os.fork()
        except OSError:
            pass
"""
COUNTER = "/sys/fs/cgroup/user/pids.events"
MEMORY_MIB = 1280
"""In less the kernel has an earlier limit of its own, which nobody counts."""


def refused(counter: str) -> int:
    """How often there were as many as there may be, from the content of `COUNTER`."""
    found = re.fullmatch(r"max (\d+)\n", counter)
    assert found, counter
    return int(found[1])
