from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.guest.host import Host, children


@pytest.fixture
def tree(home: Path) -> Path:
    for name in ("a.ts", "b.js", "sub/c.ts", "sub/deep/d.ts", "node_modules/e.ts", ".hidden.ts"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    (home / "link").symlink_to("sub")
    return home


async def entries(host: Host, method: str, **params: Any) -> list[dict[str, Any]]:
    call = await host.open(method, **params)
    await call.end()
    assert await call.record() == {"ok": None}
    return [entry async for entry in call.records()]


async def walked(host: Host, tree: Path, **params: Any) -> list[str]:
    found = await entries(host, "walk", path=str(tree), **params)
    return [entry["path"].removeprefix(str(tree)).removeprefix("/") for entry in found]


async def globbed(host: Host, tree: Path, glob: str, **params: Any) -> list[str]:
    found = await entries(host, "expandGlob", glob=glob, **{"root": str(tree), **params})
    return [entry["path"].removeprefix(f"{tree}/") for entry in found]


async def test_walk_visits_everything(host: Host, tree: Path) -> None:
    """The root comes first, then all below it, depth first, links as links."""
    assert await walked(host, tree) == [
        *("", ".hidden.ts", "a.ts", "b.js", "link", "node_modules", "node_modules/e.ts"),
        *("sub", "sub/c.ts", "sub/deep", "sub/deep/d.ts"),
    ]


async def test_entry_has_name_and_kind(host: Host, tree: Path) -> None:
    """Each entry has path, name and exactly one kind."""
    found = {entry["name"]: entry for entry in await entries(host, "walk", path=str(tree))}

    assert found["c.ts"] == {
        "path": f"{tree}/sub/c.ts",
        "name": "c.ts",
        "isFile": True,
        "isDirectory": False,
        "isSymlink": False,
    }
    assert found["link"]["isSymlink"]
    assert found[tree.name]["isDirectory"]


async def test_relative_root_stays_relative(host: Host, tree: Path) -> None:
    """Paths keep the form of the given root."""
    found = await entries(host, "walk", path=tree.name, maxDepth=1, exts=["js"])

    assert [entry["path"] for entry in found] == [f"{tree.name}/b.js"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"maxDepth": 0}, [""]),
        ({"maxDepth": 1, "includeDirs": False}, [".hidden.ts", "a.ts", "b.js", "link"]),
        ({"includeFiles": False, "includeSymlinks": False}, ["", "node_modules", "sub", "sub/deep"]),
        ({"exts": [".js"]}, ["b.js"]),
        ({"exts": ["js", "none"]}, ["b.js"]),
        ({"match": [{"source": "deep", "flags": ""}]}, ["sub/deep", "sub/deep/d.ts"]),
        ({"match": [{"source": r"\.TS$", "flags": "i"}], "maxDepth": 1}, [".hidden.ts", "a.ts"]),
        ({"skip": [{"source": "sub|node_modules|hidden", "flags": ""}], "exts": ["ts"]}, ["a.ts"]),
        (
            {"followSymlinks": True, "canonicalize": False, "match": [{"source": "^.*/link"}]},
            ["link", "link/c.ts", "link/deep", "link/deep/d.ts"],
        ),
    ],
)
async def test_walk_options(host: Host, tree: Path, options: dict[str, Any], wanted: list[str]) -> None:
    """Each option leaves what it says."""
    assert await walked(host, tree, **options) == wanted


async def test_followed_links_have_real_paths(host: Host, tree: Path) -> None:
    """With canonicalize, the default, what lies behind a link is told by its real path."""
    assert (await walked(host, tree, followSymlinks=True)).count("sub/c.ts") == 2


async def test_followed_cycle_ends(host: Host, tree: Path) -> None:
    """A link to a directory above is not followed for ever."""
    (tree / "sub" / "up").symlink_to("..")

    assert len(await walked(host, tree, followSymlinks=True, canonicalize=False)) < 40


async def test_walk_of_nothing(host: Host, tree: Path) -> None:
    """A root that does not exist is NotFound; a bad pattern a SyntaxError."""
    assert await host.error("walk", path=str(tree / "no")) == ("NotFound", "ENOENT")
    assert (await host.error("walk", path=str(tree), match=[{"source": "(", "flags": ""}]))[0] == "SyntaxError"
    assert (await host.ask("walk", path=str(tree), match=["x"]))["invalid"][0]["path"] == ["match"]


