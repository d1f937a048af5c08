"""What is saved is there whole, or the file is as it was: on real disks, some of them full."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ide.rpc import methods
from tests.factories import Team
from tests.ide.rpc.test_connection import Client, connected
from vm.fake import FakeNode
from vm.host.run import run

OLD = "old\n" * 5000
NEW = "new!\n" * 5000  # more than OLD, and more than is free on a full disk

needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
async def client(home: Team, node: FakeNode) -> AsyncIterator[Client]:
    async with connected(home, known=methods.BROWSER) as made:
        yield made


async def save(client: Client, path: Path, content: str, expected: Any = None) -> Any:
    return await client.call("file.save", path=str(path), content=content, expected=expected)


async def version(client: Client, path: Path) -> dict[str, Any]:
    found = (await client.call("stat", path=str(path)))["ok"]
    return {name: found[name] for name in ("mtime", "size")}


@contextmanager
def mounted(at: Path, *words: str) -> Iterator[Path]:
    run(["mount", *words, at])
    try:
        yield at
    finally:
        run(["umount", at])


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with the old file, on a disk that has one page left."""
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=128k", "none") as disk:
        (disk / "file").write_text(OLD)
        room = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes((room.f_bavail - 1) * room.f_bsize))
        yield disk


async def test_a_saved_file_keeps_mode_and_owner(client: Client, tmp_path: Path) -> None:
    """Another file has taken its place, whole, and nothing is left beside it; the answer is its version."""
    file = tmp_path / "file"
    file.write_text(OLD)
    file.chmod(0o2751)
    os.chown(file, 12, 34)
    file.chmod(0o2751)
    before = file.stat()
    saved = (await save(client, file, NEW, await version(client, file)))["ok"]
    after = file.stat()
    assert file.read_text() == NEW
    assert saved == await version(client, file)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, 12, 34)
    assert after.st_ino != before.st_ino
    assert os.listdir(tmp_path) == ["file"]


async def test_what_was_read_before_a_save_is_whole(client: Client, tmp_path: Path) -> None:
    """Whoever has the old file open goes on reading the old one: it is never cut."""
    file = tmp_path / "file"
    file.write_text(OLD)
    with file.open() as reader:
        await save(client, file, "new")
        assert reader.read() == OLD


async def test_a_changed_file_is_not_written(client: Client, tmp_path: Path) -> None:
    """Nor one that is gone; without a version that is expected both are."""
    file = tmp_path / "file"
    file.write_text(OLD)
    expected = await version(client, file)
    file.write_text("theirs")
    assert await save(client, file, NEW, expected) == {"ok": None}
    assert file.read_text() == "theirs"
    file.unlink()
    assert await save(client, file, NEW, expected) == {"ok": None}
    assert os.listdir(tmp_path) == []
    assert (await save(client, file, NEW))["ok"] == await version(client, file)
    assert file.read_text() == NEW
    assert (await save(client, file, OLD))["ok"] == await version(client, file)
    assert file.read_text() == OLD


async def test_a_change_during_the_save_is_not_overwritten(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody writes while the new content is on its way stays, and nothing is left beside it."""
    file = tmp_path / "file"
    file.write_text(OLD)
    expected = await version(client, file)
    ask = client.connection.ask

    async def interfering(method: str, params: Any, **more: Any) -> Any:
        if method == "chmod":
            file.write_text("theirs")
        return await ask(method, params, **more)

    monkeypatch.setattr(client.connection, "ask", interfering)
    assert await save(client, file, NEW, expected) == {"ok": None}
    assert file.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["file"]


async def test_links_are_followed_and_kept(client: Client, tmp_path: Path) -> None:
    """A symbolic link stays one; a file with two names keeps both."""
    (tmp_path / "folder").mkdir()
    file, other, link = tmp_path / "folder" / "file", tmp_path / "other", tmp_path / "link"
    file.write_text(OLD)
    link.symlink_to(file)
    await save(client, link, "through the link")
    assert link.is_symlink()
    assert file.read_text() == "through the link"
    other.hardlink_to(file)
    for content in (NEW, "short", ""):
        await save(client, file, content)
        assert other.read_text() == content
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "other"]
    assert os.listdir(file.parent) == ["file"]


async def test_a_save_that_is_given_up_leaves_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page was closed before the new file had its name: the old one is there, alone."""
    file = tmp_path / "file"
    file.write_text(OLD)
    ask = client.connection.ask
    reached = asyncio.Event()

    async def stalled(method: str, params: Any, **more: Any) -> Any:
        if method == "rename":
            reached.set()
            await asyncio.Event().wait()
        return await ask(method, params, **more)

    monkeypatch.setattr(client.connection, "ask", stalled)
    await client.begin("file.save", path=str(file), content=NEW)
    async with asyncio.timeout(10):
        await reached.wait()
    assert len(os.listdir(tmp_path)) == 2
    await client.connection.release()
    assert file.read_text() == OLD
    assert os.listdir(tmp_path) == ["file"]


@needs_mounts
@pytest.mark.parametrize("names", [1, 2])
async def test_a_full_disk_leaves_the_old_file(client: Client, full_disk: Path, names: int) -> None:
    """The save fails and changes no time: what does fit is saved with the same version, replaceable or not."""
    file = full_disk / "file"
    if names == 2:
        (full_disk / "other").hardlink_to(file)
    before = sorted(os.listdir(full_disk))
    expected = await version(client, file)
    answer = await save(client, file, OLD + NEW, expected)
    assert answer["error"]["code"] == "ENOSPC"
    assert file.read_text() == OLD
    edited = OLD.replace("old", "odd") + "and a little more\n"
    assert (await save(client, file, edited, expected))["ok"] == await version(client, file)
    assert file.read_text() == edited
    assert sorted(os.listdir(full_disk)) == before


@needs_mounts
async def test_a_file_that_cannot_be_replaced_is_written_over(client: Client, tmp_path: Path) -> None:
    """One that something is mounted on has no other file in its place, but the new content."""
    file, source = tmp_path / "file", tmp_path / "source"
    file.touch()
    source.write_text(OLD)
    with mounted(file, "--bind", str(source)):
        assert (await save(client, file, NEW))["ok"] == await version(client, file)
        assert file.read_text() == NEW
    assert source.read_text() == NEW
    assert sorted(os.listdir(tmp_path)) == ["file", "source"]
