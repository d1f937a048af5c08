"""Starts a program as a service user who may see the application even where it lies below a closed directory.

`python -m vm.host.confine USER [--low-ports] -- ARGV...` (as root) gives up root for good, then executes ARGV. A
checkout or an interpreter often lies in somebody's home (mode 0700): then the process gets a mount namespace in which
the closed directory is an empty one with just those trees in it, as systemd's ProtectHome=tmpfs does; the rest of that
home is out of its reach.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGTERM = 15
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAP_NET_BIND_SERVICE = 10
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def closed_ancestors(path: Path, uid: int, gids: Iterable[int]) -> list[Path]:
    """The directories on the way to `path` that this user may not pass through, outermost first."""
    return [folder for folder in reversed(path.resolve().parents) if not _may_enter(folder, uid, set(gids))]


def _may_enter(folder: Path, uid: int, groups: set[int]) -> bool:
    info = folder.stat()
    if info.st_uid == uid:
        return bool(info.st_mode & stat.S_IXUSR)
    return bool(info.st_mode & (stat.S_IXGRP if info.st_gid in groups else stat.S_IXOTH))


def application_trees() -> list[Path]:
    """Everything the running application consists of: checkout, virtual environment, interpreter."""
    checkout = Path(__file__).resolve().parents[2]
    # base_prefix follows the virtual environment to the interpreter's own home
    return [checkout, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, flags, options.encode() if options else None
    )
    if done != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def reveal(trees: list[Path], closed: list[Path]) -> None:
    """Enter a mount namespace where each closed directory is empty but for those trees, which are read-only."""
    os.unshare(os.CLONE_NEWNS)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # only now: a mount of the old namespace cannot be bound in the new one
    handles = {tree: os.open(tree, os.O_PATH | os.O_DIRECTORY) for tree in trees}
    # a directory below one that is covered already has vanished with it
    outermost = [folder for folder in closed if not any(other in folder.parents for other in closed)]
    for folder in outermost:
        _mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    # a tree inside another comes with it
    for tree, handle in handles.items():
        covered = any(folder in tree.parents for folder in outermost)
        if covered and not any(other in tree.parents for other in trees):
            tree.mkdir(parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{handle}", str(tree), None, _MS_BIND | _MS_REC)
            _mount("none", str(tree), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID)
    for handle in handles.values():
        os.close(handle)


def undumpable() -> None:
    """Let nothing of this process's memory be written to a core file, or be read by another of its user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "PR_SET_DUMPABLE")


def set_capabilities(mask: int) -> None:
    """Have exactly these, to use and to pass on; 0: none, for good. OSError."""
    # struct __user_cap_header_struct, and two of __user_cap_data_struct: effective, permitted, inheritable
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("6I", mask, mask, mask, 0, 0, 0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "capset")


def _keep_low_ports() -> None:
    """Let the program bind ports below 1024, and nothing else of what root may; for nobody where root may not."""
    try:
        set_capabilities(1 << _CAP_NET_BIND_SERVICE)
    except OSError:
        return
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_NET_BIND_SERVICE, 0, 0)


def become(user: str, *, low_ports: bool = False) -> None:
    """Give up root for `user`, for good; the program ends with its parent and leaves no core dump.

    `low_ports`: it may still bind ports below 1024, until it calls `set_capabilities(0)`.
    """
    record = pwd.getpwnam(user)
    groups = os.getgrouplist(user, record.pw_gid)
    where = Path.cwd().resolve()
    trees = application_trees()
    for tree in trees:
        if not _may_enter(tree, record.pw_uid, set(groups)):
            raise SystemExit(f"atoll: the user {user} may not read {tree}: chmod -R go+rX {tree}")
    closed = sorted({folder for tree in trees for folder in closed_ancestors(tree, record.pw_uid, groups)})
    if closed:
        reveal(trees, closed)
        # the old directory handle would still point below the cover
        os.chdir(where)
    os.setgroups(groups)
    os.setresgid(record.pw_gid, record.pw_gid, record.pw_gid)
    if low_ports:
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(record.pw_uid, record.pw_uid, record.pw_uid)
    if low_ports:
        _keep_low_ports()
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_PDEATHSIG, _SIGTERM)):
        _libc.prctl(option, value, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # unlike prctl's, this holds after the exec
    os.environ.update(HOME=record.pw_dir, USER=user, LOGNAME=user)


def main(argv: list[str]) -> None:
    """Entry point of `python -m vm.host.confine USER [--low-ports] -- ARGV...`."""
    user, *rest = argv
    low_ports = rest[:1] == ["--low-ports"]
    separator, *command = rest[low_ports:] or [""]
    if separator != "--" or not command:
        raise SystemExit("usage: python -m vm.host.confine USER [--low-ports] -- ARGV...")
    become(user, low_ports=low_ports)
    os.execvp(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
