"""Walks directory trees and expands globs, entry by entry.

Runs in a process of its own, as the user: a regular expression that backtracks for ever, or a tree of a million files,
costs nobody but the call that asked for it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

from vm.guest.agent import patterns
from vm.guest.agent.errors import Refusal, from_os_error

type Entry = dict[str, object]

_FLUSH = 32_768


def run(task: str, params: dict[str, Any], home: str, write: Callable[[bytes], object]) -> None:
    """Write the call's whole answer in records: ok null and the entries, or an error. A failure in between raises."""
    try:
        entries = (walk if task == "walk" else expand_glob)(home, **params)
        first = next(entries, None)
    except Refusal as refusal:
        write(_record({"error": refusal.as_json()}))
        return
    except OSError as error:
        write(_record({"error": from_os_error(error, task).as_json()}))
        return
    pending = bytearray(_record({"ok": None}))
    if first is not None:
        pending += _record(first)
        for entry in entries:
            pending += _record(entry)
            if len(pending) >= _FLUSH:
                write(bytes(pending))
                pending.clear()
    write(bytes(pending))


def _record(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
    return len(text).to_bytes(4, "big") + text


def _entry(path: str, mode: int, name: str | None = None) -> Entry:
    return {
        "path": path,
        "name": os.path.basename(path.rstrip("/")) if name is None else name,
        "isFile": stat.S_ISREG(mode),
        "isDirectory": stat.S_ISDIR(mode),
        "isSymlink": stat.S_ISLNK(mode),
    }


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []  # removed meanwhile


# -- walk --------------------------------------------------------------------------------------------------------------


def walk(
    home: str,
    path: str,
    maxDepth: float | None = None,
    includeFiles: bool | None = None,
    includeDirs: bool | None = None,
    includeSymlinks: bool | None = None,
    followSymlinks: bool | None = None,
    canonicalize: bool | None = None,
    exts: list[str] | None = None,
    match: list[dict[str, str]] | None = None,
    skip: list[dict[str, str]] | None = None,
) -> Iterator[Entry]:
    """The root and what is below it, depth first, each directory by name. Paths keep the form of the given root."""
    limit = float("inf") if maxDepth is None else maxDepth
    endings = None if exts is None else tuple(ext if ext.startswith(".") else f".{ext}" for ext in exts)
    wanted = None if match is None else [patterns.javascript(one["source"], one.get("flags") or "") for one in match]
    unwanted = [patterns.javascript(one["source"], one.get("flags") or "") for one in skip or []]

    def passes(shown: str) -> bool:
        return (
            (endings is None or shown.endswith(endings))
            and (wanted is None or any(pattern.search(shown) for pattern in wanted))
            and not any(pattern.search(shown) for pattern in unwanted)
        )

    def skipped(shown: str) -> bool:
        return any(pattern.search(shown) for pattern in unwanted)

    if limit < 0:
        return
    top = os.path.join(home, path)
    mode = os.stat(top).st_mode
    if not stat.S_ISDIR(mode):
        if includeFiles is not False and passes(path):
            yield _entry(path, mode)
        return
    # Each level: the directory as shown, as opened, its own number (against cycles), the names still to visit
    levels: list[tuple[str, str, tuple[int, int], Iterator[str]]] = []

    def descend(shown: str, real: str) -> None:
        found = os.stat(real)
        number = (found.st_dev, found.st_ino)
        if all(number != level[2] for level in levels):
            levels.append((shown, real, number, iter(_names(real))))

    if includeDirs is not False and passes(path):
        yield _entry(path, mode)
    if limit >= 1 and not skipped(path):
        descend(path, top)
    while levels:
        shown_parent, real_parent, _, names = levels[-1]
        name = next(names, None)
        if name is None:
            levels.pop()
            continue
        shown, real = _joined(shown_parent, name), os.path.join(real_parent, name)
        try:
            mode = os.lstat(real).st_mode
            if stat.S_ISLNK(mode):
                if not followSymlinks:
                    if includeSymlinks is not False and passes(shown):
                        yield _entry(shown, mode)
                    continue
                mode = os.stat(real).st_mode
                if canonicalize is not False:
                    shown = real = os.path.realpath(real, strict=True)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode):
            if includeDirs is not False and passes(shown):
                yield _entry(shown, mode)
            if len(levels) < limit and not skipped(shown):
                descend(shown, real)
        elif includeFiles is not False and passes(shown):
            yield _entry(shown, mode)


def _joined(parent: str, name: str) -> str:
    if parent in (".", "./", ""):
        return name
    return f"{parent.rstrip('/')}/{name}"


# -- globs -------------------------------------------------------------------------------------------------------------


