from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.vm.guest.host import Host, WasReset


async def test_read_file_sends_its_bytes(host: Host, home: Path) -> None:
    """A file's content arrives unchanged, its size in the reply."""
    content = os.urandom(3_000_000)
    (home / "a").write_bytes(content)

    call = await host.open("readFile", path=str(home / "a"))

    assert await call.record() == {"ok": {"size": 3_000_000}}
    assert await call.read_to_end() == content


async def test_read_of_an_empty_file(host: Host, home: Path) -> None:
    """An empty file has size nought and no output."""
    (home / "a").touch()

    assert await host.read_file(str(home / "a")) == b""


async def test_read_of_a_kernel_file(host: Host) -> None:
    """A file that has content but no size is read to its end."""
    assert b"processor" in await host.read_file("/proc/cpuinfo")


async def test_relative_paths_start_at_home(host: Host, home: Path) -> None:
    """A relative path is looked up below the home directory."""
    (home / "a").write_text("x")

    assert await host.read_file(f"{home.name}/a") == b"x"


async def test_missing_file_is_not_found(host: Host, home: Path) -> None:
    """A path that does not exist is NotFound with ENOENT."""
    assert await host.error("readFile", path=str(home / "no")) == ("NotFound", "ENOENT")
    assert await host.error("readTextFile", path="") == ("NotFound", "ENOENT")


async def test_reading_a_directory(host: Host, home: Path) -> None:
    """A directory cannot be read as a file."""
    assert await host.error("readFile", path=str(home)) == ("IsADirectory", "EISDIR")


async def test_missing_parameter_names_its_path(host: Host) -> None:
    """A call without its parameter is invalid, with the parameter's name."""
    reply = await host.ask("readTextFile")

    assert reply["invalid"][0]["path"] == ["path"]
    assert reply["invalid"][0]["expected"] == "string"


async def test_nested_parameter_of_wrong_type(host: Host) -> None:
    """A wrong option is named with the way to it."""
    reply = await host.ask("writeFile", path="a", options={"append": "yes"})

    assert [issue["path"] for issue in reply["invalid"]] == [["options", "append"]]


async def test_a_giant_number_is_invalid(host: Host) -> None:
    """An integer that no file could have is invalid, and the agent goes on."""
    assert "invalid" in await host.ask("truncate", name="a", length=10**30)
    assert "invalid" in await host.ask("truncate", name="a", length=float("inf"))


async def test_a_path_with_nul_is_invalid(host: Host) -> None:
    """A path that the kernel cannot know is refused."""
    assert "invalid" in await host.ask("stat", path="a\0b")


async def test_write_file_takes_the_input(host: Host, home: Path) -> None:
    """A file has the input as its content when the reply comes."""
    content = os.urandom(2_000_000)

    assert await host.ok("writeFile", data=content, path=str(home / "a")) is None

    assert (home / "a").read_bytes() == content


async def test_write_replaces_what_was_there(host: Host, home: Path) -> None:
    """A shorter content leaves nothing of the longer one."""
    (home / "a").write_text("longer")

    await host.ok("writeTextFile", data=b"new", path=str(home / "a"), options=None)

    assert (home / "a").read_text() == "new"


async def test_write_appends(host: Host, home: Path) -> None:
    """With append the content is added."""
    (home / "a").write_text("one ")

    await host.ok("writeFile", data=b"two", path=str(home / "a"), options={"append": True})

    assert (home / "a").read_text() == "one two"


async def test_write_without_create(host: Host, home: Path) -> None:
    """With create false a missing file stays missing."""
    assert await host.error("writeFile", path=str(home / "a"), options={"create": False}) == ("NotFound", "ENOENT")
    assert not (home / "a").exists()


