"""Sets memory limits of control groups, in whichever version this host has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.host.cgroups import ROOT


def _file(group: str, name: str, name_of_version_one: str) -> Path:
    files = (ROOT / group / name, ROOT / "memory" / group / name_of_version_one)
    return next(path for path in files if path.exists())


def limit_memory(group: str, size: int) -> None:
    """Let everything in a group, a path below the root, have at most `size` bytes from now on."""
    _file(group, "memory.max", "memory.limit_in_bytes").write_text(str(size))


@contextmanager
def hardly_more_memory(group: str, spare: int) -> Iterator[None]:
    """For a while, let a group have only `spare` bytes more than it uses."""
    limit = _file(group, "memory.max", "memory.limit_in_bytes")
    before = limit.read_text()
    used = int(_file(group, "memory.current", "memory.usage_in_bytes").read_text())
    limit.write_text(str(used + spare))
    try:
        yield
    finally:
        if limit.exists():
            limit.write_text(before)
