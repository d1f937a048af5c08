"""Replaces byte strings in a stream, across its chunks' borders, holding back only what may be one's beginning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

_HEAD = 4  # bytes of which the search's automaton is made: it must be made fast, however long and many needles are
_FEW = 64  # heads that are sooner looked for one by one


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
        self._needles: dict[bytes, list[bytes]] = {}
        for needle in sorted(pairs, key=len, reverse=True):
            self._needles.setdefault(needle[: self._head], []).append(needle)
        self._pattern = re.compile(_any_of(self._needles), re.DOTALL)
        self._beginnings = {head[:length] for head in self._needles for length in range(1, self._head)}

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
        for place in self._candidates(data):
            if place < done:
                continue
            needles = self._needles[data[place : place + self._head]]
            if goes_on and _may_become(data, place, needles):
                return b"".join([*out, data[done:place]]), data[place:]
            found = next((needle for needle in needles if data.startswith(needle, place)), None)
            if found is not None:
                out += data[done:place], self._pairs[found]
                done = place + len(found)
        end = len(data)
        if goes_on:
            last = range(max(done, end - self._head + 1), end)
            end = next((place for place in last if data[place:] in self._beginnings), end)
        if not done and end == len(data):
            return data, b""
        return b"".join([*out, data[done:end]]), data[end:]

    def _candidates(self, data: bytes) -> Iterator[int]:
        """Every place where a needle's head stands, in order."""
        if not self._pairs or (len(self._needles) <= _FEW and not any(head in data for head in self._needles)):
            return
        found = self._pattern.search(data)
        while found is not None:
            yield found.start()
            found = self._pattern.search(data, found.start() + 1)


def _may_become(data: bytes, place: int, needles: Iterable[bytes]) -> bool:
    """Whether all that is left from there on is the beginning of something longer."""
    left = len(data) - place
    return any(len(needle) > left and needle.startswith(data[place:]) for needle in needles)


def _any_of(heads: Iterable[bytes]) -> bytes:
    """A pattern for strings of one length, in which each byte is looked at once."""
    followers: dict[bytes, list[bytes]] = {}
    for head in heads:
        if head:
            followers.setdefault(head[:1], []).append(head[1:])
    if not followers:
        return b""
    return b"(?:" + b"|".join(re.escape(first) + _any_of(rest) for first, rest in followers.items()) + b")"


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