async def test_create_new_refuses_an_existing_file(host: Host, home: Path) -> None:
    """With createNew an existing file is left alone, whatever create says."""
    (home / "a").write_text("old")
    options = {"createNew": True, "create": False}

    assert await host.error("writeFile", data=b"new", path=str(home / "a"), options=options) == (
        "AlreadyExists",
        "EEXIST",
    )
    await host.ok("writeFile", data=b"new", path=str(home / "b"), options=options)

    assert ((home / "a").read_text(), (home / "b").read_text()) == ("old", "new")


async def test_mode_holds_for_an_existing_file_too(host: Host, home: Path) -> None:
    """The mode is set exactly, also where the file was there before."""
    (home / "a").write_text("")

    await host.ok("writeFile", path=str(home / "a"), options={"mode": 0o606})

    assert stat.S_IMODE((home / "a").stat().st_mode) == 0o606


async def test_input_that_is_refused_does_not_block_the_link(host: Host, home: Path) -> None:
    """A long input for a call that failed at once is taken and dropped."""
    call = await host.open("writeFile", path=str(home / "no" / "a"))
    assert (await call.record())["error"]["code"] == "ENOENT"

    await call.write(bytes(2_000_000))
    await call.end()

    assert await call.read_to_end() == b""
    assert await host.ok("ping")


async def test_slow_input_and_other_calls(host: Host, home: Path) -> None:
    """A write that is being fed slowly keeps no other call waiting."""
    call = await host.open("writeFile", path=str(home / "a"))
    await call.write(b"first ")
    assert await host.ok("ping")
    await call.write(b"second")
    await call.end()

    assert await call.record() == {"ok": None}
    assert (home / "a").read_text() == "first second"


async def test_abandoned_read_leaves_nothing_open(host: Host, home: Path, agent: object) -> None:
    """A read that the host gives up closes its file."""
    (home / "big").write_bytes(bytes(20_000_000))
    call = await host.open("readFile", path=str(home / "big"))
    await call.record()
    await call.reset()

    descriptors = Path(f"/proc/{agent.process.pid}/fd")  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(os.readlink(entry).endswith("/big") for entry in descriptors.iterdir() if entry.is_symlink()):
        assert time.monotonic() < deadline
        await host.ok("ping")


async def test_copy_keeps_content_and_mode(host: Host, home: Path) -> None:
    """A copy has the source's bytes and permissions, over what was there."""
    (home / "a").write_bytes(os.urandom(100_000))
    (home / "a").chmod(0o741)
    (home / "b").write_bytes(bytes(200_000))

    await host.ok("copyFile", fromPath=str(home / "a"), toPath=str(home / "b"))

    assert (home / "b").read_bytes() == (home / "a").read_bytes()
    assert stat.S_IMODE((home / "b").stat().st_mode) == 0o741


async def test_copy_onto_itself(host: Host, home: Path) -> None:
    """Copying a file onto itself loses nothing."""
    (home / "a").write_text("kept")

    await host.ok("copyFile", fromPath=str(home / "a"), toPath=str(home / "a"))

    assert (home / "a").read_text() == "kept"


async def test_truncate(host: Host, home: Path) -> None:
    """Truncation cuts to the length, or to nothing without one."""
    (home / "a").write_text("12345")

    await host.ok("truncate", name=str(home / "a"), length=2)
    assert (home / "a").read_text() == "12"
    await host.ok("truncate", name=str(home / "a"), length=None)
    assert (home / "a").read_text() == ""


async def test_read_dir_tells_kinds(host: Host, home: Path) -> None:
    """Each entry is a file, a directory, a link, or none of them."""
    (home / "d").mkdir()
    (home / "f").touch()
    (home / "l").symlink_to("f")
    os.mkfifo(home / "p")

    entries = {entry.pop("name"): entry for entry in await host.ok("readDir", path=str(home))}

    assert {name: [key for key, value in entry.items() if value] for name, entry in entries.items()} == {
        "d": ["isDirectory"],
        "f": ["isFile"],
        "l": ["isSymlink"],
        "p": [],
    }


