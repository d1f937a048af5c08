"""Files and directories between this machine and sandboxes, as a stream of tar: one pass, whatever their number.

What comes out of a sandbox is not trusted: nothing is written outside of the place that was named.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from . import processes
from .errors import Failure, NotFound
from .processes import descriptor_read, descriptor_sink
from .rpc import Guest, GuestError, Sink

MOST_SAID = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A path here (`sandbox` empty) or in a sandbox."""

    sandbox: str
    path: str


def place_of(text: str) -> Place:
    """`SANDBOX:PATH`, else a path of this machine: one with a colon in it is written ./a:b."""
    found = re.fullmatch(r"([^/:.][^/:]*):(.*)", text, re.DOTALL)
    return Place(found[1], found[2] or ".") if found else Place("", text)


# -- what is there -----------------------------------------------------------------------------------------------------


async def matching(guest: Guest, path: str) -> list[str]:
    """The paths of a sandbox that are meant: the path itself, or what it matches as a pattern. NotFound."""
    if await _info(guest, path, "lstat") is not None:
        return [path]
    if re.search(r"[*?\[{]", path):
        texts: list[bytes] = []

        async def keep(data: bytes) -> None:
            texts.append(data)

        made = await guest.call("expandGlob", glob=path)
        await (await guest.expect(made["streamId"], keep))
        if texts:
            return sorted(str(json.loads(text)["path"]) for text in texts)
    raise NotFound(f"there is no {path} in the sandbox")


async def target_in(guest: Guest, path: str, *, several: bool, name: str) -> tuple[str, str]:
    """The directory of a sandbox and the name in it that a source called `name` goes to. Failure."""
    info = await _info(guest, path, "stat")
    if info is not None and info["isDirectory"]:
        return path, name
    if path.endswith("/"):
        await guest.call("mkdir", path=path, options={"recursive": True})
        return path, name
    if several:
        raise Failure(f"{path} is no directory of the sandbox, and there are several sources")
    pure = PurePosixPath(path)
    return str(pure.parent), pure.name


def target_here(path: str, *, several: bool, name: str) -> tuple[Path, str]:
    """The same on this machine."""
    local = Path(path)
    if local.is_dir():
        return local, name
    if path.endswith("/"):
        local.mkdir(parents=True, exist_ok=True)
        return local, name
    if several:
        raise Failure(f"{path} is no directory here, and there are several sources")
    return local.parent, local.name


def name_of(path: str) -> str:
    """What a path of a sandbox is called. Failure for one that has no name of its own."""
    name = PurePosixPath(path).name
    if name in ("", "..", "."):
        raise Failure(f"{path} has no name of its own: name what is in it, as in {path.rstrip('/')}/*")
    return name


async def _info(guest: Guest, path: str, method: str) -> dict[str, Any] | None:
    try:
        return dict(await guest.call(method, path=path))
    except GuestError as error:
        if error.code in ("ENOENT", "ENOTDIR"):
            return None
        raise


# -- the streams -------------------------------------------------------------------------------------------------------


async def upload(guest: Guest, source: Path, folder: str, name: str) -> None:
    """A file or directory of this machine, as `name` in that directory of a sandbox."""

    def pack(file: IO[bytes]) -> None:
        # Closing it would write the end of an archive that is none
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, arcname=name)

    async def feed(given: AsyncIterator[bytes]) -> None:
        await _unpack_there(guest, folder, given)

    await _through_pipe(pack, feed, packing=True)


