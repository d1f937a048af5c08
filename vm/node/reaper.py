"""Collects dead QEMU processes, because libvirt's destroy waits until nobody does.

QEMU daemonises, so it becomes the child of the nearest subreaper: this process, or after its death the supervisor.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans of our children become our children. Repeatable."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def reap_daemons(program: str = "qemu-system") -> list[int]:
    """Collect dead children that run `program` and have left our session; returns their ids.

    Whoever started a child in our session (libvirt's own helpers, vm.host.run) waits for it, and must find it.
    """
    reaped = []
    ours = os.getsid(0)
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue  # the thread has ended
        for child in map(int, children):
            if _is_dead_daemon(child, program, ours):
                os.waitpid(child, os.WNOHANG)
                reaped.append(child)
    return reaped


def _is_dead_daemon(pid: int, program: str, session: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name may hold anything, so it is cut out by its last bracket
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    state, _parent, _group, its_session = stat[stat.rindex(")") + 2 :].split()[:4]
    return state == "Z" and name.startswith(program[:15]) and int(its_session) != session


def reap_on_sigchld() -> None:
    """Become the subreaper and collect from the running event loop, which must be the main thread's."""
    become_subreaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap_daemons)
    reap_daemons()
