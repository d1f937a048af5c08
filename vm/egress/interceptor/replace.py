"""Replaces byte strings in a stream, across its chunks' borders, holding back only what may be one's beginning.

Somebody may choose both what is looked for and what it is looked for in, so that a part of it stands at every place.
So no step of Python is for a place where nothing stands, and `bytes.find` looks for whole needles: its time is linear.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

_HEAD = 4  # bytes of a needle that must be at the end of what is here before the rest of it is waited for
_TRIES = 64  # places where it may begin; the next one is waited for without looking


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
        self._head = min(_HEAD, min(map(len, pairs), default=_HEAD))
        # Where one stands that begins with another, the other stands as well: only that one is looked for
        self._roots: dict[bytes, list[bytes]] = {}
        self._heads: dict[bytes, list[bytes]] = {}
        root = b""
        for needle in sorted(pairs):
            if not root or not needle.startswith(root):
                root = needle
            self._roots.setdefault(root, []).append(needle)
            self._heads.setdefault(needle[: self._head], []).append(needle)
        for needles in (*self._roots.values(), *self._heads.values()):
            needles.sort(key=len, reverse=True)
        self._beginnings = {head[:length] for head in self._heads for length in range(1, self._head)}

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def whole(self, data: bytes) -> bytes:
        """All of it, replaced."""
        out, _held = self._run(data, goes_on=False)
        return out

    def some(self, data: bytes) -> tuple[bytes, bytes]:
        """What can be said by now of a stream that goes on, and what must be seen again with what comes."""
        return self._run(data, goes_on=True)

    def _run(self, data: bytes, *, goes_on: bool) -> tuple[bytes, bytes]:
        out: list[bytes] = []
        done = 0
        end = self._may_begin(data, 0) if goes_on else len(data)
        found = [(place, root) for root in self._roots if (place := data.find(root)) != -1]
        heapq.heapify(found)
        while found and found[0][0] < end:
            place, root = found[0]
            if place >= done:
                needle = next(needle for needle in self._roots[root] if data.startswith(needle, place))
                out += data[done:place], self._pairs[needle]
                done = place + len(needle)
                if done > end:
                    end = self._may_begin(data, done)
            if (place := data.find(root, done)) != -1:
                heapq.heapreplace(found, (place, root))
            else:
                heapq.heappop(found)
        if not done and end == len(data):
            return data, b""
        return b"".join([*out, data[done:end]]), data[end:]

    def _may_begin(self, data: bytes, start: int) -> int:
        """A place behind which no needle begins that is not here as a whole, as far behind as is soon said."""
        end = least = len(data)
        for head, needles in self._heads.items():
            place = data.find(head, max(start, end - len(needles[0]) + 1))
            tries = 0
            while 0 <= place < least:
                left = end - place
                if tries == _TRIES or any(len(one) > left and data.endswith(one[:left]) for one in needles):
                    least = place
                else:
                    tries += 1
                    place = data.find(head, place + 1)
        for place in range(max(start, end - self._head + 1), least):
            if data[place:] in self._beginnings:
                return place
        return least


class Stream:
    """One stream in which something is replaced: by what `replacements` are at the time, since secrets change."""

    def __init__(self, replacements: Callable[[], Replacements]) -> None:
        self._replacements = replacements
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on after these bytes."""
        out, self._held = self._replacements().some(self._held + data)
        return out

    def end(self) -> bytes:
        """What is left at the end."""
        held, self._held = self._held, b""
        return self._replacements().whole(held) if held else b""


NOTHING = Replacements({})
