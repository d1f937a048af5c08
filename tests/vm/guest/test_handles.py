from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.vm.guest.host import Conversation, Host


async def opened(host: Host, path: Path, session: str | None = None, **options: object) -> int:
    return int((await host.ok("open", session, path=str(path), options=options))["fileHandleId"])


async def read(host: Host, handle: int, length: int, session: str | None = None) -> bytes:
    call = await host.open("fileRead", session, fileHandleId=handle, length=length)
    size = (await call.record())["ok"]["size"]
    data = await call.read_to_end()
    assert len(data) == size
    return data


async def test_reads_on_until_the_end(host: Host, home: Path) -> None:
    """Reads go on where the last one stopped; at the end there is nothing."""
    (home / "a").write_text("abcdef")
    handle = await opened(host, home / "a")

    assert [await read(host, handle, 4), await read(host, handle, 4), await read(host, handle, 4)] == [
        b"abcd",
        b"ef",
        b"",
    ]


async def test_seek_takes_numbers_and_strings(host: Host, home: Path) -> None:
    """An offset may be a decimal string; whence counts from start, place or end."""
    (home / "a").write_text("abcdef")
    handle = await opened(host, home / "a")

    assert await host.ok("fileSeek", fileHandleId=handle, offset="4", whence=0) == {"position": 4}
    assert await host.ok("fileSeek", fileHandleId=handle, offset=-1, whence=1) == {"position": 3}
    assert await host.ok("fileSeek", fileHandleId=handle, offset=-2, whence=2) == {"position": 4}
    assert await read(host, handle, 10) == b"ef"
    assert (await host.error("fileSeek", fileHandleId=handle, offset=-2, whence=0))[1] == "EINVAL"


async def test_create_reads_and_writes(host: Host, home: Path) -> None:
    """A created file is empty and open for both."""
    (home / "a").write_text("old")
    handle = (await host.ok("create", path=str(home / "a")))["fileHandleId"]

    assert await host.ok("fileWrite", data=b"x" * 700_000, fileHandleId=handle) == {"bytesWritten": 700_000}
    await host.ok("fileSeek", fileHandleId=handle, offset=0, whence=0)

    assert await read(host, handle, 3) == b"xxx"
    assert (home / "a").stat().st_size == 700_000


@pytest.mark.parametrize("name", ["size", "len"])
async def test_truncate_by_either_name(host: Host, home: Path, name: str) -> None:
    """Both SDKs' names of the length are taken; without one the file is emptied."""
    (home / "a").write_text("abcdef")
    handle = await opened(host, home / "a", write=True)

    await host.ok("fileTruncate", None, b"", fileHandleId=handle, **{name: 3})
    assert (home / "a").read_text() == "abc"
    await host.ok("fileTruncate", fileHandleId=handle)
    assert (home / "a").read_text() == ""


async def test_stat_sync_utime(host: Host, home: Path) -> None:
    """An open file tells its info, is flushed, and takes times."""
    handle = (await host.ok("create", path=str(home / "a")))["fileHandleId"]

    await host.ok("fileUtime", fileHandleId=handle, atime="1970-01-01T00:00:10Z", mtime=20.5)
    await host.ok("fileSync", fileHandleId=handle)
    await host.ok("fileSyncData", fileHandleId=handle)

    assert (await host.ok("fileStat", fileHandleId=handle))["mtime"] == "1970-01-01T00:00:20.500Z"


async def test_append_and_create_new(host: Host, home: Path) -> None:
    """Open options mean what they mean to the kernel."""
    (home / "a").write_text("one ")
    handle = await opened(host, home / "a", append=True)
    await host.ok("fileWrite", data=b"two", fileHandleId=handle)

    assert (home / "a").read_text() == "one two"
    refused = await host.error("open", path=str(home / "a"), options={"write": True, "createNew": True})
    assert refused == ("AlreadyExists", "EEXIST")
    assert (await host.error("open", path=str(home / "a"), options={"create": True}))[0] == "TypeError"