def expand_glob(
    home: str,
    glob: str,
    root: str | None = None,
    exclude: list[str] | None = None,
    includeDirs: bool | None = None,
    followSymlinks: bool | None = None,
    canonicalize: bool | None = None,
    extended: bool | None = None,
    globstar: bool | None = None,
    caseInsensitive: bool | None = None,
) -> Iterator[Entry]:
    """The entries that match, with absolute paths, each once and in order."""
    start = os.path.normpath(os.path.join(home, root or ""))
    style = _Style(extended is not False, globstar is not False, bool(caseInsensitive))
    excluded = [_WholePath("/" if one.startswith("/") else start, one, style) for one in exclude or []]
    top = "/" if glob.startswith("/") else start
    segments = [segment for segment in glob.split("/") if segment not in ("", ".")]
    only_folders = glob.endswith("/")
    seen: set[str] = set()

    def allowed(path: str) -> bool:
        return not any(pattern.match(path) for pattern in excluded)

    for path in _matches(top, segments, style, allowed, follow=bool(followSymlinks)):
        shown = os.path.normpath(path)
        if shown == start or shown in seen or not allowed(shown):
            continue
        try:
            mode = os.lstat(shown).st_mode
            if stat.S_ISLNK(mode) and followSymlinks:
                mode = os.stat(shown).st_mode
                if canonicalize is not False:
                    shown = os.path.realpath(shown, strict=True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            raise
        if (stat.S_ISDIR(mode) and includeDirs is False) or (only_folders and not stat.S_ISDIR(mode)) or shown in seen:
            continue
        seen.add(shown)
        yield _entry(shown, mode)


class _Style:
    def __init__(self, extended: bool, globstar: bool, ignore_case: bool) -> None:
        self.globstar = globstar
        self._extended = extended
        self._ignore_case = ignore_case
        self._compiled: dict[str, re.Pattern[str]] = {}

    def segment(self, segment: str) -> re.Pattern[str]:
        """The pattern of one path segment."""
        if segment not in self._compiled:
            self._compiled[segment] = patterns.glob_segment(
                segment, extended=self._extended, ignore_case=self._ignore_case
            )
        return self._compiled[segment]

    def literal(self, segment: str) -> bool:
        """Whether a segment names just one file, so that no directory need be listed for it."""
        return not self._ignore_case and not patterns.is_glob(segment)


class _WholePath:
    def __init__(self, top: str, glob: str, style: _Style) -> None:
        self._top = top.rstrip("/") + "/"
        self._segments = [part for part in glob.split("/") if part not in ("", ".")]
        self._style = style

    def match(self, path: str) -> bool:
        """Whether the path, or a directory above it, is meant."""
        if not path.startswith(self._top):
            return False
        places = {0}
        for name in path.removeprefix(self._top).split("/"):
            following: set[int] = set()
            for place in self._closed(places):
                if place == len(self._segments):
                    return True  # below something that is excluded
                segment = self._segments[place]
                if segment == "**" and self._style.globstar:
                    following.add(place)
                elif self._style.segment(segment).match(name):
                    following.add(place + 1)
            places = following
        return len(self._segments) in self._closed(places)

    def _closed(self, places: set[int]) -> set[int]:
        """With every place that `**` lets one reach without a name."""
        reached = set(places)
        for place in sorted(places):
            at = place
            while at < len(self._segments) and self._segments[at] == "**" and self._style.globstar:
                at += 1
                reached.add(at)
        return reached


def _matches(
    top: str, segments: list[str], style: _Style, allowed: Callable[[str], bool], *, follow: bool
) -> Iterator[str]:
    stack: list[tuple[str, int]] = [(top, 0)]
    done: set[tuple[str, int]] = set()
    while stack:
        path, at = stack.pop()
        if (path, at) in done:
            continue
        done.add((path, at))
        if at == len(segments):
            yield path
            continue
        segment = segments[at]
        if segment == ".." or style.literal(segment):
            there = os.path.join(path, segment)
            if os.path.lexists(there):
                stack.append((there, at + 1))
            continue
        following: list[tuple[str, int]] = []
        recursive = segment == "**" and style.globstar
        if recursive:
            following.append((path, at + 1))
        elif not os.path.isdir(path):
            continue
        if not os.path.isdir(path) or (recursive and os.path.islink(path) and not follow and path != top):
            stack.extend(reversed(following))
            continue
        for name in _names(path):
            there = os.path.join(path, name)
            if not allowed(there):
                continue
            if recursive:
                # A name may match the rest, and a directory may be gone into
                if os.path.isdir(there) and (follow or not os.path.islink(there)):
                    if not follow or not _cycle(there):
                        following.append((there, at))
                elif at + 1 == len(segments):
                    following.append((there, len(segments)))
                else:
                    continue
            elif style.segment(segment).match(name) and (
                follow or at + 1 == len(segments) or not os.path.islink(there)
            ):
                following.append((there, at + 1))
        stack.extend(reversed(following))


def _cycle(path: str) -> bool:
    real = os.path.realpath(path)
    return os.path.islink(path) and (path + "/").startswith(real.rstrip("/") + "/")