async def test_mkdir(host: Host, home: Path) -> None:
    """A directory is made once; an existing one is AlreadyExists."""
    await host.ok("mkdir", path=str(home / "a"))

    assert await host.error("mkdir", path=str(home / "a")) == ("AlreadyExists", "EEXIST")
    assert await host.error("mkdir", path=str(home / "x" / "y")) == ("NotFound", "ENOENT")


async def test_recursive_mkdir(host: Host, home: Path) -> None:
    """A recursive one makes what is missing, takes what is there, and stumbles over a file."""
    path = str(home / "a" / "b" / "c")
    (home / "file").touch()

    await host.ok("mkdir", path=path, options={"recursive": True, "mode": 0o700})
    await host.ok("mkdir", path=path, options={"recursive": True})

    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert (await host.error("mkdir", path=str(home / "file"), options={"recursive": True}))[0] == "AlreadyExists"


async def test_remove(host: Host, home: Path) -> None:
    """Files and empty directories go; a full one only recursively."""
    (home / "d" / "e").mkdir(parents=True)
    (home / "d" / "e" / "f").touch()
    (home / "d" / "out").symlink_to("/")

    assert await host.error("remove", path=str(home / "d")) == ("Error", "ENOTEMPTY")
    await host.ok("remove", path=str(home / "d" / "e" / "f"))
    await host.ok("remove", path=str(home / "d"), options={"recursive": True})

    assert not (home / "d").exists()
    assert Path("/etc").exists()
    assert await host.error("remove", path=str(home / "d"), options={"recursive": True}) == ("NotFound", "ENOENT")


async def test_rename(host: Host, home: Path) -> None:
    """A file gets another name."""
    (home / "a").write_text("x")

    await host.ok("rename", oldPath=str(home / "a"), newPath=str(home / "b"))

    assert (home / "b").read_text() == "x"


async def test_stat_has_every_field(host: Host, home: Path) -> None:
    """File info has all its fields, dates as ISO strings that are never null."""
    (home / "a").write_text("123")
    os.utime(home / "a", (1_700_000_000.25, 1_700_000_001.5))

    info = await host.ok("stat", path=str(home / "a"))

    assert set(info) == {
        *("isFile", "isDirectory", "isSymlink", "isBlockDevice", "isCharDevice", "isFifo", "isSocket", "size", "mode"),
        *("dev", "ino", "nlink", "uid", "gid", "rdev", "blksize", "blocks", "mtime", "atime", "birthtime", "ctime"),
    }
    assert (info["size"], info["isFile"], info["isDirectory"]) == (3, True, False)
    assert info["mtime"] == "2023-11-14T22:13:21.500Z"
    assert info["atime"] == "2023-11-14T22:13:20.250Z"
    assert info["birthtime"].endswith("Z")
    assert info["birthtime"] > info["mtime"]


async def test_lstat_sees_the_link(host: Host, home: Path) -> None:
    """Only lstat tells of a symbolic link itself."""
    (home / "l").symlink_to("missing")

    assert (await host.ok("lstat", path=str(home / "l")))["isSymlink"]
    assert await host.error("stat", path=str(home / "l")) == ("NotFound", "ENOENT")


async def test_chmod(host: Host, home: Path) -> None:
    """Permissions are set, to none at all as well."""
    (home / "a").touch()

    await host.ok("chmod", path=str(home / "a"), mode=0)

    assert stat.S_IMODE((home / "a").stat().st_mode) == 0


async def test_chown_to_nobody_in_particular(host: Host, home: Path) -> None:
    """Null leaves an owner as it is."""
    (home / "a").touch()

    await host.ok("chown", path=str(home / "a"), uid=None, gid=os.getgid())

    assert (home / "a").stat().st_uid == os.getuid()


