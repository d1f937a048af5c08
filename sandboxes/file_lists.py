"""The list of a disk's files as a guest's `find` tells it: packed, looked into, and compared; pure.

What a guest says is not to be trusted: names may be anything, and a line that is none is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxes.errors import Invalid

FORMAT = r"%y\t%m\t%s\t%T@\t%P\0"
"""For `find -printf`: kind, mode, size, time of the last change, and path; ended by a NUL."""
LARGEST = 32 * 2**20
"""Bytes that a list may have, some 300,000 files."""
SHOWN = 2000
"""Entries that are shown at a time."""
_KINDS = {"d": "directory", "f": "file", "l": "link"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: `path` from the root of its disk, without a slash before it; sizes in bytes, `changed` in seconds."""

    path: str
    kind: str
    mode: str
    size: int
    changed: float

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of a file between two lists: "added", "removed" or "changed"; its entry, the later one of two."""

    what: str
    entry: Entry


def packed(told: bytes) -> bytes:
    """What `find` printed, in the order of paths and compressed."""
    lines = [line for line in told.split(b"\0") if _read(line) is not None]
    lines.sort(key=_path)
    return zlib.compress(b"\0".join(lines), 6)


def entries(listing: bytes) -> Iterator[Entry]:
    """What was packed, in the order of paths."""
    for line in zlib.decompress(listing).split(b"\0"):
        if (entry := _read(line)) is not None:
            yield entry


def within(listing: bytes, directory: str) -> tuple[list[Entry], bool]:
    """What lies in a directory, and whether there is more than SHOWN of it. Invalid if there is no such directory."""
    prefix = "".join(f"{part}/" for part in directory.split("/") if part)
    found: list[Entry] = []
    there = not prefix
    for entry in entries(listing):
        there = there or (entry.path + "/" == prefix and entry.kind == "directory")
        rest = entry.path.removeprefix(prefix) if entry.path.startswith(prefix) else ""
        if rest and "/" not in rest:
            found.append(entry)
    if not there:
        raise Invalid(f"there is no directory {directory[:200]!r} in it", field="path")
    found.sort(key=lambda entry: (entry.kind != "directory", entry.path))
    return found[:SHOWN], len(found) > SHOWN


def differences(before: bytes, after: bytes) -> tuple[list[Difference], bool]:
    """What became of which file from one list to the other, and whether there is more than SHOWN of it.

    A directory has changed by its mode only: that something in it came or went is told of that.
    """
    found: list[Difference] = []
    old, new = entries(before), entries(after)
    left, right = next(old, None), next(new, None)
    while (left or right) and len(found) <= SHOWN:
        if left is not None and (right is None or left.path < right.path):
            found.append(Difference("removed", left))
            left = next(old, None)
        elif right is not None and (left is None or right.path < left.path):
            found.append(Difference("added", right))
            right = next(new, None)
        elif left is not None and right is not None:
            if _told_apart(left, right):
                found.append(Difference("changed", right))
            left, right = next(old, None), next(new, None)
    return found[:SHOWN], len(found) > SHOWN


def _told_apart(left: Entry, right: Entry) -> bool:
    if left.kind == right.kind == "directory":
        return left.mode != right.mode
    return left != right


def _read(line: bytes) -> Entry | None:
    parts = line.decode(errors="replace").split("\t", 4)
    try:
        kind, mode, size, changed, path = parts
        entry = Entry(path, _KINDS.get(kind, "other"), mode[:8], int(size), round(float(changed), 6))
    except ValueError:
        return None
    return entry if path and len(path) < 8192 and 0 <= entry.size < 2**62 and abs(entry.changed) < 1e12 else None


def _path(line: bytes) -> str:
    # As they are compared later: by what they read as, not by their bytes
    return line.decode(errors="replace").split("\t", 4)[4]