async def searching(agent: Any) -> set[int]:
    """The processes of this agent's spawner that are busy."""
    busy = set()
    for pid in children(children(agent.process.pid)[0]):
        with contextlib.suppress(OSError):  # it has ended since
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R":
                busy.add(pid)
    return busy


async def test_endless_pattern_holds_up_nobody(host: Host, tree: Path, agent: Any) -> None:
    """A pattern that backtracks for ever costs only its own call, which can be given up."""
    (tree / ("a" * 60)).touch()
    call = await host.open("walk", path=str(tree), match=[{"source": "(a|aa|a?)+$b", "flags": ""}])
    began = time.monotonic()

    assert await host.ok("ping")
    assert time.monotonic() - began < 10
    while not (busy := await searching(agent)):
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.02)
    await call.reset()
    while await searching(agent) & busy:
        assert time.monotonic() - began < 10
        await host.ok("ping")


async def test_abandoned_walk_ends(host: Host) -> None:
    """A walk that nobody reads any more stops."""
    call = await host.open("walk", path="/usr", followSymlinks=False)
    await call.record()
    await call.reset()
    await asyncio.sleep(0.1)

    assert await host.ok("ping")


async def test_deep_tree(host: Host, home: Path) -> None:
    """A tree far deeper than any recursion is walked and removed."""
    os.chdir(home)
    try:
        for _ in range(700):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir("/")

    assert len(await walked(host, home)) == 701
    await host.ok("remove", path=str(home / "d"), options={"recursive": True})


@pytest.mark.parametrize(
    ("glob", "wanted"),
    [
        ("*.ts", [".hidden.ts", "a.ts"]),
        ("*", [".hidden.ts", "a.ts", "b.js", "link", "node_modules", "sub"]),
        ("**/*.ts", [".hidden.ts", "a.ts", "node_modules/e.ts", "sub/c.ts", "sub/deep/d.ts"]),
        ("sub/**", ["sub", "sub/c.ts", "sub/deep", "sub/deep/d.ts"]),
        ("[ab].{ts,js}", ["a.ts", "b.js"]),
        ("[!a].*", ["b.js"]),
        ("@(a|b).+(t|j)s", ["a.ts", "b.js"]),
        ("?.js", ["b.js"]),
        ("sub/*/", ["sub/deep"]),
        ("sub/../a.ts", ["a.ts"]),
        ("nothing/*", []),
        ("a.ts/*", []),
        ("./a.ts", ["a.ts"]),
    ],
)
async def test_globs(host: Host, tree: Path, glob: str, wanted: list[str]) -> None:
    """A glob finds what a shell with globstar and extglob would, with absolute paths and without the root."""
    assert await globbed(host, tree, glob) == wanted


@pytest.mark.parametrize(
    ("glob", "options", "wanted"),
    [
        ("*", {"includeDirs": False}, [".hidden.ts", "a.ts", "b.js", "link"]),
        ("*.TS", {"caseInsensitive": True}, [".hidden.ts", "a.ts"]),
        ("A.ts", {"caseInsensitive": True}, ["a.ts"]),
        ("**/*.ts", {"exclude": ["node_modules", "**/.*"]}, ["a.ts", "sub/c.ts", "sub/deep/d.ts"]),
        ("**/*.ts", {"globstar": False}, ["node_modules/e.ts", "sub/c.ts"]),
        ("@(a).ts", {"extended": False}, []),
    ],
)
async def test_glob_options(host: Host, tree: Path, glob: str, options: dict[str, Any], wanted: list[str]) -> None:
    """Each option of a glob has its effect."""
    assert await globbed(host, tree, glob, **options) == wanted


async def test_absolute_glob(host: Host, tree: Path) -> None:
    """An absolute glob does not need its root."""
    found = await entries(host, "expandGlob", glob=f"{tree}/sub/*.ts")

    assert [entry["path"] for entry in found] == [f"{tree}/sub/c.ts"]
