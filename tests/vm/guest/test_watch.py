from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.vm.guest.host import Conversation, Host


async def watching(host: Host, *paths: Path) -> Conversation:
    call = await host.open("watch", paths=[str(path) for path in paths])
    assert await call.record() == {"ok": None}
    return call


async def following(call: Conversation) -> dict[str, str]:
    return dict(await asyncio.wait_for(call.record(), 5))


async def test_changes_are_told(host: Host, home: Path) -> None:
    """A new, a changed and a removed entry of a directory are told as such."""
    (home / "old").touch()
    (home / "gone").touch()
    call = await watching(host, home)
    (home / "new").touch()
    (home / "old").write_text("x")
    (home / "gone").unlink()

    seen = [await following(call) for _ in range(3)]
    assert {change["path"]: change["kind"] for change in seen} == {
        str(home / "new"): "created",
        str(home / "old"): "changed",
        str(home / "gone"): "removed",
    }


async def test_replacing_a_file_is_a_change(host: Host, home: Path) -> None:
    """A file saved by renaming another over it has changed."""
    (home / "a").write_text("old")
    call = await watching(host, home / "a")
    (home / "a").write_text("newer")

    assert await following(call) == {"path": str(home / "a"), "kind": "changed"}


async def test_many_changes_are_coalesced(host: Host, home: Path) -> None:
    """A file that is written a thousand times is told a few times."""
    call = await watching(host, home)
    began = time.monotonic()
    for number in range(1000):
        (home / "a").write_text(str(number))
    await asyncio.sleep(0.5)
    (home / "end").touch()

    seen = []
    while (change := await following(call))["path"] != str(home / "end"):
        seen.append(change)
    assert 1 <= len(seen) <= 10 * (time.monotonic() - began)


async def test_missing_path(host: Host, home: Path) -> None:
    """A path that does not exist cannot be watched."""
    assert await host.error("watch", paths=[str(home / "no")]) == ("NotFound", "ENOENT")


async def test_too_many_paths(host: Host, home: Path) -> None:
    """At most 256 paths are watched by one call."""
    assert (await host.error("watch", paths=[str(home)] * 257))[0] == "RangeError"