async def test_links(host: Host, home: Path) -> None:
    """Hard links share a file; symbolic ones keep their target's text."""
    (home / "a").write_text("x")

    await host.ok("link", target=str(home / "a"), path=str(home / "hard"))
    await host.ok("symlink", target="../else/where", path=str(home / "soft"), options={"type": "file"})

    assert (home / "a").stat().st_nlink == 2
    assert await host.ok("readLink", path=str(home / "soft")) == "../else/where"


async def test_real_path(host: Host, home: Path) -> None:
    """A real path has no links in it, and must exist."""
    (home / "d").mkdir()
    (home / "l").symlink_to("d")

    assert await host.ok("realPath", path=f"{home.name}/l/../l") == str((home / "d").resolve())
    assert await host.error("realPath", path="nowhere") == ("NotFound", "ENOENT")


async def test_link_cycle(host: Host, home: Path) -> None:
    """A link to itself is a FilesystemLoop."""
    (home / "l").symlink_to("l")

    assert await host.error("readFile", path=str(home / "l")) == ("FilesystemLoop", "ELOOP")


async def test_temporary_files(host: Host, home: Path) -> None:
    """Temporary files and directories are new, private, absolute, and named as asked."""
    options = {"dir": home.name, "prefix": "p-", "suffix": ".txt"}

    file = await host.ok("makeTempFile", options=options)
    folder = await host.ok("makeTempDir", options=options)
    plain = await host.ok("makeTempFile")

    assert Path(file).name.startswith("p-")
    assert file.endswith(".txt")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert plain.startswith("/tmp/")
    os.unlink(plain)


async def test_umask_holds_for_files_and_processes(host: Host, home: Path) -> None:
    """The mask is answered as it was before, and holds for what is made from then on."""
    before = await host.ok("umask", mask=0)
    try:
        await host.ok("writeFile", path=str(home / "a"))
        await host.run("touch", str(home / "b"))
        assert stat.S_IMODE((home / "a").stat().st_mode) == 0o666
        assert stat.S_IMODE((home / "b").stat().st_mode) == 0o666
    finally:
        assert await host.ok("umask", mask=before) == 0
    assert await host.ok("umask", mask=None) == before


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [("2024-01-02T03:04:05.678Z", 1704164645.678), ("2024-01-02T03:04:05+01:00", 1704161045), (12.5, 12.5), (0, 0)],
)
async def test_utime(host: Host, home: Path, moment: str | float, seconds: float) -> None:
    """Times are ISO strings or epoch seconds."""
    (home / "a").touch()

    await host.ok("utime", path=str(home / "a"), atime=moment, mtime=moment)

    assert (home / "a").stat().st_mtime == pytest.approx(seconds, abs=1e-6)


async def test_utime_refuses_what_is_no_time(host: Host, home: Path) -> None:
    """A text that is no time is refused."""
    (home / "a").touch()

    assert await host.error("utime", path=str(home / "a"), atime="soon", mtime=0) == ("TypeError", "EINVAL")


async def test_fifo_without_writer_does_not_hold_up_anybody(host: Host, home: Path) -> None:
    """Writing to a FIFO waits for its reader while other calls are answered."""
    os.mkfifo(home / "p")
    calls = [await host.open("writeFile", path=str(home / "p"), options={"create": False}) for _ in range(40)]

    assert await host.ok("stat", path=str(home))

    for call in calls:
        await call.reset()
    assert await host.ok("stat", path=str(home))


async def test_a_request_that_is_no_json(host: Host) -> None:
    """A request that cannot be understood resets its stream, and the agent goes on."""
    call = await host.send(b"\xff{")

    with pytest.raises(WasReset):
        await call.read_to_end()
    assert await host.ok("ping")


async def test_names_that_are_no_text(host: Host, home: Path) -> None:
    """A file name that is no UTF-8 is listed and does not break the answer."""
    os.mkdir(os.fsencode(home) + b"/\xff\xfe")

    call = await host.open("readDir", path=str(home))
    size = int.from_bytes(await call.read_exactly(4), "big")

    assert b"\xff\xfe" in await call.read_exactly(size)