async def download(guest: Guest, path: str, folder: Path, name: str) -> list[str]:
    """A file or directory of a sandbox, as `name` in a directory here; what was left out, as sentences."""
    left: list[str] = []

    def unpack(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                try:
                    archive.extract(_renamed(member, name_of(path), name), folder, filter="data")
                except tarfile.FilterError as error:
                    left.append(f"left out: {error}")

    async def fill(sink: Sink) -> None:
        await _pack_there(guest, path, sink)

    await _through_pipe(unpack, fill, packing=False)
    return left


async def across(source: Guest, path: str, target: Guest, folder: str, name: str) -> None:
    """From one sandbox to another, or within one, through this machine."""
    reading, writing = os.pipe()

    async def fill() -> None:
        try:
            await _pack_there(source, path, descriptor_sink(writing), name)
        finally:
            os.close(writing)

    async def empty() -> None:
        try:
            await _unpack_there(target, folder, descriptor_read(reading))
        finally:
            os.close(reading)

    await _both(fill(), empty())


async def _pack_there(guest: Guest, path: str, sink: Sink, name: str = "") -> None:
    own = name_of(path)
    folder = str(PurePosixPath(path).parent)
    more = [_transform(own, name)] if name and name != own else []
    await _tar(guest, "-cf", "-", *more, "-C", folder, "--", own, given=None, out=sink)


async def _unpack_there(guest: Guest, folder: str, given: AsyncIterator[bytes]) -> None:
    await _tar(guest, "-xf", "-", "--no-same-owner", "-C", folder, given=given, out=_nowhere)


async def _tar(guest: Guest, *args: str, given: AsyncIterator[bytes] | None, out: Sink) -> None:
    said = bytearray()

    async def hear(data: bytes) -> None:
        said.extend(data[: MOST_SAID - len(said)])

    status = await processes.run(guest, "tar", *args, given=given, out=out, err=hear)
    if not status["success"]:
        raise Failure(f"the sandbox: {said.decode('utf-8', 'replace').strip() or 'tar failed'}")


async def _nowhere(_data: bytes) -> None:
    pass


def _transform(own: str, name: str) -> str:
    """GNU tar's option that gives the first part of each name another one; targets of symbolic links stay."""
    pattern = re.sub(r"([\\.*^$\[\]|])", r"\\\1", own)
    replacement = re.sub(r"([\\&|])", r"\\\1", name)
    return f"--transform=s|^{pattern}|{replacement}|S"


def _renamed(member: tarfile.TarInfo, own: str, name: str) -> tarfile.TarInfo:
    """The member below `name`. Failure for one that was not asked for."""

    def renamed(path: str) -> str:
        first, slash, rest = path.partition("/")
        if first != own:
            raise Failure(f"the sandbox sent {path!r}, which was not asked for")
        return f"{name}{slash}{rest}"

    links = {"linkname": renamed(member.linkname)} if member.islnk() else {}
    return member.replace(name=renamed(member.name), **links)  # type: ignore[arg-type]


async def _through_pipe(work: Callable[[IO[bytes]], None], other: Callable[[Any], Any], *, packing: bool) -> None:
    """Join a thread that reads or writes an archive to a process in a sandbox, and keep either from running ahead."""
    reading, writing = os.pipe()
    ours, theirs = (writing, reading) if packing else (reading, writing)

    def local() -> None:
        with os.fdopen(ours, "wb" if packing else "rb") as file:
            work(file)
            if not packing:
                # An archive's padding may still come: whoever writes it must not find a closed pipe
                while file.read(65_536):
                    pass

    async def remote() -> None:
        try:
            await other(descriptor_read(theirs) if packing else descriptor_sink(theirs))
        finally:
            os.close(theirs)

    await _both(remote(), asyncio.to_thread(local))


async def _both(first: Any, second: Any) -> None:
    """Wait for both ends of a pipe, and raise what was the cause: the other end only sees a broken pipe."""
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for failure in sorted(failures, key=_far_from_cause):
        if isinstance(failure, OSError | tarfile.TarError):
            raise Failure(str(failure)) from failure
        raise failure


def _far_from_cause(failure: BaseException) -> int:
    """A file that cannot be read makes tar complain of its input, and a tar that complains breaks a pipe."""
    if isinstance(failure, BrokenPipeError | tarfile.ReadError):
        return 2
    return 0 if isinstance(failure, OSError) else 1
