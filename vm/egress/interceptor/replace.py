"""Replaces byte strings in a stream, across its chunks' borders, holding back only what may be one's beginning."""

from __future__ import annotations

import re
from collections.abc import Mapping

_HEAD = 8


class Replacements:
    """What is replaced by what; made once for many streams. Where several begin at one place, the longest is taken."""

    def __init__(self, pairs: Mapping[bytes, bytes], *, same_length: bool = False) -> None:
        """`same_length` cuts or repeats a replacement to the length of what it replaces."""
        if b"" in pairs:
            raise ValueError("nothing cannot be replaced")
        self._pairs = {
            needle: (new * (len(needle) // max(1, len(new)) + 1))[: len(needle)] if same_length else new
            for needle, new in pairs.items()
        }
        self._needles = sorted(pairs, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles)))

    def __bool__(self) -> bool:
        return bool(self._needles)

    def whole(self, data: bytes) -> bytes:
        """All of it, replaced."""
        if not any(needle in data for needle in self._needles):
            return data
        return self._pattern.sub(lambda found: self._pairs[found[0]], data)

    def some(self, data: bytes) -> tuple[bytes, bytes]:
        """What can be said by now of a stream that goes on, and what must be seen again with what comes."""
        held_from = self._unfinished(data, 0)
        if not any(needle in data for needle in self._needles):
            return (data, b"") if held_from is None else (data[:held_from], data[held_from:])
        out, place = [], 0
        while True:
            found = self._pattern.search(data, place)
            if held_from is not None and held_from < place:
                held_from = self._unfinished(data, place)
            if found is None or (held_from is not None and held_from <= found.start()):
                end = len(data) if held_from is None else held_from
                out.append(data[place:end])
                return b"".join(out), data[end:]
            out += data[place : found.start()], self._pairs[found[0]]
            place = found.end()

    def _unfinished(self, data: bytes, start: int) -> int | None:
        """The first place from which all that is left is the beginning of something longer."""
        best: int | None = None
        for needle in self._needles:
            place = self._beginning(data, needle, max(start, len(data) - len(needle) + 1))
            if place is not None and (best is None or place < best):
                best = place
        return best

    @staticmethod
    def _beginning(data: bytes, needle: bytes, lowest: int) -> int | None:
        place = data.find(needle[:_HEAD], lowest)
        while place != -1:
            if needle.startswith(data[place:]):
                return place
            place = data.find(needle[:_HEAD], place + 1)
        for place in range(max(lowest, len(data) - _HEAD + 1), len(data)):
            if needle.startswith(data[place:]):
                return place
        return None


class Stream:
    """One stream in which something is replaced."""

    def __init__(self, replacements: Replacements) -> None:
        self._replacements = replacements
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on after these bytes."""
        if not self._replacements:
            return data
        out, self._held = self._replacements.some(self._held + data)
        return out

    def end(self) -> bytes:
        """What is left at the end."""
        held, self._held = self._held, b""
        return self._replacements.whole(held) if held else b""