async def test_mode_of_a_new_file(host: Host, home: Path) -> None:
    """A new file gets the mode, less the mask."""
    await opened(host, home / "a", write=True, create=True, mode=0o640)

    assert (home / "a").stat().st_mode & 0o777 == 0o640


async def test_closed_handle_is_a_bad_resource(host: Host, home: Path) -> None:
    """A handle that was closed, or never was, is a BadResource."""
    handle = (await host.ok("create", path=str(home / "a")))["fileHandleId"]
    await host.ok("fileClose", fileHandleId=handle)

    assert await host.error("fileStat", fileHandleId=handle) == ("BadResource", "EBADF")
    assert await host.error("fileStat", fileHandleId=10**9) == ("BadResource", "EBADF")


async def test_handle_of_another_session(host: Host, home: Path) -> None:
    """A handle is unknown to every other session."""
    (home / "a").touch()
    handle = await opened(host, home / "a", "mine")

    assert await host.error("fileStat", "other", fileHandleId=handle) == ("BadResource", "EBADF")
    assert await host.ok("fileStat", "mine", fileHandleId=handle)


async def locking(host: Host, handle: int, session: str | None = None, *, exclusive: bool = True) -> Conversation:
    call = await host.open("fileLock", session, fileHandleId=handle, exclusive=exclusive)
    await call.end()
    return call


async def test_lock_waits_until_it_is_free(host: Host, home: Path) -> None:
    """A lock that somebody holds is granted when it is given back; other calls go on meanwhile."""
    (home / "a").touch()
    first, second = await opened(host, home / "a"), await opened(host, home / "a")
    await host.ok("fileLock", fileHandleId=first, exclusive=True)
    waiting = [await locking(host, second)]

    assert await host.ok("ping")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(waiting[0].record())), 0.1)
    await host.ok("fileUnlock", fileHandleId=first)

    assert (await host.ok("fileLock", fileHandleId=second, exclusive=True)) is None


async def test_locks_are_shared_by_default(host: Host, home: Path) -> None:
    """Without `exclusive` two handles hold the lock at once."""
    (home / "a").touch()
    for _ in range(2):
        await host.ok("fileLock", fileHandleId=await opened(host, home / "a"), exclusive=None)


async def test_end_of_session_releases_its_locks(host: Host, home: Path) -> None:
    """What a session holds goes with it: the next one gets the lock."""
    (home / "a").touch()
    session = await host.open("session", "first")
    assert await session.record() == {"ok": None}
    mine = await opened(host, home / "a", "first")
    theirs = await opened(host, home / "a", "second")
    await host.ok("fileLock", "first", fileHandleId=mine, exclusive=True)
    call = await locking(host, theirs, "second")

    await session.reset()

    assert await asyncio.wait_for(call.record(), 5) == {"ok": None}
    assert (await host.error("fileStat", "first", fileHandleId=mine))[0] == "BadResource"


async def test_end_of_link_ends_sessions(host: Host, home: Path, agent: object) -> None:
    """A new link finds nothing held by the sessions of the last one."""
    (home / "a").touch()
    session = await host.open("session", "lost")
    assert await session.record() == {"ok": None}
    mine = await opened(host, home / "a", "lost")
    await host.ok("fileLock", "lost", fileHandleId=mine, exclusive=True)
    await host.close()

    again = await Host(agent.connection).linked()  # type: ignore[attr-defined]
    handle = await opened(again, home / "a", "new")
    await asyncio.wait_for(again.ok("fileLock", "new", fileHandleId=handle, exclusive=True), 5)
    await again.close()


async def test_length_is_bounded(host: Host) -> None:
    """A read of any length is answered with at most what one read may hold."""
    handle = await opened(host, Path(os.devnull).parent / "zero")

    assert 0 < len(await read(host, handle, 2**40)) <= 2**20
    assert (await host.error("fileRead", fileHandleId=handle, length=-1))[0] == "RangeError"
