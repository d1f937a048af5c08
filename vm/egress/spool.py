"""Passages on their way to whoever keeps them: in files of a bounded size, so that a kill of the node loses little.

A segment is a file of lines, named by the number of its first: a head, then `number machine passage` each, the passage
as JSON. Whole lines are appended in one system call, so what a kill can tear is the end of the newest segment; the next
opening cuts it off. Numbers only ever grow, also over a loss of power: each opening goes on at the clock's time.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vm.api import PassageBatch, PassageEntry
from vm.egress.journal import Kind, Passage, passage_from_json, passage_to_json

log = logging.getLogger("atoll.egress")

EVERY = 0.25
"""Seconds for which passages are gathered before they are written."""
_LIMIT = 32 * 2**20
_SEGMENT = 2**20
_WAITING = 5000
_ANSWER = 2 * 2**20  # bytes of one answer: a record of the node's API has room for more
_SHARE = 500  # of these, for one machine: the others' must not be lost for its flood


class Spool:
    """The spool in a directory of its own. `add` never blocks; `read` and `close` do, and may run in any thread.

    `limit` and `segment` are in bytes. What is older than fits goes, whether somebody has read it or not.
    """

    def __init__(self, place: Path, *, limit: int = _LIMIT, segment: int = _SEGMENT) -> None:
        """OSError."""
        self._place = place
        self._limit = limit
        self._segment = segment
        place.mkdir(mode=0o700, exist_ok=True)
        self.id = _identity(place / "id")
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[tuple[str, Passage]] = []
        self._shares: Counter[tuple[str, bool]] = Counter()
        self._some = threading.Event()
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None
        self._failing = False
        self._read = 0
        self._dropped, self._next, self._file, self._size = self._open()

    def add(self, machine: str, passage: Passage) -> None:
        """Keep it: within a quarter of a second it is written. Beyond what can be, it is counted as dropped."""
        # A machine's own flood must not hide its alerts
        share = machine, passage.kind is Kind.ALERT
        with self._lock:
            if len(self._waiting) >= _WAITING or self._shares[share] >= _SHARE:
                self._dropped += 1
                return
            self._waiting.append((machine, passage))
            self._shares[share] += 1
            if self._writer is None and not self._closing.is_set():
                self._writer = threading.Thread(target=self._write_on, name="egress spool", daemon=True)
                self._writer.start()
        self._some.set()

    def read(self, cursor: str, limit: int) -> PassageBatch:
        """At most `limit` entries after `cursor`; from the oldest where that is empty, or of another spool."""
        after = self._after(cursor)
        with self._lock:
            self._read = max(self._read, after)
            dropped = self._dropped
        found: list[PassageEntry] = []
        room = _ANSWER
        for entry, size in (pair for path in self._segments_after(after) for pair in _entries(path, after)):
            found.append(entry)
            room -= size
            if len(found) >= limit or room <= 0:
                break
        last = found[-1].number if found else after
        return PassageBatch(f"{self.id}:{last}", tuple(found), dropped)

    def flush(self) -> None:
        """Write what waits now."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                self._shares.clear()
            try:
                self._append(waiting)
            except OSError as error:
                with self._lock:
                    self._dropped += len(waiting)
                if not self._failing:
                    log.error("connections of sandboxes cannot be journalled: %s", error)
                self._failing = True
            else:
                self._failing = False

    def close(self) -> None:
        """Write what waits, and no more. Repeatable."""
        self._closing.set()
        self._some.set()
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    # -- writing

    def _write_on(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._closing.wait(EVERY)
            self._some.clear()
            self.flush()

    def _append(self, waiting: list[tuple[str, Passage]]) -> None:
        lines: list[bytes] = []
        size = 0
        for machine, passage in waiting:
            if self._size + size >= self._segment:
                self._write(b"".join(lines))
                lines, size = [], 0
                self._roll()
            line = f"{self._next} {machine} {json.dumps(passage_to_json(passage), separators=(',', ':'))}\n".encode()
            self._next += 1
            lines.append(line)
            size += len(line)
        self._write(b"".join(lines))

    def _write(self, data: bytes) -> None:
        if not data:
            return
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            # Half a line would take the next one with it
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _roll(self) -> None:
        before = self._file
        self._file, self._size = self._begin(self._next)
        os.close(before)
        paths = self._segments()
        sizes = {path: path.stat().st_size for path in paths}
        while sum(sizes.values()) > self._limit and len(sizes) > 1:
            oldest = paths.pop(0)
            with self._lock:
                read = self._read
            lost = sum(1 for _ in _entries(oldest, read))
            if lost:
                log.warning("%d connections of sandboxes are not journalled: nobody asked for them in time", lost)
                with self._lock:
                    self._dropped += lost
            oldest.unlink()
            del sizes[oldest]

    def _begin(self, first: int) -> tuple[int, int]:
        head = json.dumps({"dropped": self._dropped}).encode() + b"\n"
        file = os.open(self._place / f"{first:020d}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(file, 0)
        os.write(file, head)
        return file, len(head)

    # -- what is there

    def _open(self) -> tuple[int, int, int, int]:
        """What was dropped, the next number, the newest segment and its size."""
        self._dropped = 0
        clock = time.time_ns() // 1000
        for path in reversed(self._segments()):
            head, last = _mended(path)
            if head is None:
                path.unlink()  # it was only begun
                continue
            self._dropped = head
            file = os.open(path, os.O_WRONLY | os.O_APPEND)
            return head, max(last + 1, int(path.stem), clock), file, path.stat().st_size
        file, size = self._begin(clock)
        return 0, clock, file, size

    def _segments(self) -> list[Path]:
        return sorted(self._place.glob("*.jsonl"))

    def _segments_after(self, after: int) -> list[Path]:
        paths = self._segments()
        firsts = [int(path.stem) for path in paths]
        # All but the last that begin at or before it hold only older ones
        older = sum(1 for first in firsts if first <= after)
        return paths[max(0, older - 1) :]

    def _after(self, cursor: str) -> int:
        spool, _colon, number = cursor.partition(":")
        return int(number) if spool == self.id and number.isascii() and number.isdecimal() else 0


def _identity(path: Path) -> str:
    try:
        found = path.read_text().strip()
        if found:
            return found
    except FileNotFoundError:
        pass
    made = secrets.token_hex(8)
    fresh = path.with_suffix(".new")
    fresh.write_text(made)
    fresh.rename(path)
    return made


def _mended(path: Path) -> tuple[int | None, int]:
    """Cut a torn end off. What its head says was dropped (None: it has no head), and its last number or 0."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    try:
        head = int(json.loads(lines[0])["dropped"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None, 0
    return head, max((entry.number for entry, _size in _entries(path, 0)), default=0)


def _entries(path: Path, after: int) -> Iterator[tuple[PassageEntry, int]]:
    """The entries of a segment after a number, with the bytes of each; none if it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        next(file, b"")
        for line in file:
            if not line.endswith(b"\n"):
                return  # just being written
            number, _, rest = line.partition(b" ")
            try:
                if int(number) <= after:
                    continue
                machine, _, text = rest.partition(b" ")
                entry = PassageEntry(int(number), machine.decode("ascii"), passage_from_json(json.loads(text)))
            except (ValueError, TypeError, KeyError):
                log.warning("a line of %s is not one of the journal's", path.name)
                continue
            yield entry, len(line)
